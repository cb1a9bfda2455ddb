"""Stopping cleanly at SIGTERM, Ctrl-C and a closed terminal. Called by all commands that run for long."""

import signal
import threading

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What says that a command is to end; each may reach its whole process group."""


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM, Ctrl-C and a closed terminal set; a second signal ends the process at once."""
    stopping = threading.Event()

    def stop(number: int, _frame: object) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)

    for number in signals_to_stop():
        signal.signal(number, stop)
    return stopping


def signals_to_stop() -> list[signal.Signals]:
    """Return the signals that end a command; a closed terminal is none under `nohup`."""
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (nohup and number is signal.SIGHUP)]
