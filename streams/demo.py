"""`emostream demo` and `emostream up`: the real worker on an embedded broker and Redis, as child processes.

The demo plays its posts in through the JSONL connector, reads answers and dead letters back, and accounts for every
row of its file.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from emostream.connectors import messages
from emostream.connectors.errors import MalformedRecord
from emostream.connectors.jsonl import MalformedRow, Pace, bounded_lines, ingest_lines
from emostream.connectors.messages import Emotion, decode_emotion, decode_post
from emostream.connectors.producer import RecordProducer
from emostream.connectors.reader import Received, read_records
from emostream.streams.errors import StackError, StreamError
from emostream.streams.show import EMOTION_STYLES, answer_line, dead_letter_line, text_cells
from emostream.streams.stack import Stack, child_process, embedded_stack

POSTS_FILE = Path(__file__).parent / "demo_posts.jsonl"
"""300 posts in our own words, eight of them malformed on purpose."""

_ADDRESS = re.compile(r"metrics and probes: (http://\S+)/metrics")
_KEPT_SETTINGS = ("EMOSTREAM_DEVICE", "EMOSTREAM_PRECISION", "EMOSTREAM_THREADS", "EMOSTREAM_LOG_LEVEL")

_READY_S = 180.0
_SILENCE_S = 60.0
"""A worker that answers nothing for so long while posts wait has failed; the demo says so and ends."""

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


class DemoResult(msgspec.Struct):
    """What the demo saw."""

    answers: list[Emotion] = []
    latencies_s: list[float] = []
    dead: Counter[str] = msgspec.field(default_factory=Counter)
    seen: set[str] = msgspec.field(default_factory=set)
    first_s: float = float("inf")
    last_s: float = 0.0


def run_demo(console: Console, *, rate: float, stopping: Event) -> None:
    """Run the demo, to its end or until told to stop.

    Raises:
        StackError: Something of the stack does not start.
        StreamError: Answers stay out.
    """
    rows = POSTS_FILE.read_bytes().splitlines()
    with _stack_and_worker(console, stopping) as (stack, worker):
        result = None if stopping.is_set() else _play(console, stack, worker, rows, rate=rate, stopping=stopping)
    if result is None or stopping.is_set():
        console.print("stopped")
        return
    _print_summary(console, result, rows=len(rows), rate=rate)


def run_up(console: Console, *, stopping: Event) -> None:
    """Run the stack and a worker until told to stop.

    Raises:
        StackError: Something of the stack does not start, or the worker ended.
    """
    with _stack_and_worker(console, stopping) as (stack, worker):
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
def _stack_and_worker(console: Console, stopping: Event) -> Iterator[tuple[Stack, RunningWorker]]:
    with contextlib.ExitStack() as ending:
        with console.status("starting broker and Redis"):
            stack = ending.enter_context(embedded_stack())
        for line in stack.moved:
            console.print(line)
        console.print(f"embedded broker at {stack.kafka}, Redis at {stack.redis} (both forget everything at the end)")
        with console.status("starting the worker and its model"):
            worker = ending.enter_context(_running_worker(stack))
            _await_ready(worker, stopping)
        if not stopping.is_set():
            console.print(f"worker ready: {worker.address}/metrics")
        yield stack, worker


@contextlib.contextmanager
def _running_worker(stack: Stack) -> Iterator[RunningWorker]:
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
    environment = {**inherited, **kept, **settings}
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
    console: Console, stack: Stack, worker: RunningWorker, rows: Sequence[bytes], *, rate: float, stopping: Event
) -> DemoResult:
    """Play the posts in, from a thread, and show what comes back."""
    console.print(f"playing {len(rows)} posts into [bold]{messages.POSTS}[/], reading [bold]{messages.EMOTIONS}[/]\n")
    with ThreadPoolExecutor(max_workers=1) as pool:
        feeding = pool.submit(_feed, stack, rate, stopping)

        def stopped() -> bool:
            return stopping.is_set() or (feeding.done() and feeding.exception() is not None)

        result = _read_back(console, stack, worker, rows, stopped)
        feeding.result()
    return result


def _feed(stack: Stack, rate: float, stopping: Event) -> None:
    """Play the demo's posts in, malformed ones as they stand."""

    def leave_to_the_worker(_row: MalformedRow) -> None:
        """Say nothing: the row comes back as a dead letter."""

    with (
        RecordProducer(bootstrap=stack.kafka) as producer,
        POSTS_FILE.open("rb") as stream,
    ):
        for _ in ingest_lines(
            bounded_lines(stream), producer=producer, topic=messages.POSTS,
            pace=Pace(rate or None, sleep=stopping.wait), on_malformed=leave_to_the_worker, checked=False,
        ):  # fmt: skip
            if stopping.is_set():
                break
        producer.flush()


def _read_back(
    console: Console, stack: Stack, worker: RunningWorker, rows: Sequence[bytes], stopped: Callable[[], bool]
) -> DemoResult:
    """Show answers and dead letters until every row is accounted for."""
    result = DemoResult()
    texts = {post.id: post.text for post in _posts(rows)}
    cells = text_cells(console)
    silent_since_s = time.monotonic()

    def ended() -> bool:
        return (
            stopped()
            or len(result.seen) == len(rows)
            or worker.process.poll() is not None
            or time.monotonic() - silent_since_s > _SILENCE_S
        )

    for record in read_records(
        stack.kafka, [messages.EMOTIONS, messages.DEAD_LETTERS], from_beginning=True, stopping=ended
    ):
        silent_since_s = time.monotonic()
        _take_in(result, record, console=console, texts=texts, cells=cells)
    if len(result.seen) < len(rows) and not stopped():
        raise StreamError(
            f"{len(rows) - len(result.seen)} of {len(rows)} posts are neither answered nor dead letters:\n"
            f"{_last_lines(worker.log)}"
        )
    return result


def _take_in(result: DemoResult, record: Received, *, console: Console, texts: dict[str, str], cells: int) -> None:
    value = record.value or b""
    if record.topic == messages.DEAD_LETTERS:
        origin, reason = record.headers["origin"].decode(), record.headers["reason"].decode()
        if origin not in result.seen:
            result.seen.add(origin)
            result.dead[reason] += 1
            error = record.headers["error"].decode()
            text = value.decode(errors="replace")
            console.print(dead_letter_line(text, reason=reason, error=error, text_cells=cells), soft_wrap=True)
        return
    answer = decode_emotion(value)
    if answer.post_id not in result.seen:
        result.seen.add(answer.post_id)
        result.answers.append(answer)
        result.latencies_s.append(record.timestamp_s - answer.ingested_at.timestamp())
        result.first_s = min(result.first_s, answer.ingested_at.timestamp())
        result.last_s = max(result.last_s, record.timestamp_s)
        console.print(answer_line(answer, texts[answer.post_id], text_cells=cells), soft_wrap=True)


def _posts(rows: Sequence[bytes]) -> Iterator[messages.Post]:
    for row in rows:
        with contextlib.suppress(MalformedRecord):
            yield decode_post(row)


def _print_summary(console: Console, result: DemoResult, *, rows: int, rate: float) -> None:
    p50, p95, p99 = (1000 * np.percentile(result.latencies_s, [50, 95, 99])).tolist()
    seconds = result.last_s - result.first_s
    played = f"played in at {rate:g} a second" if rate else "played in as fast as it goes"
    dead = ", ".join(f"{count} {reason}" for reason, count in sorted(result.dead.items()))
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("posts", f"{rows}: {len(result.answers)} answered, {result.dead.total()} dead letters ({dead})")
    table.add_row("posts per second", f"{rows / seconds:.1f} ({played})")
    table.add_row("latency", f"p50 {p50:.0f} ms   p95 {p95:.0f} ms   p99 {p99:.0f} ms")
    counts = Counter(answer.emotion for answer in result.answers)
    most = max(counts.values())
    for emotion, count in counts.most_common():
        bar = "█" * max(1, round(_BAR_CELLS * count / most))
        table.add_row(emotion, f"[{EMOTION_STYLES[emotion]}]{bar}[/] {count}")
    console.print()
    console.print(table)


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LOG_LINES:])
