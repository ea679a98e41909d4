"""Micro-batches in the planned order: workers read, decode and tokenise, and cannot change the order."""

import atexit
import contextlib
import logging
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from shards.errors import DataError
from shards.read.handed_ahead import handed_ahead
from shards.read.micro_batch import Fault, MicroBatch
from shards.read.micro_batches import MicroBatches
from shards.read.parcel import Parcel
from shards.read.workers import end_workers, leave_with_parent, worker_context

logger = logging.getLogger(__name__)


class _Keys(Sampler):
    """The keys of the next pass; a persistent DataLoader asks for them anew at each pass."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, ...]] = []

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class Loader:
    """Micro-batches of a dataset, prepared ahead by workers and handed out in the order of their keys.

    A DataLoader gives each worker whole micro-batches in turn and returns them in order, so the number of workers
    changes nothing but the speed.
    """

    def __init__(self, dataset: MicroBatches, *, workers: int, pin_memory: bool) -> None:
        self._dataset, self._fetcher = dataset, dataset.fetcher()
        self._keys = _Keys()
        self._noted: set[str] = set()
        self._needs_thread = workers > 0 and not pin_memory  # the one that pins takes items ahead as well
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._keys,
            collate_fn=_unchanged,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            multiprocessing_context=worker_context(dataset.modules) if workers else None,
        )
        if workers:
            # At exit Python would send its children a SIGTERM, which these never get, and wait for them for ever.
            atexit.register(end_workers, weakref.ref(self._loader))

    def batches(self, keys: list[tuple[int, ...]]) -> Iterator[MicroBatch]:
        """The micro-batches of these keys.

        Raises:
            DataError: one of them could not be read; the message names shard and image.
        """
        self._keys.keys = keys
        with contextlib.closing(self._items()) as items:
            for key, item in zip(keys, items, strict=True):
                if isinstance(item, Fault):
                    raise DataError(item.message)
                if self._fetcher is not None:
                    self._fetcher.move_to(self._dataset.position(*key))
                made = item.open() if isinstance(item, Parcel) else item
                self._note(getattr(made, "notes", ()))
                yield made

    def _items(self) -> Iterator[MicroBatch | Parcel | Fault]:
        items = iter(self._loader)  # here, because only the main thread hears of a worker that was killed
        yield from handed_ahead(items) if self._needs_thread else items

    def _note(self, notes: Sequence[str]) -> None:
        """Say each thing once: the same damage is met in every epoch."""
        for note in sorted(set(notes) - self._noted):
            self._noted.add(note)
            logger.warning("%s", note)


def _unchanged(made: MicroBatch | Parcel | Fault) -> MicroBatch | Parcel | Fault:
    return made  # the default would make lists of its tuples


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    leave_with_parent()
