"""`emostream ingest jsonl`: one post a line, from a file or standard input, into `posts`."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import msgspec

from emostream.connectors.errors import MalformedRecord
from emostream.connectors.messages import MOST_POST_BYTES, decode_post
from emostream.connectors.producer import RecordProducer

_LINES_AHEAD = 256
"""Lines read ahead: keeps a fast source busy, and holds at most 16 MiB."""

_LOOK_UP_S = 0.2


class MalformedRow(msgspec.Struct, frozen=True):
    """A row that is no post: where it stands and why."""

    line: int
    reason: str
    error: str


class Tally(msgspec.Struct):
    """What an ingest has done so far; `lines` counts all, blank ones too."""

    lines: int = 0
    published: int = 0
    malformed: int = 0


class Pace:
    """Holds a loop back to so many rounds per second.

    Args:
        rate: Rounds per second; None is no limit.
        clock: Seconds that only go forward.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._interval_s = 1 / rate if rate else 0.0
        self._clock, self._sleep = clock, sleep
        self._due_s = clock()

    def wait(self) -> None:
        """Wait until the next round is due; time lost is not made up for by a burst."""
        now_s = self._clock()
        self._due_s = max(self._due_s, now_s - self._interval_s)
        if self._due_s > now_s:
            self._sleep(self._due_s - now_s)
        self._due_s += self._interval_s


def bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a stream; of a line too long to be a post, only so much that it counts as one."""
    while line := stream.readline(MOST_POST_BYTES + 1):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(MOST_POST_BYTES)
        yield line


def lines_until(stopping: Callable[[], bool], lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines until asked to stop, even while the source (a pipe, a terminal) has nothing to give.

    A thread reads ahead; it is a daemon, because nothing can wake it from a read that never returns.

    Raises:
        OSError: The source cannot be read on.
    """
    ahead: queue.Queue[bytes | OSError | None] = queue.Queue(maxsize=_LINES_AHEAD)

    def read() -> None:
        try:
            for line in lines:
                ahead.put(line)
            ahead.put(None)
        except OSError as error:
            ahead.put(error)
        except ValueError:  # the stream was closed: nobody reads on
            return

    threading.Thread(target=read, daemon=True, name="lines").start()
    while not stopping():
        try:
            line = ahead.get(timeout=_LOOK_UP_S)
        except queue.Empty:
            continue
        if line is None:
            return
        if isinstance(line, OSError):
            raise line
        yield line


def ingest_lines(
    lines: Iterable[bytes],
    *,
    producer: RecordProducer,
    topic: str,
    pace: Pace,
    on_malformed: Callable[[MalformedRow], None],
    checked: bool = True,
    tally: Tally | None = None,
) -> Iterator[Tally]:
    """Publish lines as posts, and yield the running tally after each line.

    Args:
        lines: JSON objects, one a line; blank lines are passed over.
        producer: What publishes them.
        topic: Where posts go.
        pace: How fast.
        on_malformed: Told about each row that is no post.
        checked: Leave rows out that are no posts; otherwise every row is published as it stands and the worker
            turns what is no post into a dead letter.
        tally: What to count in, for who looks at it after an error, too.
    """
    tally = tally if tally is not None else Tally()
    for number, line in enumerate(lines, start=1):
        tally.lines = number
        value = line.strip()
        if value:
            pace.wait()
            key, fault = _key_or_fault(value, line=number)
            if fault is not None:
                tally.malformed += 1
                on_malformed(fault)
            if fault is None or not checked:
                producer.publish(topic, key=key, value=value)
                tally.published += 1
        yield tally


def _key_or_fault(value: bytes, *, line: int) -> tuple[str | None, MalformedRow | None]:
    try:
        return decode_post(value).id, None
    except MalformedRecord as fault:
        return None, MalformedRow(line=line, reason=fault.reason, error=str(fault))
