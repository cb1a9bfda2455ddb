"""Answers and dead letters read back from Kafka, for `emostream watch` and `dlq`, the demo and tests.

`read_records` follows topics, `read_spans` reads what stands in one and ends.
"""

import datetime as dt
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.connecting import connect
from emostream.connectors.errors import BrokerAway, BrokerError


class Received(msgspec.Struct, frozen=True):
    """One record as it stands in Kafka; `timestamp_s` is the broker's, seconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp_s: float
    key: bytes | None
    value: bytes | None
    header_pairs: tuple[tuple[str, bytes], ...]

    @property
    def headers(self) -> dict[str, bytes]:
        """The headers by name, of several with one name the last."""
        return dict(self.header_pairs)


class Span(msgspec.Struct, frozen=True):
    """A stretch of one partition: from `start` (the oldest, if None) to before `stop` (what is there now, if None)."""

    partition: int
    start: int | None = None
    stop: int | None = None


_log = logging.getLogger(__name__)

_POLL_MS = 200

_MOST_SILENCE_S = 30.0
"""How long a broker may hand out nothing of what it has: longer than it takes to elect a leader."""

_CLOCKS_DIFFER = dt.timedelta(minutes=10)
"""By how much clocks may differ: Kafka's timestamp is a worker's time or the broker's."""


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
        BrokerError: The broker is away, a topic does not exist, or we may not read it.
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
    except KafkaError as error:
        raise BrokerError(f"{', '.join(topics)} cannot be read: {error!r}") from error
    finally:
        consumer.close(autocommit=False)


def read_spans(
    access: KafkaAccess,
    topic: str,
    spans: Iterable[Span] | None = None,
    *,
    since: dt.datetime | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Received]:
    """Yield what stands in a topic, one partition after the other, and end.

    What cannot be read, such as a record whose header's name is not UTF-8, is logged and stepped over.

    Args:
        access: Where Kafka is, and how to get in.
        topic: What to read; it must exist.
        spans: Which stretches of it, in this order; the whole topic, if not given. What does not exist is left out.
        since: What Kafka took well before this time may be left out.
        stopping: Asked at least five times a second; ends it early.

    Raises:
        BrokerError: The broker is away or hands nothing out, or the topic does not exist.
    """
    consumer = connect(KafkaConsumer, access, auto_offset_reset="earliest")
    try:
        partitions = _partitions(consumer, topic)
        for span in [Span(number) for number in sorted(partitions)] if spans is None else spans:
            if span.partition in partitions:
                yield from _read_span(consumer, TopicPartition(topic, span.partition), span, since, stopping)
    except KafkaError as error:
        raise BrokerError(f"topic {topic!r} cannot be read: {error!r}") from error
    finally:
        consumer.close(autocommit=False)


def _read_span(
    consumer: KafkaConsumer,
    partition: TopicPartition,
    span: Span,
    since: dt.datetime | None,
    stopping: Callable[[], bool],
) -> Iterator[Received]:
    consumer.assign([partition])
    begin, end = _bounds(consumer, partition)
    start = max(begin, span.start or 0, _start_at(consumer, partition, since, end=end))
    stop = end if span.stop is None else min(span.stop, end)
    if start >= stop:
        return
    consumer.seek(partition, start)
    silent_since_s = time.monotonic()
    # The position passes over offsets that hold no record (compaction, transactions), so it does reach the end.
    while consumer.position(partition) < stop and not stopping():
        records = _poll(consumer, partition)
        for record in records:
            if record.offset >= stop:
                return
            yield _received(record)
        if records:
            silent_since_s = time.monotonic()
        elif time.monotonic() - silent_since_s > _MOST_SILENCE_S:
            raise BrokerError(
                f"the broker has handed out nothing of {partition.topic}/{partition.partition} for "
                f"{_MOST_SILENCE_S:.0f} s, from {consumer.position(partition)} on, though it ends at {stop}"
            )


def _bounds(consumer: KafkaConsumer, partition: TopicPartition) -> tuple[int, int]:
    """Return the oldest offset of a partition, and the next that will be given.

    Asked for the latter, the embedded broker names the one after the *first* record of the newest batch. What it hands
    out is right, however, and says where the partition ends: so one record is fetched. Apache Kafka is right both ways.
    """
    begin = int(consumer.beginning_offsets([partition])[partition])
    end = int(consumer.end_offsets([partition])[partition])
    if begin >= end:
        return begin, end
    consumer.seek(partition, end - 1)
    until_s = time.monotonic() + _MOST_SILENCE_S
    while (said := consumer.highwater(partition)) is None and time.monotonic() < until_s:
        _poll(consumer, partition)
    return begin, max(end, said or 0)


def _start_at(consumer: KafkaConsumer, partition: TopicPartition, since: dt.datetime | None, *, end: int) -> int:
    """Return an offset before which nothing is as new as `since`.

    Apache Kafka names the first record, the embedded broker one before it or the very first: both will do.
    """
    if since is None:
        return 0
    asked_ms = max(0, int((since - _CLOCKS_DIFFER).timestamp() * 1000))
    found = consumer.offsets_for_times({partition: asked_ms})[partition]
    return end if found is None else int(found.offset)


def _poll(consumer: KafkaConsumer, partition: TopicPartition) -> list[Any]:
    """Return what has come; step over what cannot be read.

    kafka-python reads a batch from its beginning each time, and so nothing of it that follows such a record.
    """
    try:
        return list(consumer.poll(timeout_ms=_POLL_MS).get(partition, ()))
    except CorruptRecordError as error:
        offset = consumer.position(partition)
        _log.warning("%s/%d/%d cannot be read: %s", partition.topic, partition.partition, offset, error)
        consumer.seek(partition, offset + 1)
        return []


def _partitions(consumer: KafkaConsumer, topic: str, *, patience_s: float = 10.0) -> set[int]:
    """Return a topic's partitions, waiting a little for a topic that was only just created, and for its broker.

    A broker that comes back from a pause or a restart says for a moment that the cluster has no brokers, or hangs up.
    """
    deadline_s = time.monotonic() + patience_s
    fault: KafkaError | None = None
    while time.monotonic() < deadline_s:
        try:
            fault, partitions = None, consumer.partitions_for_topic(topic)
        except KafkaError as error:
            if not error.retriable:
                raise
            fault, partitions = error, None
        if partitions:
            return set(partitions)
        time.sleep(_POLL_MS / 1000)
    if fault is not None:
        raise BrokerAway(f"the brokers do not say where topic {topic!r} is: {type(fault).__name__}") from fault
    raise BrokerError(
        f"topic {topic!r} does not exist (`emostream topics create` creates it), or this user may not see it"
    )


def _received(record: Any) -> Received:
    return Received(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_s=record.timestamp / 1000,
        key=record.key,
        value=record.value,
        header_pairs=tuple((name, value or b"") for name, value in record.headers),
    )
