"""The stream's own words: a record as it was taken from Kafka, and what became of it. Knows no Faust."""

import time
from collections.abc import Callable, Sequence

import msgspec

from emostream.connectors.errors import MalformedRecord
from emostream.connectors.messages import Post, decode_post

_CHARACTERS_PER_TOKEN = 4
"""English over a WordPiece vocabulary has about 4.5 characters a token; other scripts have fewer. Only the size of
batches rests on it, never what is read of a text."""


class Record(msgspec.Struct, frozen=True, eq=False):
    """One record of `posts`.

    Attributes:
        topic: Where it came from.
        partition: Which partition of it.
        offset: Which place in the partition.
        timestamp_s: Kafka's timestamp, seconds since 1970.
        key: As it stands there.
        value: As it stands there.
        headers: As they stand there.
        acknowledge: Lets its offset be committed.
    """

    topic: str
    partition: int
    offset: int
    timestamp_s: float
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    acknowledge: Callable[[], None]

    @property
    def origin(self) -> str:
        """`topic/partition/offset`."""
        return f"{self.topic}/{self.partition}/{self.offset}"


class Item(msgspec.Struct, frozen=True, eq=False):
    """A record on its way: what it says, or why it says nothing.

    Attributes:
        record: Where it came from.
        content: The post, or what is wrong with it.
        taken_s: When it was taken, in seconds of the monotonic clock.
        tokens: Estimate of what it costs to score.
    """

    record: Record
    content: Post | MalformedRecord
    taken_s: float
    tokens: int


Batch = Sequence[Item]


def decode_record(record: Record, *, clock: Callable[[], float] = time.monotonic) -> Item:
    """Decode a record; one that is no post becomes an item as well, to be answered by a dead letter in its turn."""
    try:
        content: Post | MalformedRecord = decode_post(record.value)
    except MalformedRecord as fault:
        content = fault
    tokens = 2 + len(content.text) // _CHARACTERS_PER_TOKEN if isinstance(content, Post) else 0
    return Item(record=record, content=content, taken_s=clock(), tokens=tokens)
