"""TLS and logins, on a real Apache Kafka that takes no other clients, and a Redis with an ACL behind TLS.

Redis' TLS ends at a small proxy in front of it: the embedded one is built without.
"""

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty import running_cluster
from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLFilter, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from support import (
    KAFKA_SCRIPT,
    ROOT,
    TEXTS,
    Broker,
    RunningWorker,
    await_true,
    collect_answers,
    make_certificate,
    make_posts,
    make_settings,
    publish,
    running_worker,
)

from emostream.connectors.broker import KafkaAccess, Mechanism, Protocol
from emostream.connectors.connecting import connect
from emostream.connectors.errors import AccessRefused, BrokerError, ConnectorError
from emostream.connectors.producer import RecordProducer
from emostream.connectors.reader import read_records
from emostream.connectors.redis_access import RedisAccess
from emostream.connectors.redis_sink import RedisSink
from emostream.connectors.topics import create_topics, describe_topics, require_group
from emostream.streams.settings import Settings
from emostream.streams.stack import Stack, free_port, running_redis

pytestmark = [
    pytest.mark.skipif(
        not KAFKA_SCRIPT.is_file(),
        reason="an Apache Kafka with TLS and users must be started, and EMOSTREAM_TEST_KAFKA is not there",
    ),
    pytest.mark.xdist_group("security"),  # they share it
]

REDIS_RIGHTS = (
    "~tests:* resetchannels &tests:* -@all +@connection +script|load +evalsha +type +exists "
    "+hget +hmget +hset +hincrby +expire +xadd +publish +del"
)
"""All that a worker needs, with `tests:` for its prefix; the README says so."""

REDIS_PASSWORD = "p@ss/word:of redis"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaAccess]:
    """A Kafka that wants TLS and a login, and the way in."""
    with running_cluster(tmp_path_factory.mktemp("kafka") / "cluster", options=("--secure",)) as running:
        facts = running.facts
        yield KafkaAccess(
            facts["bootstrap"],
            protocol="SASL_SSL",
            ca=Path(facts["ca"]),
            user=facts["user"],
            password=facts["password"],
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "redis.pem", "subjectAltName=IP:127.0.0.1")


@pytest.fixture(scope="module")
def redis(certificate: Path) -> Iterator[RedisAccess]:
    """A Redis that knows one user, behind TLS, and the way in."""
    with running_redis(free_port(0)) as url, Redis.from_url(url) as admin:
        admin.execute_command("ACL", "SETUSER", "emostream", "on", f">{REDIS_PASSWORD}", *REDIS_RIGHTS.split())
        admin.execute_command("ACL", "SETUSER", "default", "off")
        with tls_in_front(int(url.rpartition(":")[2].partition("/")[0]), certificate) as port:
            yield RedisAccess(f"rediss://127.0.0.1:{port}/0", ca=certificate, user="emostream", password=REDIS_PASSWORD)


@contextlib.contextmanager
def tls_in_front(port: int, certificate: Path) -> Iterator[int]:
    """Take TLS connections, carry what they say to a port of this machine, and yield the port that takes them."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError), contextlib.closing(writer):
            while said := await reader.read(65_536):
                writer.write(said)
                await writer.drain()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = loop.run_until_complete(asyncio.start_server(carry, "127.0.0.1", 0, ssl=tls))
    loop.set_exception_handler(lambda _loop, _context: None)  # of clients that refuse our certificate
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        server.close()
        loop.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_topics_producer_and_reader_log_in(secure: KafkaAccess, mechanism: Mechanism) -> None:
    access, topic = replace(secure, mechanism=mechanism), f"said-{mechanism.lower()}"
    create_topics(access, [topic], partitions=2, replication=-1)
    assert [state.partitions for state in describe_topics(access, [topic])] == [2]
    with RecordProducer(access) as producer:
        producer.publish(topic, key="k", value=b"v")
        producer.flush()
    records = read_records(access, [topic], from_beginning=True, stopping=lambda: False)
    assert next(iter(records)).value == b"v"
    records.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"password": "wr0ng"},
            "does not take this password from user 'emostream' by SCRAM-SHA-512; check EMOSTREAM_KAFKA_U",
        ),
        ({"password": "wr0ng", "mechanism": "PLAIN"}, "does not take this password from user 'emostream' by PLAIN"),
        ({"user": "nobody"}, "does not take this password from user 'nobody'"),
        ({"ca": None}, r"is not trusted \(self.signed certificate\); EMOSTREAM_KAFKA_CA must name"),
        ({"protocol": "PLAINTEXT"}, "speaks TLS; set EMOSTREAM_KAFKA_PROTOCOL to SASL_SSL or SSL"),
        ({"protocol": "SASL_PLAINTEXT"}, "speaks TLS; set EMOSTREAM_KAFKA_PROTOCOL to SASL_SSL or SSL"),
    ],
)
def test_who_is_not_let_in_hears_why_at_once(
    secure: KafkaAccess, change: dict, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(AccessRefused, match=said) as refused:
        describe_topics(replace(secure, **change), ["posts"])
    for text in (str(refused.value), caplog.text):
        assert "wr0ng" not in text
        assert secure.password not in text


def test_a_login_that_is_missing_is_asked_for(secure: KafkaAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emostream.connectors.connecting._PATIENCE_S", 0.5)
    with pytest.raises(BrokerError, match=r"hangs up on SSL .* is it TLS, a login, or a certificate of ours"):
        describe_topics(replace(secure, protocol="SSL"), ["posts"])


def test_a_worker_with_a_wrong_password_ends_and_says_so(
    secure: KafkaAccess, redis: RedisAccess, tmp_path: Path
) -> None:
    settings = settings_of(replace(secure, password="wr0ng", mechanism="PLAIN"), redis)
    with running_worker(settings, tmp_path / "log", ready=False) as worker:
        assert worker.process.wait(60) == 1
    said = " ".join(worker.log.read_text().split())
    assert "error: Kafka at 127.0.0.1" in said
    assert "does not take this password from user 'emostream' by PLAIN" in said
    assert "Traceback" not in said
    assert_no_secret(worker)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_worker_answers_over_tls_and_outlives_a_lost_right(
    secure: KafkaAccess, redis: RedisAccess, mechanism: Mechanism, tmp_path: Path
) -> None:
    settings = settings_of(replace(secure, mechanism=mechanism), redis)
    before, meanwhile = make_posts(20), make_posts(20)
    with running_worker(settings, tmp_path / "log") as worker:
        publish(settings, before)
        assert len(collect_answers(settings, {post.id for post in before})) == len(before)
        await_true(lambda: all(stored(redis, post.id) for post in before), within_s=10)
        with denied(settings.kafka_access, ACLOperation.WRITE, ResourceType.TOPIC, settings.emotions_topic):
            publish(settings, meanwhile)
            await_true(
                lambda: "kafka: attempt 3 failed" in worker.log.read_text(),
                within_s=30,
                what=lambda: worker.log.read_text()[-3000:],
            )
            assert "TopicAuthorizationFailedError" in worker.log.read_text()
        assert len(collect_answers(settings, {post.id for post in meanwhile})) == len(meanwhile)
        assert worker.metric("emostream_records_in_total") >= len(before) + len(meanwhile)
        assert worker.end() == 0
    assert_no_secret(worker)


@pytest.mark.parametrize("protocol", ["SSL", "SASL_PLAINTEXT"])
def test_a_worker_answers_by_certificate_alone_and_by_login_alone(
    stack: Stack, protocol: Protocol, tmp_path: Path
) -> None:
    ours, trusted = make_certificate(tmp_path / "ours.pem"), tmp_path / "trusted.pem"
    trusted.write_text(ours.read_text()[ours.read_text().index("-----BEGIN CERTIFICATE") :])
    changes = {
        "listener.security.protocol.map": f"CLIENT:{protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "ssl.client.auth": "required",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": trusted,
    }
    options = ("--secure", *(part for name, value in changes.items() for part in ("--set", f"{name}={value}")))
    with running_cluster(tmp_path / "kafka", options=options) as running:
        facts = running.facts
        if protocol == "SSL":
            access = KafkaAccess(facts["bootstrap"], protocol=protocol, ca=Path(facts["ca"]), certificate=ours)
        else:
            access = KafkaAccess(facts["bootstrap"], protocol=protocol, user=facts["user"], password=facts["password"])
        settings = settings_of(access, RedisAccess(stack.redis))
        posts = make_posts(5)
        with running_worker(settings, tmp_path / "log") as worker:
            publish(settings, posts)
            assert len(collect_answers(settings, {post.id for post in posts})) == len(posts)
            assert worker.end() == 0


def test_the_readme_names_the_rights_that_are_tried_here() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert REDIS_RIGHTS.replace("tests:", "emostream:") in readme


def test_a_right_that_is_missing_is_named(secure: KafkaAccess) -> None:
    create_topics(secure, ["locked"], partitions=1, replication=-1)
    require_group(secure, "anyone")
    with (
        denied(secure, ACLOperation.READ, ResourceType.GROUP, "closed"),
        pytest.raises(AccessRefused, match=r"'emostream' may not read as group 'closed'; its ACL must allow Read"),
    ):
        require_group(secure, "closed")
    with (
        denied(secure, ACLOperation.READ, ResourceType.TOPIC, "locked"),
        pytest.raises(BrokerError, match=r"locked cannot be read: TopicAuthorizationFailedError"),
    ):
        next(read_records(secure, ["locked"], from_beginning=True, stopping=lambda: False))
    with denied(secure, ACLOperation.WRITE, ResourceType.TOPIC, "locked"), RecordProducer(secure) as producer:
        producer.publish("locked", key="k", value=b"v")
        with pytest.raises(BrokerError, match=r"1 of 1 records were not delivered: TopicAuthorizationFailedError"):
            producer.flush()
        with pytest.raises(BrokerError, match=r"1 of 1 records were not delivered: TopicAuthorizationFailedError"):
            producer.publish("locked", key="k", value=b"what follows would be lost, too")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"password": "wr0ng"}, "Redis refuses us .*EMOSTREAM_REDIS_PASSWORD"),
        ({"user": "", "password": ""}, "Redis refuses us .*EMOSTREAM_REDIS_PASSWORD"),
        ({"ca": None}, "no TLS to Redis .*EMOSTREAM_REDIS_CA"),
    ],
)
async def test_redis_says_whom_it_does_not_let_in(redis: RedisAccess, change: dict, said: str) -> None:
    client: AsyncRedis = replace(redis, **change).client()
    sink = RedisSink(client, prefix="tests:", keep_s=60)
    with pytest.raises(AccessRefused, match=said) as refused:
        await sink.open()
    with pytest.raises(ConnectorError):
        await sink.look_up(["x"])
    assert "wr0ng" not in str(refused.value)
    await sink.close()
    await asyncio.sleep(0.05)  # asyncio lets go of a connection that failed in its handshake only in a later round


async def test_redis_says_which_right_is_missing(redis: RedisAccess) -> None:
    sink = RedisSink(redis.client(), prefix="others:", keep_s=60)
    await sink.open()
    with pytest.raises(ConnectorError, match=r"[Nn]o permissions"):
        await sink.look_up(["x"])
    await sink.close()


def settings_of(kafka: KafkaAccess, redis: RedisAccess) -> Settings:
    return make_settings(
        Broker("kafka", kafka.addresses),
        Stack(kafka=kafka.addresses, redis=redis.url, moved=()),
        kafka_protocol=kafka.protocol,
        kafka_ca=kafka.ca,
        kafka_certificate=kafka.certificate,
        kafka_mechanism=kafka.mechanism,
        kafka_user=kafka.user,
        kafka_password=kafka.password,
        redis_ca=redis.ca,
        redis_user=redis.user,
        redis_password=redis.password,
        log_level="debug",
    ).model_copy(update={"redis_prefix": "tests:"})


@contextlib.contextmanager
def denied(access: KafkaAccess, operation: ACLOperation, kind: ResourceType, name: str) -> Iterator[None]:
    """Take a right away for a while."""
    pattern = ResourcePattern(kind, name)
    rules = [
        ACL("User:*", "*", ACLOperation.ALL, ACLPermissionType.ALLOW, pattern),
        ACL(f"User:{access.user}", "*", operation, ACLPermissionType.DENY, pattern),
    ]
    there = ACLFilter(None, "*", ACLOperation.ANY, ACLPermissionType.ANY, pattern)
    with contextlib.closing(connect(KafkaAdminClient, access)) as admin:
        admin.create_acls(rules)
        await_true(lambda: len(admin.describe_acls(there)[0]) == len(rules), within_s=5)
        try:
            yield
        finally:
            admin.delete_acls([there])


def stored(access: RedisAccess, post_id: str) -> bool:
    login = {"username": access.user, "password": access.password}
    with Redis.from_url(access.url, ssl_ca_certs=str(access.ca), **login) as client:
        return client.hget(f"tests:emotion:{post_id}", "emotion") is not None


def assert_no_secret(worker: RunningWorker) -> None:
    said = worker.log.read_text()
    settings = worker.settings
    for secret in (settings.kafka_password, settings.redis_password):
        assert secret.get_secret_value() not in said
    assert not any(text in said for text in TEXTS), "what posts say, at debug level"
