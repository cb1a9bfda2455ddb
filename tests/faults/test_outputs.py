"""`emotions` refuses: a message too large, a topic that is gone, no authorisation. On an Apache Kafka of its own."""

import datetime as dt
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import ROW_S, NoteRow, Traffic, assert_each_counts_once, settle, sized
from faulty import Cluster, running_cluster
from support import (
    KAFKA_SCRIPT,
    PARTITIONS,
    Broker,
    await_true,
    command,
    emostream,
    make_posts,
    make_settings,
    publish,
    publish_clips,
    running_worker,
)

from emostream.connectors.messages import DeadLetterHeaders, Post, encode_post
from emostream.connectors.producer import RecordProducer
from emostream.connectors.reader import read_spans
from emostream.connectors.topics import create_topics
from emostream.streams.settings import Settings
from emostream.streams.stack import Stack

pytestmark = [
    pytest.mark.skipif(not KAFKA_SCRIPT.is_file(), reason="no Apache Kafka to start and break is at hand"),
    pytest.mark.xdist_group("outputs"),  # they share it
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An Apache Kafka that no topic appears on by itself."""
    options = ("--set", "auto.create.topics.enable=false")
    with running_cluster(tmp_path_factory.mktemp("outputs") / "kafka", options=options) as running:
        yield running


@pytest.fixture
def own(cluster: Cluster, stack: Stack) -> Settings:
    """Settings for it, the topics created."""
    settings = make_settings(Broker("kafka", cluster.bootstrap), stack)
    create_topics(settings.kafka_access, settings.topics, partitions=PARTITIONS, replication=-1)
    return settings


def test_an_answer_too_large(cluster: Cluster, own: Settings, note_row: NoteRow, tmp_path: Path) -> None:
    """Answers carry the post's topics: some posts' answers do not fit, their neighbours' do."""
    limit = ("--alter", "--entity-type", "topics", "--entity-name", own.emotions_topic)
    cluster.tool("kafka-configs", *limit, "--add-config", "max.message.bytes=1500")
    small = [Post(id=f"small-{n}", text="what a day", source="tests") for n in range(int(sized(2_000, 200)))]
    # Compressed it must still be too large: words that repeat would fit.
    wide = [f"{n:x}".join(f"{(n * 7919 + k * 104729) % 2**40:010x}" for k in range(8)) for n in range(64)]
    large = [Post(id=f"large-{n}", text="what a day", topics=wide, source="tests") for n in range(10)]
    posts = [*small[:100], *large, *small[100:]]
    with running_worker(own, tmp_path / "log"):
        publish(own, posts)
        ledger = settle(own, {post.id for post in posts}, within_s=ROW_S)
    account = note_row("`emotions` refuses: message too large", "kafka", ledger)
    assert account.dead_letters == len(large)
    assert account.duplicates <= len(small), "what stands beside a large one may be written twice, not again and again"
    assert {ledger.reasons["text", post.id] for post in large} == {"record_refused"}


def test_a_topic_that_is_gone(cluster: Cluster, own: Settings, note_row: NoteRow, tmp_path: Path) -> None:
    """While the topic is missing nothing is acknowledged; what it held went with it, by the operator's own hand."""
    with running_worker(own, tmp_path / "log") as worker:
        with Traffic(own, 50, name="before", clip_every=0) as before:
            assert before.settle().account.lost == 0
        await_true(lambda: worker.metric("emostream_uncommitted_seconds") == 0, within_s=30)
        cluster.tool("kafka-topics", "--delete", "--topic", own.emotions_topic)
        with Traffic(own, int(sized(2_000, 200)), name="during") as during:
            await_true(lambda: worker.metric("emostream_sink_errors_total", sink="kafka") > 0, within_s=90)
            create_topics(own.kafka_access, [own.emotions_topic], partitions=PARTITIONS, replication=-1)
            ledger = during.settle(within_s=ROW_S)
    note_row("`emotions` refuses: topic missing, then there again", "kafka", ledger)


def test_dead_letters_too_large(cluster: Cluster, own: Settings, note_row: NoteRow, tmp_path: Path) -> None:
    """A topic of dead letters that takes little gets the beginning of what it cannot take."""
    limit = ("--alter", "--entity-type", "topics", "--entity-name", own.dead_letters_topic)
    cluster.tool("kafka-configs", *limit, "--add-config", "max.message.bytes=20000")
    noise = random.Random(1)
    clips = [(f"clip-{n}", noise.randbytes(900_000)) for n in range(5)]
    with running_worker(own.model_copy(update={"join_grace_s": 0.5}), tmp_path / "log"):
        publish_clips(own, clips)
        ledger = settle(own, (), [id_ for id_, _ in clips], within_s=60)
    account = note_row("`dead-letters` refuses: message too large", "kafka", ledger)
    assert account.dead_letters == len(clips)


def test_a_replay_goes_on_past_what_kafka_refuses(cluster: Cluster, own: Settings) -> None:
    """It is named; what went beside it is marked, and does not go again."""
    limit = ("--alter", "--entity-type", "topics", "--entity-name", own.posts_topic)
    cluster.tool("kafka-configs", *limit, "--add-config", "max.message.bytes=5000")
    why = DeadLetterHeaders(
        reason="not_json", error="because", origin=f"{own.posts_topic}/0/0", failed_at=dt.datetime.now(dt.UTC)
    )
    with RecordProducer(own.kafka_access) as producer:
        for number in range(6):  # they fit into one batch, which Kafka refuses whole, and kafka-python splits
            value = random.Random(number).randbytes(6_000) if number in (2, 3) else b"oops"
            producer.publish(own.dead_letters_topic, key=str(number), value=value, headers=why.encode(), partition=0)
        producer.flush()
    done = emostream(own, "dlq", "replay", "--all", "--yes")
    assert done.returncode == 1
    assert "0/2 was not taken by Kafka" in done.stderr
    assert "0/3 was not taken by Kafka" in done.stderr
    assert "4 of 6 records replayed and confirmed" in done.stderr
    again = emostream(own, "dlq", "replay", "0/2", "0/77", "--yes")
    assert again.returncode == 1
    assert "no dead letter stands at 0/77" in again.stderr
    assert "to be replayed: 2 dead letters" in emostream(own, "dlq", "replay", "--all", "--yes").stderr
    assert sorted((record.key, record.value) for record in read_spans(own.kafka_access, own.posts_topic)) == [
        (b"%d" % number, b"oops") for number in (0, 1, 4, 5)
    ]


def test_a_pipe_is_read_no_further_than_what_kafka_refuses(cluster: Cluster, own: Settings) -> None:
    """Whatever is read behind it would be thrown away, for as long as the pipe flows."""
    limit = ("--alter", "--entity-type", "topics", "--entity-name", own.posts_topic)
    cluster.tool("kafka-configs", *limit, "--add-config", "max.message.bytes=5000")
    small = encode_post(make_posts(1)[0]) + b"\n"
    large = encode_post(Post(id="large", text=random.Random(1).randbytes(6_000).hex())) + b"\n"
    line, variables = command(own, "ingest", "jsonl", "-")
    with subprocess.Popen(line, env=variables, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(small + large)
        assert process.wait(60) == 1, "it waits for what comes next"
        said = " ".join(process.stderr.read().decode().split())
    assert "stopped at line 2; not every post up to it was delivered" in said
    assert re.search(r"\d of 2 records were not delivered: .*TooLarge", said), said


def test_no_authorisation(stack: Stack, note_row: NoteRow, tmp_path: Path) -> None:
    with running_cluster(tmp_path / "kafka", options=("--secure",)) as cluster:
        settings = make_settings(
            Broker("kafka", cluster.bootstrap),
            stack,
            kafka_protocol="SASL_SSL",
            kafka_ca=Path(cluster.facts["ca"]),
            kafka_mechanism="SCRAM-SHA-512",
            kafka_user=cluster.facts["user"],
            kafka_password=cluster.facts["password"],
        )
        create_topics(settings.kafka_access, settings.topics, partitions=PARTITIONS, replication=-1)
        rule = ("--deny-principal", f"User:{cluster.facts['user']}", "--operation", "Write")
        count = int(sized(2_000, 200))
        with running_worker(settings, tmp_path / "log") as worker:
            cluster.tool("kafka-acls", "--add", *rule, "--topic", settings.emotions_topic)
            with Traffic(settings, count) as traffic:
                await_true(lambda: worker.metric("emostream_sink_errors_total", sink="kafka") > 0, within_s=60)
                assert worker.metric("emostream_answers_total") == 0
                cluster.tool("kafka-acls", "--remove", "--force", *rule, "--topic", settings.emotions_topic)
                ledger = traffic.settle(within_s=ROW_S)
            assert_each_counts_once(settings, worker, count)
    note_row("`emotions` refuses: not authorised, then authorised", "kafka", ledger)
