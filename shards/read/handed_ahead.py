"""One item ahead: a thread takes the next item while the one before is worked on."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
_POLL_SECONDS = 0.1
"""Between two looks at whether anybody still wants an item."""


class _End:
    """Behind the last item, with what ended them early."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def handed_ahead(items: Iterable[_Item]) -> Iterator[_Item]:
    """The same items in the same order, and the same error at its place.

    A worker hands its memory over through a thread of its own, which waits while the worker decodes: 4 to 5 ms in
    which a step would stand still. `items` are taken by one thread alone, which has ended when this iterator is closed.
    """
    ready: queue.Queue[_Item | _End] = queue.Queue(maxsize=1)
    closed = threading.Event()

    def put(item: _Item | _End) -> None:
        while not closed.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def take() -> None:
        end = _End()
        try:
            for item in items:
                put(item)
                if closed.is_set():
                    return
        except BaseException as error:
            end = _End(error)
        put(end)

    taking = threading.Thread(target=take, name="handed ahead", daemon=True)
    taking.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        taking.join()
