"""Connecting to Kafka with kafka-python: one place for the patience and for what is said when nobody answers."""

from collections.abc import Callable
from typing import Any, TypeVar

from kafka.errors import KafkaError

from emostream.connectors.errors import BrokerError

_PATIENCE_MS = 10_000
"""How long a broker may take to answer at first: a restarting Kafka takes some 3 s, a wrong address for ever."""

Client = TypeVar("Client")


def connect(client: Callable[..., Client], bootstrap: str, **settings: Any) -> Client:
    """Create a kafka-python client that has reached its broker.

    Args:
        client: `KafkaProducer`, `KafkaConsumer` or `KafkaAdminClient`.
        bootstrap: Kafka's addresses, comma-separated.
        settings: Its other settings.

    Raises:
        BrokerError: No broker answers.
    """
    addresses = [address.strip() for address in bootstrap.split(",")]
    try:
        return client(bootstrap_servers=addresses, bootstrap_timeout_ms=_PATIENCE_MS, **settings)
    except KafkaError as error:
        raise BrokerError(
            f"no Kafka answers at {bootstrap} ({error!r}); is it running, and is EMOSTREAM_KAFKA right?"
        ) from error
