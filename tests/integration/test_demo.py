"""`emostream demo` and `up`, as a user runs them, on a machine whose default ports are taken."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import running_up

COMMAND = [sys.executable, "-m", "emostream.streams.cli"]


@pytest.fixture
def taken_ports() -> Iterator[None]:
    """Listen on every default port, where nobody does already."""
    with contextlib.ExitStack() as sockets:
        for port in (9092, 6379, 8008):
            listener = sockets.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                listener.listen()
        yield


@pytest.mark.usefixtures("taken_ports")
def test_demo_accounts_for_all_300_posts_and_ends_cleanly() -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--rate", "0"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "port 9092 is taken" in done.stdout
    assert "port 6379 is taken" in done.stdout
    assert "300: 292 answered, 8 dead letters" in done.stdout
    assert re.search(r"p50 \d+ ms +p95 \d+ ms +p99 \d+ ms", done.stdout)
    shown = re.findall(r" (anger|disgust|fear|joy|neutral|sadness|surprise) +[01]\.\d\d ", done.stdout)
    assert len(shown) == 292
    assert len(set(shown)) == 7, "the demo's posts show every emotion"
    assert done.stdout.count("dead letter ") == 8


def test_up_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with running_up(tmp_path / "log") as (process, environment):

        def emostream(*arguments: str) -> str:
            done = subprocess.run(
                [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=True
            )
            return done.stdout

        post_id = emostream("publish", "hello there").strip()
        assert post_id in emostream("watch", "--from-beginning", "--count", "1")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
