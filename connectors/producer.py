"""The kafka-python producer that sources and `dlq replay` publish through: acks from all, bounded in flight.

`publish` returns once a record is handed over; with too many unconfirmed, it waits. Whether records arrived is known
after `settle`, which waits, or `flush`, which also raises if any did not.
"""

import contextlib
import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError, UnknownError

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.connecting import connect
from emostream.connectors.errors import BrokerError

_log = logging.getLogger(__name__)

_MOST_IN_FLIGHT_BYTES = 32 * 1024 * 1024
_RECORD_BYTES = 1024
"""Bytes handed over and not yet confirmed, and what each record costs on top of its own. kafka-python 3 buffers without
bound; this holds 32 of the largest clips or some 25,000 posts, enough to keep a broker busy that answers in 10 ms."""

MOST_REQUEST_BYTES = 1024 * 1024 + 64 * 1024
"""Largest request: a clip of 1 MiB, its key and headers. The topics that emostream creates take as much; a broker's own
default is 1 MiB and twelve bytes."""

_MOST_WAIT_S = 120.0
"""How long a delivery is tried, and a place in flight waited for, before it counts as failed."""


class Delivery(Protocol):
    """What becomes of one record."""

    exception: BaseException | None

    def failed(self) -> bool:
        """Say whether it will not arrive; known after `settle`."""


class RecordProducer:
    """Publishes records; use it as a context manager.

    Args:
        access: Where Kafka is, and how to get in.
        idempotent: Have what kafka-python sends again stand in Kafka once. In return, the first record that Kafka
            refuses is its last: all that follow fail.

    Raises:
        BrokerError: On entering, when no broker answers.
    """

    def __init__(self, access: KafkaAccess, *, idempotent: bool = True) -> None:
        self._access = access
        self._idempotent = idempotent
        self._producer: KafkaProducer | None = None
        self._confirmed = threading.Condition()
        self._in_flight_bytes = 0
        self.sent = 0
        self.failed = 0
        self._fault: BaseException | None = None

    def __enter__(self) -> "RecordProducer":
        self._producer = connect(
            KafkaProducer,
            self._access,
            acks="all",
            enable_idempotence=self._idempotent,
            linger_ms=5,
            compression_type="gzip",
            max_request_size=MOST_REQUEST_BYTES,
            max_block_ms=int(_MOST_WAIT_S * 1000),
            delivery_timeout_ms=int(_MOST_WAIT_S * 1000),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._producer is not None  # noqa: S101  # set on entering
        with contextlib.suppress(BrokerError):  # `close` would give up as `flush` does where a batch is split
            self.settle()
        self._producer.close(timeout=_MOST_WAIT_S)
        self._producer = None

    def publish(
        self,
        topic: str,
        *,
        key: str | bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> Delivery:
        """Hand one record over; wait while too much is unconfirmed.

        Args:
            topic: Where it goes.
            key: Its key; an empty text is none.
            value: Its value; None only with a key.
            headers: Its headers.
            partition: Where in the topic; the key decides, if not given or where there is none of that number.

        Raises:
            BrokerError: The broker confirmed nothing for long, or the record is too large to be sent; or one handed
                over before has failed, and what follows may, too (`idempotent`).
        """
        assert self._producer is not None, "use it as a context manager"  # noqa: S101
        if self._idempotent:
            self._require_delivered()
        size = len(value or b"") + _RECORD_BYTES
        with self._confirmed:
            room = self._confirmed.wait_for(
                lambda: self._in_flight_bytes + size <= _MOST_IN_FLIGHT_BYTES, timeout=_MOST_WAIT_S
            )
            if not room:
                raise BrokerError(f"the broker took no record for {_MOST_WAIT_S:.0f} s")
            self._in_flight_bytes += size
        try:
            if partition is not None and partition not in (self._producer.partitions_for(topic) or ()):
                partition = None
            delivery = self._producer.send(
                topic,
                key=(key.encode() or None) if isinstance(key, str) else key,
                value=value,
                headers=list(headers),
                partition=partition,
            )
        except KafkaError as error:
            self._release(size)
            raise BrokerError(f"the record cannot be sent: {error!r}") from error
        self.sent += 1
        delivery.add_callback(lambda _metadata: self._release(size))
        delivery.add_errback(lambda error: self._on_failed(size, error))
        sent: Delivery = delivery
        return sent

    def flush(self) -> None:
        """Wait until every record handed over is confirmed.

        Raises:
            BrokerError: Some have failed, or are not confirmed in time.
        """
        self.settle()
        self._require_delivered()

    def settle(self) -> None:
        """Wait until every record handed over is confirmed or has failed.

        Raises:
            BrokerError: Some are neither in time.
        """
        assert self._producer is not None, "use it as a context manager"  # noqa: S101
        try:
            # A batch that Kafka refuses as too large is split and sent in parts; `flush` does not wait for these.
            with contextlib.suppress(UnknownError):
                self._producer.flush(timeout=_MOST_WAIT_S)
        except KafkaError as error:
            raise BrokerError(f"records are not confirmed after {_MOST_WAIT_S:.0f} s: {error!r}") from error
        with self._confirmed:
            if not self._confirmed.wait_for(lambda: not self._in_flight_bytes, timeout=_MOST_WAIT_S):
                raise BrokerError(f"records are not confirmed after {_MOST_WAIT_S:.0f} s")

    def _require_delivered(self) -> None:
        if self.failed:
            raise BrokerError(f"{self.failed} of {self.sent} records were not delivered: {self._fault!r}")

    def _release(self, size: int) -> None:
        with self._confirmed:
            self._in_flight_bytes -= size
            self._confirmed.notify()

    def _on_failed(self, size: int, error: BaseException) -> None:
        self._fault = self._fault or error  # of what an idempotent producer gives up, the first says why
        self.failed += 1
        self._release(size)
        _log.error("a record was not delivered: %r", error)
