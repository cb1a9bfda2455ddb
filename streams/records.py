"""The stream's own words: a record as it was taken from Kafka, and what is asked of the model. Knows no Faust."""

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from emostream.connectors.errors import MalformedRecord
from emostream.connectors.messages import UNREADABLE_REASON, Clip, Post, decode_clip, decode_post, size_of
from emostream.model.samples import Query

_CHARACTERS_PER_TOKEN = 4
"""English over a WordPiece vocabulary has about 4.5 characters a token; other scripts have fewer. Only the size of
batches rests on it, never what is read of a text."""

_AUDIO_BYTES_PER_SECOND = 4_000
"""Voice notes are Opus or AAC of 16 to 64 kbit/s. A WAV of 16 kHz has eight times as many, and then counts as longer
than it is: its batch is smaller than it might be. Only the size of batches rests on it."""

_MOST_AUDIO_SECONDS = 60.0
"""More is not read of a clip."""

_RECORD_BYTES = 1024
"""What a record takes in memory on top of what it says."""


class Record(msgspec.Struct, frozen=True, eq=False):
    """One record of `posts` or `clips`.

    Attributes:
        topic: Where it came from.
        partition: Which partition of it.
        offset: Which place in the partition.
        timestamp_s: Kafka's timestamp, seconds since 1970.
        key: As it stands there.
        value: As it stands there.
        headers: As they stand there.
        acknowledge: Lets its offset be committed; returns false where there is nothing to commit (any more).
        unreadable: Why it could not be unpacked, if so; then it has neither key nor value.
        whole_bytes: How large its value was, where it was too large to be held.
    """

    topic: str
    partition: int
    offset: int
    timestamp_s: float
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    acknowledge: Callable[[], bool]
    unreadable: str = ""
    whole_bytes: int | None = None

    @property
    def origin(self) -> str:
        """`topic/partition/offset`."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def size(self) -> int:
        """How many bytes of memory it takes, about."""
        return size_of(self.key, self.value, self.headers) + _RECORD_BYTES

    @property
    def timestamp_ms(self) -> int:
        """Kafka's timestamp as Kafka counts: milliseconds."""
        return round(self.timestamp_s * 1000)


Content = TypeVar("Content", Post, Clip, MalformedRecord)


class Taken(msgspec.Struct, Generic[Content], frozen=True, eq=False):
    """A record, and what it says or why it says nothing.

    Attributes:
        record: Where it came from.
        content: The post, the clip, or what is wrong with it.
        taken_s: When it was taken, in seconds of the monotonic clock.
    """

    record: Record
    content: Content
    taken_s: float


class Item(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What becomes one answer: a post, a clip or both; or what becomes one dead letter.

    Attributes:
        post: The post, if it is there.
        clip: The clip, if it is there.
        fault: A record that is neither: it travels like the others, so that order and acknowledgement are the same.
        taken_s: When it was complete, or stopped waiting for its other half, in seconds of the monotonic clock: from
            then on its waiting for a batch counts.
        cost: Estimate of what it costs to score: tokens where there is no clip, seconds of audio where there is one,
            nothing where there is nothing to score.
    """

    post: Taken[Post] | None = None
    clip: Taken[Clip] | None = None
    fault: Taken[MalformedRecord] | None = None
    taken_s: float
    cost: float

    @property
    def post_id(self) -> str | None:
        """The id that its answer will have; None where there will be none."""
        if self.post is not None:
            return self.post.content.id
        return self.clip.content.post_id if self.clip is not None else None

    @property
    def records(self) -> list[Record]:
        """The records that its answer answers."""
        return [half.record for half in (self.post, self.clip, self.fault) if half is not None]

    @property
    def size(self) -> int:
        """How many bytes of memory its records take, about."""
        return sum(record.size for record in self.records)

    @property
    def query(self) -> Query:
        """What the model is asked."""
        return Query(
            text=self.post.content.text if self.post is not None else None,
            clip=self.clip.content.audio if self.clip is not None and not self.clip.content.fault else None,
        )


Batch = Sequence[Item]


def decode_posts_record(record: Record, *, clock: Callable[[], float] = time.monotonic) -> Taken[Post] | Item:
    """Return the post of a record, or the item of one that is no post."""
    if record.unreadable:
        return _unreadable_item(record, clock)
    try:
        return Taken(record, decode_post(record.value), clock())
    except MalformedRecord as fault:
        return fault_item(Taken(record, fault, clock()))


def decode_clips_record(record: Record, *, clock: Callable[[], float] = time.monotonic) -> Taken[Clip] | Item:
    """Return the clip of a record, or the item of one that belongs to no post."""
    if record.unreadable:
        return _unreadable_item(record, clock)
    try:
        return Taken(record, decode_clip(record.key, record.value, record.headers), clock())
    except MalformedRecord as fault:
        return fault_item(Taken(record, fault, clock()))


def _unreadable_item(record: Record, clock: Callable[[], float]) -> Item:
    return fault_item(Taken(record, MalformedRecord(UNREADABLE_REASON, record.unreadable), clock()))


def fault_item(fault: Taken[MalformedRecord]) -> Item:
    """Return the item of a record that becomes a dead letter."""
    return Item(fault=fault, taken_s=fault.taken_s, cost=0)


def post_item(post: Taken[Post], *, taken_s: float | None = None) -> Item:
    """Return the item of a post alone.

    Args:
        post: The post.
        taken_s: From when its waiting for a batch counts; from when it was taken, if not given.
    """
    cost = 2 + len(post.content.text) // _CHARACTERS_PER_TOKEN
    return Item(post=post, taken_s=post.taken_s if taken_s is None else taken_s, cost=cost)


def clip_item(clip: Taken[Clip], post: Taken[Post] | None = None, *, taken_s: float) -> Item:
    """Return the item of a clip, with its post where that is there."""
    seconds = min(_MOST_AUDIO_SECONDS, len(clip.record.value or b"") / _AUDIO_BYTES_PER_SECOND)
    return Item(post=post, clip=clip, taken_s=taken_s, cost=seconds)
