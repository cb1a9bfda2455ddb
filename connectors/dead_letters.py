"""Dead letters read back: which there are, and why. Called by `emostream dlq`; replaying stands in `replaying`.

A letter that was replayed gets a mark: a record on `dead-letters` that names it. A mark stands behind its letter in the
same partition, so whoever reads on to the end knows, on every machine, what was replayed
(docs/decisions/0013-replaying-dead-letters.md).
"""

import datetime as dt
import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import msgspec

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.messages import ATTEMPT, REPLAYED, split_headers
from emostream.connectors.reader import Received, Span, read_spans


class Place(msgspec.Struct, frozen=True, order=True):
    """Where a letter stands on `dead-letters`; its id for the user, `partition/offset`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        """Return it as `parse` takes it."""
        return f"{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read `partition/offset`.

        Raises:
            ValueError: It is something else.
        """
        found = _PLACE.fullmatch(text)
        if not found:
            raise ValueError(f"{text!r} is no PARTITION/OFFSET, such as 3/128")
        return cls(int(found[1]), int(found[2]))


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One record of `dead-letters`; a stranger's may lack everything that says why.

    Attributes:
        place: Where it stands.
        failed_at: When it failed, in UTC: as a header says, else Kafka's timestamp; None where that is no time.
        reason: The short word; empty where it has none.
        error: The sentence.
        origin: `topic/partition/offset`, as its header says; anybody can write a header.
        attempts: How often the record was replayed before it failed this time.
        key: As in the record that failed.
        value: As in the record that failed.
        size: Bytes of the value.
        whole_bytes: Bytes that the value had, where it was too large to be kept whole.
        headers: As in the record that failed.
    """

    place: Place
    failed_at: dt.datetime | None
    reason: str
    error: str
    origin: str
    attempts: int
    key: bytes | None
    value: bytes | None
    size: int
    whole_bytes: int | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def origin_topic(self) -> str:
        """The topic of its origin; empty where that names no place."""
        found = _ORIGIN.fullmatch(self.origin)
        return found[1] if found else ""

    @property
    def origin_partition(self) -> int | None:
        """The partition of its origin; None where that names no place."""
        found = _ORIGIN.fullmatch(self.origin)
        return int(found[2]) if found else None

    @property
    def replay_headers(self) -> list[tuple[str, bytes]]:
        """The headers that the record goes out with again: its own, and the number of the attempt."""
        own = [(name, value) for name, value in self.headers if name != ATTEMPT]
        return [*own, (ATTEMPT, str(self.attempts + 1).encode())]


class Mark(msgspec.Struct, frozen=True):
    """Says that a letter was replayed."""

    place: Place


class Filter(msgspec.Struct, frozen=True):
    """Which letters are meant; what is not given admits all.

    Attributes:
        reasons: One of these words.
        since: Failed then or later.
        until: Failed before then.
        topic: The topic of its origin.
    """

    reasons: frozenset[str] = frozenset()
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    topic: str | None = None

    def admits(self, letter: Letter) -> bool:
        """Say whether a letter is meant."""
        if self.reasons and letter.reason not in self.reasons:
            return False
        if self.topic is not None and letter.origin_topic != self.topic:
            return False
        if self.since is None and self.until is None:
            return True
        at = letter.failed_at
        return at is not None and (self.since is None or at >= self.since) and (self.until is None or at < self.until)


class Listing(msgspec.Struct):
    """What `list` shows.

    Attributes:
        newest: The newest letters that are meant, without value and headers; newest last.
        reasons: How many letters are meant, by reason.
        others: How many are not, by reason.
        replayed: Which letters, of all, were replayed.
    """

    newest: list[Letter]
    reasons: Counter[str]
    others: Counter[str]
    replayed: set[Place]


_PLACE = re.compile(r"(\d{1,9})/(\d{1,18})", re.ASCII)
_ORIGIN = re.compile(r"([\w.-]+)/(\d{1,9})/\d{1,18}", re.ASCII)
_COUNT = re.compile(rb"\d{1,9}")
_AGE = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_letters(
    access: KafkaAccess,
    topic: str,
    spans: Iterable[Span] | None = None,
    *,
    since: dt.datetime | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Letter | Mark]:
    """Yield what stands on `dead-letters`; the arguments are those of `read_spans`."""
    yield from map(to_letter, read_spans(access, topic, spans, since=since, stopping=stopping))


def to_letter(record: Received) -> Letter | Mark:
    """Read one record of `dead-letters`, whoever wrote it."""
    own, why = split_headers(record.header_pairs)
    marked = _PLACE.fullmatch(_text(record.headers.get(REPLAYED, b"")))
    if marked and not why:
        return Mark(Place(int(marked[1]), int(marked[2])))
    attempts = [int(value) for name, value in own if name == ATTEMPT and _COUNT.fullmatch(value)]
    whole = why.get("whole_bytes")
    return Letter(
        place=Place(record.partition, record.offset),
        failed_at=_instant(_text(why.get("failed_at", b""))) or _kafka_instant(record.timestamp_s),
        reason=_text(why.get("reason", b"")),
        error=_text(why.get("error", b"")),
        origin=_text(why.get("origin", b"")),
        attempts=attempts[-1] if attempts else 0,
        key=record.key,
        value=record.value,
        size=len(record.value or b""),
        whole_bytes=None if whole is None else int(whole) if _COUNT.fullmatch(whole) else 0,
        headers=own,
    )


def parse_time(text: str, *, now: dt.datetime) -> dt.datetime:
    """Read an age, such as `30m`, `2h` or `7d`, or a time as RFC 3339 writes it.

    Raises:
        ValueError: It is neither, or no time of the calendar.
    """
    age = _AGE.fullmatch(text)
    try:
        instant = now - dt.timedelta(**{_UNITS[age[2]]: int(age[1])}) if age else _instant(text)
    except OverflowError:
        instant = None
    if instant is None:
        raise ValueError(f"{text!r} is neither an age (30m, 2h, 7d) nor a time (2026-03-01T12:30:00Z)")
    return instant


def list_letters(letters: Iterable[Letter | Mark], *, admits: Callable[[Letter], bool], most: int) -> Listing:
    """Count letters, and keep the newest of those that are meant.

    Args:
        letters: What stands on `dead-letters`.
        admits: Says which are meant.
        most: How many are kept; 0 is all.
    """
    listing = Listing([], Counter(), Counter(), set())
    newest: list[tuple[float, Place, Letter]] = []
    for letter in letters:
        if isinstance(letter, Mark):
            listing.replayed.add(letter.place)
        elif not admits(letter):
            listing.others[letter.reason] += 1
        else:
            listing.reasons[letter.reason] += 1
            light = msgspec.structs.replace(letter, value=None, headers=())
            failed_s = letter.failed_at.timestamp() if letter.failed_at else 0.0
            heapq.heappush(newest, (failed_s, letter.place, light))
            if 0 < most < len(newest):
                heapq.heappop(newest)
    listing.newest = [letter for *_, letter in sorted(newest)]
    return listing


def spans_of(places: Iterable[Place], *, to_the_end: bool) -> list[Span]:
    """Return a stretch for each partition: from its first place to its last, or to the partition's end."""
    by_partition: dict[int, list[int]] = {}
    for place in places:
        by_partition.setdefault(place.partition, []).append(place.offset)
    return [
        Span(partition, min(offsets), None if to_the_end else max(offsets) + 1)
        for partition, offsets in sorted(by_partition.items())
    ]


def _text(value: bytes) -> str:
    """Return a stranger's bytes as text; what is not UTF-8 is spelt out."""
    return value.decode(errors="backslashreplace")


def _instant(text: str) -> dt.datetime | None:
    """Return an RFC 3339 time in UTC, None if it is none or has no offset."""
    try:
        instant = dt.datetime.fromisoformat(text)
        return instant.astimezone(dt.UTC) if instant.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _kafka_instant(timestamp_s: float) -> dt.datetime | None:
    """Return Kafka's timestamp as a time, None if it is none: -1 stands for unknown."""
    try:
        return dt.datetime.fromtimestamp(timestamp_s, dt.UTC) if timestamp_s >= 0 else None
    except (ValueError, OverflowError, OSError):
        return None
