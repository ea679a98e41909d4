"""The limit gauge: where a step's time goes, and the word for it."""

from collections.abc import Iterator

import pytest

from trainer.reporting.gauge import Gauge, Limits, Seconds, limits
from trainer.reporting.progress import render_limits

SPENT = Seconds(wall=20.0, data=1.0, network=3.0, launch=15.0, drain=1.0, network_in_launch=2.0, flops=8e9)
"""Of two ranks that were at it for 10 seconds."""


def judged(spent: Seconds, *, ahead: bool = True, asynchronous: bool = False, peak: float | None = 1e9) -> Limits:
    found = limits(spent, peak=peak, ranks=2, ahead=ahead, asynchronous=asynchronous)
    assert found is not None
    return found


def test_shares_add_up_and_collectives_of_the_engine_are_not_computing() -> None:
    found = judged(SPENT)
    assert found.compute == pytest.approx(14 / 20)
    assert found.network == pytest.approx(3 / 20)
    assert found.data == pytest.approx(1 / 20)
    assert found.compute + found.data + found.network + found.host == pytest.approx(1.0)
    assert found.bound_by == "compute"


def test_mfu_is_a_part_of_what_all_ranks_together_can_do_in_the_time_that_passed() -> None:
    assert judged(SPENT).mfu == pytest.approx(8e9 / (10.0 * 1e9))
    assert judged(SPENT, peak=None).mfu is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"launch": 16.0, "network_in_launch": 13.0, "network": 14.0}, "network"),
        ({"launch": 4.0, "network": 1.0, "network_in_launch": 1.0}, "host"),
        ({"data": 12.0, "launch": 5.0}, "data"),
    ],
)
def test_the_word_is_what_takes_most_time(changes: dict[str, float], word: str) -> None:
    assert judged(SPENT._replace(**changes), ahead=False).bound_by == word


def test_workers_that_are_waited_for_are_what_is_slow_even_where_computing_takes_longer() -> None:
    waits = SPENT._replace(data=4.0, launch=12.0)
    assert judged(waits, ahead=True).bound_by == "data"
    assert judged(waits, ahead=False).bound_by == "compute"


def test_a_gpu_that_is_done_when_its_host_looks_was_waiting_for_it() -> None:
    busy = SPENT._replace(launch=6.0, drain=10.0)
    idle = SPENT._replace(launch=16.0, drain=0.01)
    assert judged(busy, asynchronous=True).bound_by == "compute"
    assert judged(idle, asynchronous=True).bound_by == "host"


def test_no_time_has_no_limit() -> None:
    assert limits(Seconds(), peak=1.0, ranks=1, ahead=False, asynchronous=False) is None


class Watch:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_rank_cuts_its_time_into_data_computing_and_agreeing() -> None:
    watch = Watch()
    gauge = Gauge(clock=watch, flops=lambda batch: 10.0 * batch, peak=5.0, engine_network=lambda: 0.0)

    def loader() -> Iterator[int]:
        for item in (1, 2):
            watch.now += 2.0
            yield item

    gauge.start()
    for item in gauge.reading(loader()):
        with gauge.computing(item):
            watch.now += 3.0
        watch.now += 0.5
    with gauge.draining():
        watch.now += 1.0
    own = Seconds(*gauge.own())
    assert own == Seconds(wall=12.0, data=4.0, network=0.0, launch=6.0, drain=1.0, network_in_launch=0.0, flops=30.0)
    with gauge.agreeing():
        watch.now += 4.0
    gauge.add(own)
    following = Seconds(*gauge.own())
    assert following.network == following.wall == 4.0
    gauge.add(following)
    found = gauge.take()
    assert found is not None
    assert found.network == pytest.approx(4 / 16)
    assert found.mfu == pytest.approx(30 / (16 * 5))
    assert gauge.take() is None
    assert gauge.latest == found


def test_time_before_the_start_of_an_epoch_counts_for_nothing() -> None:
    watch = Watch()
    gauge = Gauge(clock=watch)
    with gauge.computing(None):
        watch.now += 5.0
    gauge.start()
    watch.now += 1.0
    assert Seconds(*gauge.own()) == Seconds(wall=1.0)


def test_the_line_says_it_in_the_words_of_the_metrics() -> None:
    found = Limits("network", compute=0.38, data=0.01, network=0.59, host=0.02, mfu=0.204)
    assert render_limits(found) == "MFU 20 % bound by network (data 1 % network 59 % host 2 %)"
    assert render_limits(found._replace(mfu=None)).startswith("bound by network")
    assert found.as_metrics()["speed/bound_by"] == "network"
    assert "speed/mfu" not in found._replace(mfu=None).as_metrics()
