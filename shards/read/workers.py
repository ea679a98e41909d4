"""Processes that prepare batches: forked from a server without threads, and deaf to the signals of a process group."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Terminals, launchers and Slurm send them to a whole process group, and the batches of the step at hand are still
needed then. Workers end when the training process says so, or is gone."""
_LAST_WORDS_SECONDS = 1.0
"""How long an error of a worker's threads may still turn out to be the end of the process that started it."""


def worker_context(modules: Iterable[str]) -> BaseContext:
    """What a DataLoader starts its workers with.

    A training process cannot be forked safely: a thread of gloo's that lets go of a tensor takes a lock of CPython's
    for an instant, and a child forked in that instant waits for the lock for ever (seen within 200 forks). A server
    that was started afresh forks them instead. It starts once per process, and is gone when that process is.

    Args:
        modules: imported by the server once, for all workers; without them, each worker imports what it needs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    with _without_reports_of_leaks():
        resource_tracker.ensure_running()  # which unblocks signals, if the next line has to start it
        with _blocked(_GROUP_SIGNALS):
            forkserver.ensure_running()
    return context


def leave_with_parent() -> None:
    """End this worker when the process that started it is gone; its own parent, the server, stays while it has workers.

    DataLoader's own watch looks at that parent, and a killed training process would leave all of them behind.
    """
    started_by = multiprocessing.parent_process()
    assert started_by is not None, "called in the process that trains"

    def wait() -> None:
        started_by.join()
        os._exit(1)

    def show(*error: Any) -> None:
        started_by.join(_LAST_WORDS_SECONDS)
        if started_by.is_alive():
            sys.__excepthook__(*error)

    # A process that is killed while a worker hands it memory breaks that connection a moment before it is gone.
    sys.excepthook = show
    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """A process that is started here never receives these signals, and neither does what it forks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_reports_of_leaks() -> Iterator[None]:
    """Semaphores of a training process that was killed are removed for it, without a warning to its user."""
    name = "PYTHONWARNINGS"
    before = os.environ.get(name)
    os.environ[name] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def end_workers(loader: "weakref.ref[Any]") -> None:
    """End the workers of a DataLoader that may be gone already."""
    iterator = getattr(loader(), "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()  # as when it is deleted, which a traceback that still refers to it would prevent
