"""Reading lines: bounds, pace, faults by line number, and stopping."""

import io
import os
import threading
from collections.abc import Iterator

import pytest

from emostream.connectors.jsonl import MalformedRow, Pace, bounded_lines, ingest_lines, lines_until
from emostream.connectors.messages import MOST_POST_BYTES


class ListProducer:
    """Takes what would be published."""

    def __init__(self) -> None:
        self.records: list[tuple[str | None, bytes]] = []

    def publish(self, topic: str, *, key: str | None, value: bytes) -> None:
        assert topic == "posts"
        self.records.append((key, value))


LINES = [b'{"id": "a", "text": "one"}\n', b"\n", b"oops\n", b'{"id": "b", "text": "two"}', b'{"id": "c"}\n']


@pytest.mark.parametrize(("checked", "keys"), [(True, ["a", "b"]), (False, ["a", None, "b", None])])
def test_malformed_rows_are_named_by_line(checked: bool, keys: list[str | None]) -> None:
    producer = ListProducer()
    rows: list[MalformedRow] = []
    reading = ingest_lines(
        LINES, producer=producer, topic="posts", pace=Pace(None), on_malformed=rows.append, checked=checked
    )
    tallies = list(reading)
    assert [(row.line, row.reason) for row in rows] == [(3, "not_json"), (5, "missing_field")]
    assert [key for key, _ in producer.records] == keys
    assert tallies[-1].lines == 5
    assert tallies[-1].published == len(keys)
    assert tallies[-1].malformed == 2


def test_a_line_beyond_all_bounds_is_cut_not_held() -> None:
    stream = io.BytesIO(b"x" * (20 * MOST_POST_BYTES) + b"\nshort\n")
    assert [len(line) for line in bounded_lines(stream)] == [MOST_POST_BYTES + 1, 6]


def test_last_line_needs_no_newline() -> None:
    assert list(bounded_lines(io.BytesIO(b"a\nb"))) == [b"a\n", b"b"]


def test_pace_spreads_rounds_and_makes_no_burst_after_a_pause() -> None:
    now = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        now[0] += seconds

    pace = Pace(10, clock=lambda: now[0], sleep=sleep)
    for _ in range(4):
        pace.wait()
    assert slept == [0.1, 0.1, 0.1]
    now[0] += 60
    slept.clear()
    for _ in range(3):
        pace.wait()
    assert len(slept) >= 1
    assert sum(slept) >= 0.1


def test_lines_until_stops_while_the_source_is_silent() -> None:
    reading, writing = os.pipe()
    stop = threading.Event()
    with os.fdopen(reading, "rb") as source:
        with os.fdopen(writing, "wb", buffering=0) as sink:
            sink.write(b"one\n")
            lines = lines_until(stop.is_set, bounded_lines(source))
            assert next(lines) == b"one\n"
            threading.Timer(0.2, stop.set).start()
            assert list(lines) == []  # though the pipe is open and says nothing
        for thread in threading.enumerate():
            if thread.name == "lines":
                thread.join(5)


def test_lines_until_passes_a_failing_source_on() -> None:
    def failing() -> Iterator[bytes]:
        yield b"one\n"
        raise OSError("the disk is gone")

    lines = lines_until(lambda: False, failing())
    assert next(lines) == b"one\n"
    with pytest.raises(OSError, match="disk"):
        next(lines)
