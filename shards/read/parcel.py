"""A micro-batch on its way out of a worker: all of its tensors lie in one piece of shared memory.

PyTorch passes each tensor between processes as a file descriptor of its own, over a connection that is opened for it:
a micro-batch of twenty small tensors took 7 to 10 ms, and one of a single tensor takes 1.
"""

import io
import math
import pickle
from typing import Any, NamedTuple, Self

import torch

_ALIGNMENT = 64
"""Bytes: a line of the cache, and a multiple of every element's size."""


class _Place(NamedTuple):
    """Where a tensor lies in the memory."""

    dtype: torch.dtype
    shape: torch.Size
    offset: int

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def of(self, memory: torch.Tensor) -> torch.Tensor:
        return memory[self.offset : self.offset + self.num_bytes].view(self.dtype).view(self.shape)


class Parcel:
    """A value whose tensors, on the CPU and without gradients, were copied to one piece of shared memory."""

    def __init__(self, value: Any) -> None:
        packer = _Packer()
        self._rest, self._places = packer.pack(value), packer.places
        end = self._places[-1].offset + self._places[-1].num_bytes if self._places else 0
        # Shared before it is filled: otherwise it would be copied once more when it is sent.
        self._memory = torch.empty(end, dtype=torch.uint8).share_memory_()
        for place, tensor in zip(self._places, packer.tensors, strict=True):
            place.of(self._memory).copy_(tensor)

    def pin_memory(self) -> Self:
        """The DataLoader's thread calls this where batches go to a GPU: one copy for all tensors."""
        self._memory = self._memory.pin_memory()
        return self

    def open(self) -> Any:
        """The value; its tensors are views of the one memory, which lives as long as any of them."""
        return _Opener(self._rest, [place.of(self._memory) for place in self._places]).load()


class _Packer(pickle.Pickler):
    """Leaves out tensors, and remembers where they will lie."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self.places: list[_Place] = []
        self._numbers: dict[int, int] = {}
        self._end = 0

    def pack(self, value: Any) -> bytes:
        self.dump(value)
        return self._file.getvalue()

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
            self.places.append(_Place(value.dtype, value.shape, self._end))
            self._end += -(-self.places[-1].num_bytes // _ALIGNMENT) * _ALIGNMENT
        return self._numbers[id(value)]


class _Opener(pickle.Unpickler):
    """Puts the tensors back where they were."""

    def __init__(self, rest: bytes, tensors: list[torch.Tensor]) -> None:
        super().__init__(io.BytesIO(rest))
        self._tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        return self._tensors[number]
