"""Collectives are timed where DeepSpeed calls them, those that are waited for later as well."""

from types import SimpleNamespace

from trainer.engine.network_time import HostClock, time_collectives


class Watch:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Backend:
    """Takes a second to reduce, and lets gathers be waited for, for two."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def all_reduce(self, tensor: object, op: str = "sum") -> None:
        assert tensor is None
        assert op in ("sum", "max")
        self._watch.now += 1.0

    def all_gather_into_tensor(self, **_: object) -> SimpleNamespace:
        return SimpleNamespace(wait=self._wait, is_completed=lambda: False)

    def new_group(self) -> None:
        self._watch.now += 100.0

    def _wait(self) -> str:
        self._watch.now += 2.0
        return "done"


def timed() -> tuple[Backend, HostClock, Watch]:
    watch = Watch()
    backend, clock = Backend(watch), HostClock(watch)
    time_collectives(backend, clock)
    return backend, clock, watch


def test_a_collective_counts_until_it_returns_and_nothing_else_does() -> None:
    backend, clock, _ = timed()
    backend.all_reduce(None, op="max")
    backend.new_group()
    assert clock.take() == 1.0
    assert clock.take() == 0.0


def test_what_is_waited_for_counts_when_it_is_waited_for() -> None:
    backend, clock, _ = timed()
    work = backend.all_gather_into_tensor(output=None)
    assert clock.take() == 0.0
    assert not work.is_completed()
    assert work.wait() == "done"
    assert clock.take() == 2.0


def test_a_second_engine_of_a_process_takes_over_and_nothing_counts_twice() -> None:
    backend, first, watch = timed()
    second = HostClock(watch)
    time_collectives(backend, second)
    backend.all_reduce(None)
    assert (first.take(), second.take()) == (0.0, 1.0)
