"""The Faust shell: records of `posts` and `clips` in as raw bytes, partitions and commits reported. That is all of it.

What of Faust 0.15.3 is used, and what is not, follows from what was seen to lose data (docs/decisions/0006): no
`take()`, no tables, no transactions, no serialisers, no `concurrency`, no exception out of an agent, and every
acknowledgement by hand, in order (`offsets`).
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import faust
from faust.auth import Credentials
from mode.utils.queues import ThrowableQueue

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.unpacking import UNREADABLE, WHOLE_BYTES, Noticed, unpack_whatever_comes
from emostream.streams.buffer import RecordBuffer
from emostream.streams.consumer import Assignor, Tables, Transport
from emostream.streams.errors import StreamError
from emostream.streams.offsets import OffsetOrder
from emostream.streams.records import Record
from emostream.streams.settings import Settings

_log = logging.getLogger(__name__)

_RECORDS_AT_ONCE = 128
"""Records that are unpacked at once; without a bound, everything that was fetched is."""

_LONGEST_OUTAGE_S = 30 * 24 * 3600.0
"""A worker that fetches nothing for longer than this leaves its group, and Faust never joins again: with the 1,000 s
that it has otherwise, a Redis that is away for a quarter of an hour would be the end."""

_REBALANCE_TIMEOUT_S = 60.0
"""Far above the longest batch; a batch that outlives it makes rebalances follow on rebalances."""


Intake = Callable[[Record], Awaitable[None]]


class _App(faust.App):  # type: ignore[misc]  # faust is untyped
    """A Faust app whose topics have bounded queues, and which stops in the midst of a rebalance, too.

    Attributes:
        offsets: Told by the consumer what is committed.
    """

    offsets: OffsetOrder

    def FlowControlQueue(self, maxsize: int | None = None, *, clear_on_resume: bool = False) -> ThrowableQueue:
        """Return a queue; Faust asks for those of topics with `clear_on_resume`."""
        if clear_on_resume:
            return RecordBuffer(self)
        return super().FlowControlQueue(maxsize)

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    def _on_rebalance_when_stopped(self) -> None:
        """Take part in the rebalance all the same.

        Faust would close its client here: what a stopping worker still answers could not be committed, nor its group
        be left (docs/decisions/0006).
        """


def build_app(settings: Settings, *, posts: Intake, clips: Intake, offsets: OffsetOrder, scratch: Path) -> faust.App:
    """Build the Faust app; `start` and `stop` it like any service.

    Args:
        settings: Where Kafka is and how to talk to it.
        posts: Takes each record of `posts`; its waiting is what stops consumption.
        clips: Takes each record of `clips`, likewise.
        offsets: Hears of assigned and revoked partitions and of commits.
        scratch: A folder that Faust writes into, even where no table uses it.
    """
    access = settings.kafka_access
    unpack_whatever_comes()
    logging.getLogger("faust.transport.drivers.aiokafka").addFilter(_count_what_is_waited_for)
    app = _App(
        settings.group,
        broker=[f"kafka://{address}" for address in access.servers],
        broker_credentials=_credentials(access),
        processing_guarantee="at_least_once",
        stream_wait_empty=True,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 6,
        broker_request_timeout=max(30.0, settings.session_timeout_s + 5),
        broker_rebalance_timeout=_REBALANCE_TIMEOUT_S,
        broker_max_poll_interval=_LONGEST_OUTAGE_S,
        broker_max_poll_records=_RECORDS_AT_ONCE,
        broker_commit_interval=settings.commit_interval_s,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        datadir=str(scratch),
        PartitionAssignor=Assignor,
        TableManager=Tables,
    )
    app.offsets = offsets
    for name, intake in ((settings.posts_topic, posts), (settings.clips_topic, clips)):
        _add_agent(app, name, intake, offsets=offsets)

    topics = {settings.posts_topic, settings.clips_topic}

    @app.on_partitions_assigned.connect(weak=False)  # type: ignore[untyped-decorator]
    async def _on_assigned(_app: faust.App, assigned: Any, **_: Any) -> None:
        offsets.assigned([(tp.topic, tp.partition) for tp in assigned if tp.topic in topics])

    @app.on_partitions_revoked.connect(weak=False)  # type: ignore[untyped-decorator]
    async def _on_revoked(_app: faust.App, revoked: Any, **_: Any) -> None:
        offsets.revoked([(tp.topic, tp.partition) for tp in revoked])

    return app


def _count_what_is_waited_for(said: logging.LogRecord) -> bool:
    """Have Faust say how many answers a rebalance waits for; by itself it names each record, every ten seconds."""
    if "wait_empty" in str(said.msg) and isinstance(said.args, tuple) and said.args and isinstance(said.args[0], list):
        said.msg, said.args = "partitions are given up once %d records are answered", (len(said.args[0]),)
    return True


def _credentials(access: KafkaAccess) -> Credentials | None:
    tls = access.tls()
    if access.logs_in:
        return faust.SASLCredentials(
            username=access.user, password=access.password, mechanism=access.mechanism, ssl_context=tls
        )
    return faust.SSLCredentials(tls) if tls else None


def _add_agent(app: faust.App, name: str, intake: Intake, *, offsets: OffsetOrder) -> None:
    topic = app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

    @app.agent(topic, name=name, concurrency=1)  # type: ignore[untyped-decorator]  # faust is untyped
    async def _take(stream: Any) -> None:
        fault = ""
        try:
            async for event in stream.noack().events():
                record = _record(event)
                offsets.take(record)
                await offsets.room(record)
                await intake(record)
        except Exception as error:  # noqa: BLE001  # whatever it is: Faust would go on behind the record
            fault = type(error).__name__
        if fault:  # out here, Faust's log does not show what the error says, which may be the text of a post
            await app.crash(StreamError(f"a record of {name} cannot be taken in: {fault}"))


def _record(event: Any) -> Record:
    """Return the record of an event, which holds nothing of it from then on."""
    message = event.message
    noticed = {name: value for name, value in message.headers if isinstance(name, Noticed)}
    record = Record(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        timestamp_s=message.timestamp,
        key=message.key,
        value=message.value,
        headers=tuple((name, bytes(value or b"")) for name, value in message.headers if not isinstance(name, Noticed)),
        unreadable=noticed.get(UNREADABLE, b"").decode(errors="replace"),
        whole_bytes=int(noticed[WHOLE_BYTES]) if WHOLE_BYTES in noticed else None,
        acknowledge=event.ack,
    )
    # Faust keeps an event until it is acknowledged, which may be long after it was answered: not what it says, too.
    event.key = event.value = event.headers = message.key = message.value = message.headers = None
    return record
