"""Ranks as threads of one process: what `World` agrees on by collectives, they agree on at a barrier."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from shards.errors import UserError
from trainer.engine.distributed import World, known_to_all

T = TypeVar("T")


class ThreadWorld(World):
    """One of the ranks."""

    def __init__(self, rank: int, exchange: "_Exchange") -> None:
        super().__init__(rank=rank, world_size=exchange.world_size)
        object.__setattr__(self, "exchange", exchange)

    def sum_across_ranks(self, values: Sequence[float] | Tensor) -> Tensor:
        own = torch.as_tensor(values, dtype=torch.float64)
        return torch.stack(self.exchange(self.rank, own)).sum(dim=0)

    def any_rank(self, flag: bool) -> bool:
        return any(self.exchange(self.rank, bool(flag)))

    def gather_text(self, text: str) -> list[str] | None:
        everything = self.exchange(self.rank, text)
        return everything if self.rank == 0 else None

    def agree_or_raise(self, error: UserError | None) -> None:
        errors = self.exchange(self.rank, error)
        for rank, first in enumerate(errors):
            if first is not None:
                raise known_to_all(type(first)(f"rank {rank}: {first}"))

    def broadcast_text(self, text: str | None, *, source: int = 0) -> str:
        return self.exchange(self.rank, text)[source]


def on_ranks(world_size: int, act: Callable[[World], T]) -> list[T]:
    """What each of so many ranks gives, by rank; all of them act at the same time. One alone stays in its thread, since
    the last bits of a product may differ from one thread to another."""
    if world_size == 1:
        return [act(World())]
    exchange = _Exchange(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: act(ThreadWorld(rank, exchange)), range(world_size)))


class _Exchange:
    """Each rank gives something, and gets what all gave, by rank."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self._barrier = world_size, threading.Barrier(world_size, timeout=60)
        self._given: list[Any] = [None] * world_size

    def __call__(self, rank: int, value: Any) -> list[Any]:
        self._given[rank] = value
        self._barrier.wait()
        everything = list(self._given)
        self._barrier.wait()
        return everything
