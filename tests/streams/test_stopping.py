"""Which signals end a command."""

import signal

import pytest

from emostream.streams.stopping import signals_to_stop


@pytest.mark.parametrize(("before", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)], ids=["plain", "nohup"])
def test_a_closed_terminal_ends_a_command_but_under_nohup(before: signal.Handlers, ends: bool) -> None:
    found = signal.signal(signal.SIGHUP, before)
    try:
        assert (signal.SIGHUP in signals_to_stop()) is ends
    finally:
        signal.signal(signal.SIGHUP, found)
