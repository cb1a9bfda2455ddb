"""Reaching Kafka, or hearing in one sentence why it does not let us in.

Both client libraries keep the reason to themselves: with a wrong password they cannot "bootstrap", after a long wait.
So we knock first, with one connection of our own. Called by everything that talks to Kafka, but for Faust.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest
from kafka.errors import KafkaError as ClientError

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.errors import AccessRefused, BrokerAway, ConnectorError

_PATIENCE_S = 10.0
"""How long a broker may take to answer at first: a restarting Kafka takes some 3 s, a wrong address for ever."""

_ANSWER_S = 5.0
"""How long it may take for each step of a connection."""

_AGAIN_S, _GOODBYE_S = 0.3, 1.0

Client = TypeVar("Client")


def connect(client: Callable[..., Client], access: KafkaAccess, **settings: Any) -> Client:
    """Create a kafka-python client that has reached its broker.

    Args:
        client: `KafkaProducer`, `KafkaConsumer` or `KafkaAdminClient`.
        access: Where Kafka is, and how to get in.
        settings: Its other settings.

    Raises:
        BrokerAway: No broker answers.
        AccessRefused: One does, and does not let us in.
        BrokerError: TLS cannot be set up.
    """
    _await_entry(access)
    try:
        return client(**access.client_settings(), bootstrap_timeout_ms=int(1000 * _PATIENCE_S), **settings)
    except ClientError as error:
        raise BrokerAway(f"Kafka at {access.addresses} answers no more: {error!r}") from error


async def knock(access: KafkaAccess) -> None:
    """Return once a broker has let us in and told us of its cluster.

    Raises:
        BrokerAway: None answers.
        AccessRefused: One does, and does not let us in.
        BrokerError: TLS cannot be set up.
    """
    settings = access.client_settings()
    faults: list[ConnectorError] = []
    for server in settings.pop("bootstrap_servers"):
        try:
            return await _enter(server, settings)
        except (OSError, KafkaError) as error:  # of which a timeout is one
            faults.append(await _explained(error, server, access))
    raise min(faults, key=lambda fault: fault.retriable)


def _await_entry(access: KafkaAccess) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    # In a thread of its own, because a loop may run in this one.
    with ThreadPoolExecutor(max_workers=1) as pool:
        while True:
            try:
                return pool.submit(asyncio.run, knock(access)).result()
            except BrokerAway:
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(_AGAIN_S)


async def _enter(server: str, settings: dict[str, Any]) -> None:
    host, _, port = server.rpartition(":")
    connection = AIOKafkaConnection(host.strip("[]"), int(port), request_timeout_ms=int(1000 * _ANSWER_S), **settings)
    try:
        await connection.connect()
        # A broker that wants a login tells its version without one, and hangs up at the first real question.
        await connection.send(MetadataRequest([]))
    except KafkaError:
        await _hang_up(connection)
        raise
    await _hang_up(connection)


async def _hang_up(connection: AIOKafkaConnection) -> None:
    await asyncio.wait([connection.close()], timeout=_GOODBYE_S)


async def _explained(error: Exception, server: str, access: KafkaAccess) -> ConnectorError:
    """Return what an error of a connection means to the person whose settings these are."""
    match error:
        case ssl.SSLCertVerificationError():
            return AccessRefused(
                f"the certificate of Kafka at {server} is not trusted ({error.verify_message}); EMOSTREAM_KAFKA_CA "
                "must name the certificate of whoever signed it, EMOSTREAM_KAFKA a name that it was made out to"
            )
        case SaslAuthenticationFailed():
            return AccessRefused(
                f"Kafka at {server} does not take this password from user {access.user!r} by {access.mechanism}; check "
                "EMOSTREAM_KAFKA_USER, EMOSTREAM_KAFKA_PASSWORD and EMOSTREAM_KAFKA_MECHANISM"
            )
        case UnsupportedSaslMechanismError():
            return AccessRefused(
                f"Kafka at {server} takes no {access.mechanism}; set EMOSTREAM_KAFKA_MECHANISM to what it does"
            )
        case IllegalSaslStateError():
            return AccessRefused(f"Kafka at {server} takes no logins; set EMOSTREAM_KAFKA_PROTOCOL to what it speaks")
        case KafkaConnectionError() if not access.speaks_tls and await _speaks_tls(server):
            return AccessRefused(f"Kafka at {server} speaks TLS; set EMOSTREAM_KAFKA_PROTOCOL to SASL_SSL or SSL")
        case KafkaConnectionError() | ssl.SSLError() | ConnectionResetError():
            # Perhaps it is only just starting: worth another try.
            asks = "TLS, a login, or a certificate of ours" if access.speaks_tls else "a login"
            return BrokerAway(
                f"Kafka at {server} hangs up on {access.protocol} ({error.__cause__ or error!r}); set "
                f"EMOSTREAM_KAFKA_PROTOCOL to what its listener speaks: is it {asks} that it wants?"
            )
    return BrokerAway(
        f"no Kafka answers at {access.addresses} ({error!r}); is it running, and is EMOSTREAM_KAFKA right?"
    )


async def _speaks_tls(server: str) -> bool:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    host, _, port = server.rpartition(":")
    try:
        async with asyncio.timeout(_ANSWER_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=trusting)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    except OSError:
        return False
    return True
