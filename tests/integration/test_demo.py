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

pytestmark = pytest.mark.xdist_group("demo")  # they look at one run of it


@contextlib.contextmanager
def taken_ports() -> Iterator[None]:
    """Listen on every default port, where nobody does already."""
    with contextlib.ExitStack() as sockets:
        for port in (9092, 6379, 8008):
            listener = sockets.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                listener.listen()
        yield


@pytest.fixture(scope="module")
def demo() -> str:
    """Run the demo as fast as it goes, and return what it shows."""
    with taken_ports():
        done = subprocess.run(
            [*COMMAND, "demo", "--rate", "0"],
            capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "160"},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_demo_accounts_for_all_300_posts_and_ends_cleanly(demo: str) -> None:
    assert "port 9092 is taken" in demo
    assert "port 6379 is taken" in demo
    assert "300: 292 answered, 8 dead letters" in demo
    shown = re.findall(r" (anger|disgust|fear|joy|neutral|sadness|surprise) +[01]\.\d\d (?!.*revision)", demo)
    assert len(shown) == 292 + 3, "each post and each clip without one is answered"
    assert len(set(shown)) == 7, "the demo's posts show every emotion"
    assert demo.count("dead letter  ") == 8 + 1


def test_demo_shows_all_three_paths(demo: str) -> None:
    assert "15: 11 joined, 3 alone, 1 dead letter (1 audio_undecodable); 1 more announced and never came" in demo
    assert "281 text, 3 voice, 11 fused" in demo
    for path in ("text", "voice", "fused"):
        assert re.search(rf"latency, {path} +p50 \d+ ms +p95 \d+ ms +p99 \d+ ms", demo)
    (alone,) = lines_of(demo, "voice-gate-twelve")
    assert " ♪ " in alone
    (both,) = lines_of(demo, "meh")
    assert " +♪ " in both


def test_demo_answers_posts_whose_clips_fail(demo: str) -> None:
    (dead,) = lines_of(demo, "clip demo-0119")
    (answered,) = lines_of(demo, '"Your call is important')
    assert "audio_undecodable" in dead
    assert "clip_failed" in answered
    (never,) = lines_of(demo, "Sent my boss a voice note")
    assert "clip_missing" in never
    first, second = lines_of(demo, "Currently number 37")
    assert "clip_missing" in first
    assert "+♪" in second
    assert second.endswith("revision 2")


def lines_of(demo: str, beginning: str) -> list[str]:
    """Return the lines about posts or clips that begin so."""
    return [line.rstrip() for line in demo.splitlines() if line.startswith(beginning)]


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
