"""Answers and dead letters read back from Kafka, for `emostream watch`, the demo and tests."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.connecting import connect
from emostream.connectors.errors import BrokerError


class Received(msgspec.Struct, frozen=True):
    """One record as it stands in Kafka; `timestamp_s` is the broker's, seconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp_s: float
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


_POLL_MS = 200


def read_records(
    access: KafkaAccess,
    topics: Sequence[str],
    *,
    from_beginning: bool,
    stopping: Callable[[], bool],
    on_ready: Callable[[], None] = lambda: None,
) -> Iterator[Received]:
    """Yield the records of topics as they come, without a consumer group, until `stopping` says so.

    Args:
        access: Where Kafka is, and how to get in.
        topics: What to read; they must exist.
        from_beginning: Whether to start with the oldest record or with the next one.
        stopping: Asked at least five times a second.
        on_ready: Told once the position is fixed: what is published from then on will be read.

    Raises:
        BrokerError: The broker is away, or a topic does not exist.
    """
    consumer = connect(KafkaConsumer, access)
    try:
        consumer.assign([TopicPartition(name, p) for name in topics for p in _partitions(consumer, name)])
        seek = consumer.seek_to_beginning if from_beginning else consumer.seek_to_end
        seek()
        for partition in consumer.assignment():
            consumer.position(partition)
        on_ready()
        while not stopping():
            for records in consumer.poll(timeout_ms=_POLL_MS).values():
                yield from (_received(record) for record in records)
    finally:
        consumer.close(autocommit=False)


def _partitions(consumer: KafkaConsumer, topic: str, *, patience_s: float = 10.0) -> set[int]:
    """Return a topic's partitions, waiting a little for a topic that was only just created."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        partitions: set[int] | None = consumer.partitions_for_topic(topic)
        if partitions:
            return partitions
        time.sleep(_POLL_MS / 1000)
    raise BrokerError(f"topic {topic!r} does not exist; `emostream topics create` creates it")


def _received(record: Any) -> Received:
    return Received(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_s=record.timestamp / 1000,
        key=record.key,
        value=record.value,
        headers=dict(record.headers),
    )
