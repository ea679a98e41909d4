"""Bytes that a micro-batch takes beside the weights: a forward and a backward pass without values.

Torch's fake tensors have shapes, types and a place, and no memory: the passes run as they would, with the kernels that
they would take, and what they allocate and let go of is counted. So it holds for every tower and every way to freeze,
adapt or recompute, and it takes seconds where the passes themselves would take minutes.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from model.objective import Objective
from model.precision import t5_dtype
from model.towers.answer_towers import T5AnswerTower
from shards.read.collation import AnyBatch

REST = "loss"
"""What stands in no part of the model."""


class Activations(NamedTuple):
    """Bytes of a micro-batch on one device."""

    kept: Mapping[str, int]
    """Between forward and backward, by the part of the model that made them: what gradients are computed from."""
    peak: int
    """The most at any moment of both passes, gradients of parameters left out."""

    @property
    def total_kept(self) -> int:
        return sum(self.kept.values())


def simulate(
    objective: Objective, batch: AnyBatch, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Activations:
    """What forward and backward of a micro-batch take; the objective and the batch are in the end as they were.

    Args:
        dtype: that the model will compute in; None is the one that it has.
        device: that it will compute on, which chooses its own kernels; None is where it is.

    Raises:
        NotImplementedError, RuntimeError: the objective asks its tensors for values, which these do not have.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    device = device or next(iter(objective.parameters())).device
    with ExitStack() as stack:
        ledger = _Ledger(_parts_of(objective))
        moved = tree_map_only(Tensor, fake.from_tensor, batch)
        with fake:
            moved = moved.to(device)
        for value in tree_leaves(moved):
            if isinstance(value, Tensor):
                ledger.know(value)
        for value in stack.enter_context(_without_values(objective, fake, dtype, device)):
            ledger.know(value)
        parameters = list(objective.parameters())
        for parameter in parameters:
            parameter.register_hook(ledger.is_gradient)
        stack.enter_context(ledger.watching_modules())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(fake)
        stack.enter_context(ledger)
        loss = objective(moved).loss
        kept = ledger.by_part()
        torch.autograd.grad(loss, parameters, allow_unused=True)
        return Activations(kept, ledger.peak)


class _Ledger(TorchDispatchMode):
    """Counts the storages that operations make for as long as they live.

    Args:
        part_of: the part of the model that a module is in, by its id.
    """

    def __init__(self, part_of: Mapping[int, str]) -> None:
        super().__init__()
        self._part_of, self._part = part_of, REST
        self._live: dict[int, tuple[str, int]] = {}
        self._known: set[int] = set()
        self._references: dict[int, Any] = {}
        self._bytes = self.peak = 0

    def know(self, tensor: Tensor) -> None:
        """A tensor that was there before."""
        storage = tensor.untyped_storage()
        self._known.add(id(storage))
        self._references[id(storage)] = storage  # held, so that nothing else gets its id

    def is_gradient(self, gradient: Tensor) -> None:
        """A gradient of a parameter: it stays, and is counted elsewhere."""
        self._drop(id(gradient.untyped_storage()))

    def by_part(self) -> dict[str, int]:
        """What is alive now."""
        counts: Counter[str] = Counter()
        for part, size in self._live.values():
            counts[part] += size
        return dict(counts)

    @contextmanager
    def watching_modules(self) -> Iterator[None]:
        """Notice in which part of the model the pass is."""

        def enter(module: nn.Module, _: Any) -> None:
            self._part = self._part_of.get(id(module), self._part)

        hook = register_module_forward_pre_hook(enter)
        try:
            yield
        finally:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known or key in self._live:
            return
        size = storage.nbytes()
        self._live[key] = (self._part, size)
        self._references[key] = weakref.ref(storage, lambda _, key=key: self._drop(key))
        self._bytes += size
        self.peak = max(self.peak, self._bytes)

    def _drop(self, key: int) -> None:
        found = self._live.pop(key, None)
        if found is not None:
            self._bytes -= found[1]


@contextmanager
def _without_values(
    objective: Objective, fake: FakeTensorMode, dtype: torch.dtype | None, device: torch.device
) -> Iterator[list[Tensor]]:
    """Parameters and buffers without values in the places of the objective's own, which come back at the end."""
    made: dict[int, Tensor] = {}
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for held, wanted in _holders(objective, dtype, device):
            for name, value in held.items():
                if value is not None:
                    places.append((held, name, value))
                    if id(value) not in made:
                        made[id(value)] = _fake(value, fake, wanted, device)
                    held[name] = made[id(value)]
        yield list(made.values())
    finally:
        for held, name, value in places:
            held[name] = value


def _holders(
    objective: Objective, dtype: torch.dtype | None, device: torch.device
) -> Iterator[tuple[dict[str, Any], torch.dtype | None]]:
    """What holds parameters or buffers, each once, and the precision that they will be in."""
    seen: set[int] = set()
    for root in (objective, *(tower for _, tower in objective.frozen_towers())):
        wide = isinstance(root, T5AnswerTower) and dtype == torch.float16
        wanted = t5_dtype(device) if wide else dtype
        for module in root.modules():
            if id(module) not in seen:
                seen.add(id(module))
                yield module._parameters, wanted
                yield module._buffers, wanted


def _fake(value: Tensor, fake: FakeTensorMode, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    kept = value.dtype if dtype is None or not value.is_floating_point() else dtype
    with fake:
        empty = torch.empty(value.shape, dtype=kept, device=device)
    return nn.Parameter(empty, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _parts_of(objective: Objective) -> dict[int, str]:
    """The part of the model that every module is in: the towers by name, and what is trained beside them."""
    named = [*objective.named_children(), *objective.frozen_towers()]
    named.sort(key=lambda entry: entry[0] in ("lora", "heads"))  # adapters lie in the towers that they adapt
    found: dict[int, str] = {}
    for name, part in named:
        for module in part.modules():
            found.setdefault(id(module), name)
    return found
