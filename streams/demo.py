"""`emostream demo` and `emostream up`: the real worker on an embedded broker and Redis, as child processes.

The demo plays its posts and voice clips in, shows what comes back, and accounts for every one of them (`demo_play`).
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from emostream.connectors import messages
from emostream.connectors.broker import KafkaAccess
from emostream.model.samples import FLAG_CLIP_MISSING, FUSED, MODALITIES, VOICE
from emostream.streams.demo_play import Played, Programme, play, read_programme
from emostream.streams.errors import StackError, StreamError
from emostream.streams.show import EMOTION_STYLES, PATH_MARKS
from emostream.streams.stack import Stack, child_process, embedded_stack

POSTS_FILE = Path(__file__).parent / "demo_posts.jsonl"
"""300 posts in our own words, eight of them malformed on purpose."""

CLIPS_FOLDER = Path(__file__).parent / "demo_clips"
"""Short voice clips, named by their posts' ids: most belong to a post, some to none, one broke off on purpose."""

_ADDRESS = re.compile(r"metrics and probes: (http://\S+)/metrics")
_KEPT_SETTINGS = ("EMOSTREAM_DEVICE", "EMOSTREAM_PRECISION", "EMOSTREAM_THREADS", "EMOSTREAM_LOG_LEVEL")

_GRACE_S = 2.0
"""What a half waits for the other in the demo: clips come right after their posts, and one never does."""

_READY_S = 180.0
_STOP_S = 30.0
_LAST_LOG_LINES = 20
_BAR_CELLS = 40


class RunningWorker(msgspec.Struct, frozen=True):
    """A worker process and its log."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def address(self) -> str | None:
        """Where its metrics and probes are; None until its log says so."""
        found = _ADDRESS.search(self.log.read_text(errors="replace"))
        return found[1] if found else None


def run_demo(console: Console, *, rate: float, stopping: Event) -> None:
    """Run the demo, to its end or until told to stop.

    Raises:
        StackError: Something of the stack does not start.
        StreamError: Answers stay out.
    """
    programme = read_programme(POSTS_FILE, CLIPS_FOLDER)
    settings = {"EMOSTREAM_JOIN_GRACE_S": str(_GRACE_S)}
    with _stack_and_worker(console, stopping, settings) as (stack, worker):
        played = None if stopping.is_set() else _play(console, stack, worker, programme, rate=rate, stopping=stopping)
    if played is None or stopping.is_set():
        console.print("stopped")
        return
    _print_summary(console, played, programme, rate=rate)


def run_up(console: Console, *, stopping: Event) -> None:
    """Run the stack and a worker until told to stop.

    Raises:
        StackError: Something of the stack does not start, or the worker ended.
    """
    with _stack_and_worker(console, stopping, {}) as (stack, worker):
        if stopping.is_set():
            return
        console.print(
            f"\nready. In another terminal:\n\n"
            f"  export EMOSTREAM_KAFKA={stack.kafka} EMOSTREAM_REDIS={stack.redis}\n"
            f"  emostream watch\n"
            f'  emostream publish "what a day"\n\nCtrl-C ends it; everything in it is then forgotten.',
            highlight=False,
            soft_wrap=True,
        )
        while not stopping.wait(0.5):
            if worker.process.poll() is not None:
                raise StackError(f"the worker ended: {_last_lines(worker.log)}")


@contextlib.contextmanager
def _stack_and_worker(
    console: Console, stopping: Event, settings: Mapping[str, str]
) -> Iterator[tuple[Stack, RunningWorker]]:
    with contextlib.ExitStack() as ending:
        with console.status("starting broker and Redis"):
            stack = ending.enter_context(embedded_stack())
        for line in stack.moved:
            console.print(line)
        console.print(f"embedded broker at {stack.kafka}, Redis at {stack.redis} (both forget everything at the end)")
        with console.status("starting the worker and its model"):
            worker = ending.enter_context(_running_worker(stack, settings))
            _await_ready(worker, stopping)
        if not stopping.is_set():
            console.print(f"worker ready: {worker.address}/metrics")
        yield stack, worker


@contextlib.contextmanager
def _running_worker(stack: Stack, further: Mapping[str, str]) -> Iterator[RunningWorker]:
    # What is set for another worker (topics, a checkpoint) is not meant for this one; where it runs, is.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMOSTREAM_")}
    kept = {name: os.environ[name] for name in _KEPT_SETTINGS if name in os.environ}
    settings = {
        "EMOSTREAM_KAFKA": stack.kafka,
        "EMOSTREAM_REDIS": stack.redis,
        "EMOSTREAM_HTTP_PORT": "0",
        # The embedded broker lets a member join after half a session timeout: a short one starts sooner.
        "EMOSTREAM_SESSION_TIMEOUT_S": "2",
    }
    environment = {**inherited, **kept, **settings, **further}
    command = [sys.executable, "-m", "emostream.streams.cli", "worker"]
    with tempfile.TemporaryDirectory(prefix="emostream-") as folder:
        log = Path(folder) / "worker.log"
        with (
            log.open("wb") as sink,
            child_process(command, stop_s=_STOP_S, output=sink, environment=environment) as process,
        ):
            yield RunningWorker(process=process, log=log)


def _await_ready(worker: RunningWorker, stopping: Event) -> None:
    deadline_s = time.monotonic() + _READY_S
    while time.monotonic() < deadline_s and not stopping.is_set():
        if worker.process.poll() is not None:
            raise StackError(f"the worker ended before it was ready:\n{_last_lines(worker.log)}")
        if worker.address and _says_yes(f"{worker.address}/readyz"):
            return
        time.sleep(0.1)
    if not stopping.is_set():
        raise StackError(f"the worker is not ready after {_READY_S:.0f} s:\n{_last_lines(worker.log)}")


def _says_yes(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # our own address
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _play(
    console: Console, stack: Stack, worker: RunningWorker, programme: Programme, *, rate: float, stopping: Event
) -> Played:
    console.print(
        f"playing {programme.rows} posts into [bold]{messages.POSTS}[/] and {len(programme.clips)} voice clips into "
        f"[bold]{messages.CLIPS}[/], reading [bold]{messages.EMOTIONS}[/] "
        f"({PATH_MARKS[VOICE]} heard, {PATH_MARKS[FUSED]} read and heard)\n",
        soft_wrap=True,
    )
    played = play(
        console,
        KafkaAccess(stack.kafka),
        programme,
        rate=rate,
        stopping=stopping,
        alive=lambda: worker.process.poll() is None,
    )
    posts, clips = played.unaccounted(programme)
    if (posts or clips) and not stopping.is_set():
        raise StreamError(
            f"{posts} of {programme.rows} posts and {clips} of {len(programme.clips)} clips are neither answered nor "
            f"dead letters:\n{_last_lines(worker.log)}"
        )
    return played


def _print_summary(console: Console, played: Played, programme: Programme, *, rate: float) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for row in (*_counts(played, programme), *_speed(played, programme, rate=rate), *_emotions(played)):
        table.add_row(*row)
    console.print()
    console.print(table)


def _counts(played: Played, programme: Programme) -> Iterator[tuple[str, str]]:
    """Say what became of the posts and the clips, and which paths the newest answer of each id took."""
    answered, on_path = len(played.answered_posts), {path: len(played.ids_on(path)) for path in MODALITIES}
    never_came = [
        id_ for id_, answer in played.answers.items()
        if FLAG_CLIP_MISSING in answer.flags and id_ not in programme.clips
    ]  # fmt: skip
    yield "posts", f"{programme.rows}: {answered} answered, {_dead_letters(played.dead_posts)}"
    yield (
        "clips",
        f"{len(programme.clips)}: {on_path[FUSED]} joined, {on_path[VOICE]} alone, {_dead_letters(played.dead_clips)}; "
        f"{len(never_came)} more announced and never came",
    )
    yield "answers", ", ".join(f"{count} {path}" for path, count in on_path.items())


def _dead_letters(dead: Mapping[str, str]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(dead.values()).items()))
    return f"{len(dead)} dead letter{'' if len(dead) == 1 else 's'}" + (f" ({reasons})" if dead else "")


def _speed(played: Played, programme: Programme, *, rate: float) -> Iterator[tuple[str, str]]:
    how = f"played in at {rate:g} a second" if rate else "played in as fast as it goes"
    yield "posts per second", f"{programme.rows / (played.last_s - played.first_s):.1f} ({how})"
    for path in MODALITIES:
        if latencies_s := played.latencies_s[path]:
            p50, p95, p99 = (1000 * np.percentile(latencies_s, [50, 95, 99])).tolist()
            why = f"   (a clip alone waits {_GRACE_S:g} s for a post)" if path == VOICE else ""
            yield f"latency, {path}", f"p50 {p50:.0f} ms   p95 {p95:.0f} ms   p99 {p99:.0f} ms{why}"


def _emotions(played: Played) -> Iterator[tuple[str, str]]:
    """Draw how often each emotion is the newest answer of an id."""
    counts = Counter(answer.emotion for answer in played.answers.values())
    most = max(counts.values())
    for emotion, count in counts.most_common():
        bar = "█" * max(1, round(_BAR_CELLS * count / most))
        yield emotion, f"[{EMOTION_STYLES[emotion]}]{bar}[/] {count}"


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LOG_LINES:])
