"""The kafka-python producer that sources publish through: idempotent, acks from all, bounded in flight.

`publish` returns once a record is handed over; with too many unconfirmed, it waits. Whether records arrived is known
after `flush`: `failed` counts those that did not.
"""

import logging
import threading
from types import TracebackType

from kafka import KafkaProducer
from kafka.errors import KafkaError

from emostream.connectors.broker import connect
from emostream.connectors.errors import BrokerError

_log = logging.getLogger(__name__)

_MOST_IN_FLIGHT = 1024
"""Records handed over and not yet confirmed. kafka-python 3 buffers without bound; this holds at most 64 MiB of the
largest posts, and is enough to keep a broker busy that answers in 10 ms with 100,000 posts a second."""

_MOST_WAIT_S = 120.0
"""How long a delivery is tried, and a place in flight waited for, before it counts as failed."""


class PostProducer:
    """Publishes encoded posts to one topic; use it as a context manager.

    Args:
        bootstrap: Kafka's addresses, comma-separated.
        topic: Where posts go.

    Raises:
        BrokerError: On entering, when no broker answers.
    """

    def __init__(self, *, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._producer: KafkaProducer | None = None
        self._counting = threading.Lock()
        self._in_flight = threading.Semaphore(_MOST_IN_FLIGHT)
        self.sent = 0
        self.failed = 0

    def __enter__(self) -> "PostProducer":
        self._producer = connect(
            KafkaProducer,
            self._bootstrap,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            compression_type="gzip",
            max_block_ms=int(_MOST_WAIT_S * 1000),
            delivery_timeout_ms=int(_MOST_WAIT_S * 1000),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._producer is not None  # noqa: S101  # set on entering
        self._producer.close(timeout=_MOST_WAIT_S)
        self._producer = None

    def publish(self, *, key: str | None, value: bytes) -> None:
        """Hand one record over; wait while too many are unconfirmed.

        Raises:
            BrokerError: The broker confirmed none of them for long, or the record is too large to be sent.
        """
        assert self._producer is not None, "use it as a context manager"  # noqa: S101
        if not self._in_flight.acquire(timeout=_MOST_WAIT_S):
            raise BrokerError(f"the broker took no record for {_MOST_WAIT_S:.0f} s")
        try:
            delivery = self._producer.send(self._topic, key=key.encode() if key else None, value=value)
        except KafkaError as error:
            self._in_flight.release()
            raise BrokerError(f"the record cannot be sent: {error!r}") from error
        self.sent += 1
        delivery.add_callback(self._on_confirmed)
        delivery.add_errback(self._on_failed)

    def flush(self) -> None:
        """Wait until every record handed over is confirmed or has failed.

        Raises:
            BrokerError: Some have failed.
        """
        assert self._producer is not None, "use it as a context manager"  # noqa: S101
        try:
            self._producer.flush(timeout=_MOST_WAIT_S)
        except KafkaError as error:
            raise BrokerError(f"records are not confirmed after {_MOST_WAIT_S:.0f} s: {error!r}") from error
        if self.failed:
            raise BrokerError(f"{self.failed} of {self.sent} records were not delivered")

    def _on_confirmed(self, _metadata: object) -> None:
        self._in_flight.release()

    def _on_failed(self, error: BaseException) -> None:
        self._in_flight.release()
        with self._counting:
            self.failed += 1
        _log.error("a record was not delivered: %r", error)
