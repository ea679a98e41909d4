"""Ranks as threads of one process: what `World` agrees on by collectives, they agree on at a barrier.

They take turns, from one barrier to the next: real ranks share no tokenizer, and one of transformers' is changed while
it is called.
"""

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
    """What each of so many ranks gives, by rank. One alone stays in its thread, since the last bits of a product may
    differ from one thread to another."""
    if world_size == 1:
        return [act(World())]
    exchange = _Exchange(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: exchange.in_turn(act, rank), range(world_size)))


class _Exchange:
    """Each rank gives something, and gets what all gave, by rank."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self._barrier = world_size, threading.Barrier(world_size, timeout=60)
        self._given: list[Any] = [None] * world_size
        self._turn = threading.Lock()

    def in_turn(self, act: Callable[[World], T], rank: int) -> T:
        with self._turn:
            return act(ThreadWorld(rank, self))

    def __call__(self, rank: int, value: Any) -> list[Any]:
        self._given[rank] = value
        self._wait()
        everything = list(self._given)
        self._wait()
        return everything

    def _wait(self) -> None:
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()
