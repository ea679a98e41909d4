"""Trying again: exponential back-off with jitter, until nothing has come for too long."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 10.0
"""A server that comes back is found within this time."""


class TransientError(Exception):
    """A request failed in a way that may pass: the network, a busy server, a transfer that was cut off."""


class Patience:
    """How long to go on trying: `seconds` from the last success. Its jitter leaves the global generators alone.

    Args:
        seconds: without any success until an error is raised.
        clock: seconds.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.seconds, self._clock, self._sleep = seconds, clock, sleep
        self._random = random.Random()
        self._since, self._failures = clock(), 0

    def succeeded(self) -> None:
        """Something has come: the time starts anew."""
        self._since, self._failures = self._clock(), 0

    def wait(self) -> bool:
        """Wait before the next try; False, at once, when there is no time for one.

        Delays double from 0.2 s to 10 s, each shortened by up to a half, so that many nodes do not come back in step.
        """
        longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(self._failures, 16))
        left = self.seconds - (self._clock() - self._since)
        if left <= 0:
            return False
        self._failures += 1
        self._sleep(min(left, longest * self._random.uniform(0.5, 1.0)))
        return True


def persistently(act: Callable[[], T], patience: Patience) -> T:
    """What `act` gives, tried again while its errors are transient and there is patience.

    Raises:
        TransientError: the last one.
    """
    while True:
        try:
            result = act()
        except TransientError:
            if not patience.wait():
                raise
        else:
            patience.succeeded()
            return result
