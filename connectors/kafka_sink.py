"""Answers and dead letters into Kafka: acks from all replicas, idempotent. Written to by the pipeline.

A write returns when the broker has confirmed every record.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, ProducerClosed, UnknownError

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.connecting import knock
from emostream.connectors.errors import ConnectorError, RecordRefused, SinkUnavailable
from emostream.connectors.messages import DeadLetter, encode_emotion
from emostream.connectors.producer import MOST_REQUEST_BYTES
from emostream.connectors.sinks import Answer

_log = logging.getLogger(__name__)

_KEPT_BYTES = 512 * 1024
"""What is kept of the value of a dead letter that its own headers made too large to write."""

_LEAST_KEPT_BYTES = 256
"""A topic that does not take a letter with so little of its value will not take it at all."""

_MOST_ERROR_CHARACTERS = 500

_STOP_S = 5.0
"""How long a producer that is let go of is waited for; it goes on flushing by itself, beside the next one."""

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]


class KafkaWriter:
    """A producer for one topic that comes back after the broker went away.

    Args:
        topic: Where records go.
        access: Where Kafka is, and how to get in.
        request_timeout_s: How long a broker may take to answer a request. A producer with an id tries for ever, so a
            write can take as long as a broker is away.
    """

    def __init__(self, *, topic: str, access: KafkaAccess, request_timeout_s: float = 30.0) -> None:
        self._topic = topic
        self._access = access
        self._settings: dict[str, Any] = {
            **access.client_settings(),
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": 2,
            "compression_type": "gzip",
            "max_request_size": MOST_REQUEST_BYTES,
            "request_timeout_ms": int(request_timeout_s * 1000),
        }
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()
        self._sending: dict[AIOKafkaProducer, set[asyncio.Task[Any]]] = {}

    async def write(self, records: Sequence[Record]) -> None:
        """Write records and wait until each is confirmed.

        Raises:
            SinkUnavailable: Some are not confirmed.
            RecordRefused: Some are larger than a request, or a record of this topic, may be.
        """
        producer = await self._ready()
        outcomes = await self._deliver(producer, records)
        too_large = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, MessageSizeTooLargeError)]
        if too_large:
            # A broker refuses a whole request for one record in it: alone, each shows whether it is the one. By another
            # producer, since the sequence numbers of what was refused are missing from this one's.
            await self._drop(producer)
            producer = await self._ready()
        for position in too_large:
            (outcomes[position],) = await self._deliver(producer, [records[position]])
        if refused := [at for at in too_large if isinstance(outcomes[at], MessageSizeTooLargeError)]:
            await self._drop(producer)
            raise RecordRefused(refused, f"{self._topic}: {outcomes[refused[0]]!r}") from outcomes[refused[0]]
        faults = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if faults:
            await self._drop(producer)
            raise SinkUnavailable(f"{self._topic}: {faults[0]!r}") from faults[0]

    async def close(self) -> None:
        """Flush and let go of the connection."""
        if self._producer is not None:
            await self._drop(self._producer)

    async def _deliver(self, producer: AIOKafkaProducer, records: Sequence[Record]) -> list[Any]:
        """Send records, and return for each what the broker said, or the error that it met."""

        async def deliver(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Any:
            if producer != self._producer:  # another write let go of it
                raise ProducerClosed
            return await (await producer.send(self._topic, value=value, key=key, headers=headers))

        tasks = [asyncio.create_task(deliver(*record)) for record in records]
        sending = self._sending.setdefault(producer, set())
        sending.update(tasks)
        try:
            return await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            sending.difference_update(tasks)
            if not sending:
                self._sending.pop(producer, None)

    async def _ready(self) -> AIOKafkaProducer:
        try:
            return await self._started()
        except KafkaError as error:
            raise SinkUnavailable(f"{self._topic}: {await self._why(error)}") from error

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                try:
                    self._producer = await _start(self._settings)
                except UnknownError:
                    # The embedded broker answers so to the only version of InitProducerId that aiokafka speaks.
                    _log.warning(
                        "%s: this broker gives no producer ids; a retried write may stand there twice", self._topic
                    )
                    self._settings["enable_idempotence"] = False
                    self._producer = await _start(self._settings)
            return self._producer

    async def _why(self, error: KafkaError) -> str:
        """Return why a producer does not start: aiokafka's own error says no more than that it did not."""
        try:
            await knock(self._access)
        except ConnectorError as refusal:
            return str(refusal)
        return repr(error)

    async def _drop(self, producer: AIOKafkaProducer) -> None:
        """Let go of a producer, once; the next write starts a new one, whose sequence numbers begin afresh.

        One that cannot flush is not interrupted: it would keep its connections and tasks. What another write still
        waits for once it has stopped, such as metadata of the topic, will never come: aiokafka would wait for ever.
        """
        if self._producer is not producer:
            return
        self._producer = None
        stopping: asyncio.Task[None] = asyncio.create_task(self._stop(producer))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopped)
        await asyncio.wait({stopping}, timeout=_STOP_S)

    async def _stop(self, producer: AIOKafkaProducer) -> None:
        try:
            await producer.stop()
        finally:
            for task in self._sending.get(producer, ()):
                task.cancel()

    def _stopped(self, stopping: "asyncio.Task[None]") -> None:
        self._stopping.discard(stopping)
        if not stopping.cancelled() and (error := stopping.exception()):
            _log.warning("producer of %s did not stop cleanly: %r", self._topic, error)


async def _start(settings: dict[str, Any]) -> AIOKafkaProducer:
    producer = AIOKafkaProducer(**settings)
    try:
        await producer.start()
    except BaseException:
        await producer.stop()
        raise
    return producer


class KafkaSink:
    """Answers to `emotions`, under the post's id as key."""

    name = "kafka"

    def __init__(self, writer: KafkaWriter) -> None:
        self._writer = writer

    async def write(self, answers: Sequence[Answer]) -> None:
        """Write answers and wait until each is confirmed."""
        emotions = [answer.emotion for answer in answers]
        await self._writer.write([(each.post_id.encode(), encode_emotion(each), []) for each in emotions])

    async def close(self) -> None:
        """Flush and let go of the connection."""
        await self._writer.close()


class KafkaDeadLetters:
    """Records that cannot be answered to `dead-letters`, under their own key."""

    name = "dead_letters"

    def __init__(self, writer: KafkaWriter) -> None:
        self._writer = writer

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Write dead letters and wait until each is confirmed.

        A record that does not fit with the headers added is written with the beginning of its value, and
        `whole_bytes` says so.

        Raises:
            SinkUnavailable: Some are not confirmed, or the topic does not even take a letter with nearly no value.
        """
        pending = list(letters)
        while True:
            try:
                await self._writer.write([(letter.key, _value(letter), letter.headers) for letter in pending])
                return
            except RecordRefused as refused:
                for position in refused.positions:
                    letter = pending[position]
                    if letter.why.whole_bytes is not None and len(letter.value or b"") < _LEAST_KEPT_BYTES:
                        raise SinkUnavailable(f"{refused}; raise its max.message.bytes") from refused
                    pending[position] = _cut(letter)

    async def close(self) -> None:
        """Flush and let go of the connection."""
        await self._writer.close()


def _value(letter: DeadLetter) -> bytes | None:
    """Return the value as it was, but for a record without key and value: aiokafka writes no such thing."""
    return b"" if letter.key is None and letter.value is None else letter.value


def _cut(letter: DeadLetter) -> DeadLetter:
    """Return a smaller dead letter: key and value cut, no header but why it failed. One cut before is halved."""
    why, size = letter.why, len(letter.value or b"")
    first = why.whole_bytes is None
    return DeadLetter(
        key=letter.key[:1024] if letter.key else None,
        value=letter.value[: _KEPT_BYTES if first else size // 2] if letter.value else None,
        original_headers=(),
        why=msgspec.structs.replace(
            why, error=why.error[:_MOST_ERROR_CHARACTERS], whole_bytes=size if first else why.whole_bytes
        ),
    )
