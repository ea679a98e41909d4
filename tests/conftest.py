"""What holds for every test."""

import signal


def pytest_configure() -> None:
    """Stop signals stop, also in a background job: shells and `nohup` start those with some of them ignored, children
    inherit that, and a test of Ctrl-C would wait for ever."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
