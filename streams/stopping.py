"""Stopping cleanly: one event for SIGTERM, Ctrl-C and a closed terminal. Called by the commands that run for long."""

import signal
import threading


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM, Ctrl-C and a closed terminal set; a second signal ends the process at once."""
    stopping = threading.Event()

    def stop(number: int, _frame: object) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    return stopping
