"""One item ahead: the same items, errors at their place, and no thread that outlives its reader."""

import threading
from collections.abc import Iterator

import pytest

from shards.read.handed_ahead import handed_ahead


def threads() -> int:
    return sum(thread.name == "handed ahead" for thread in threading.enumerate())


def test_items_come_in_their_order_and_the_thread_ends_with_them():
    assert list(handed_ahead(range(100))) == list(range(100))
    assert list(handed_ahead([])) == []
    assert threads() == 0


def test_the_next_item_is_taken_while_the_one_before_is_held():
    taken = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        taken.set()
        yield 2

    ahead = handed_ahead(items())
    assert next(ahead) == 1
    assert taken.wait(timeout=60)
    assert list(ahead) == [2]


def test_an_error_is_raised_behind_the_items_before_it():
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second is damaged")

    ahead = handed_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="the second is damaged"):
        next(ahead)
    assert threads() == 0


def test_closed_early_it_takes_no_more_and_leaves_no_thread():
    asked = []

    def items() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            yield number

    ahead = handed_ahead(items())
    assert next(ahead) == 0
    ahead.close()
    assert threads() == 0
    assert len(asked) <= 4
