"""Poison, malformed records of every kind, damaged recordings, and clocks that are wrong."""

import asyncio
import json
import random
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from accounts import CLIPS, ROW_S, Ledger, NoteRow, Traffic, read_to_the_end, settle, sized
from aiokafka import AIOKafkaProducer
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from support import Broker, RunningWorker, await_true, running_worker, with_broken_model

from emostream.connectors.connecting import connect
from emostream.connectors.messages import MOST_CLIP_BYTES, MOST_POST_BYTES, Post, encode_post
from emostream.connectors.producer import RecordProducer
from emostream.streams.settings import Settings


def test_poison(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    """One post in a thousand makes the model raise (broken_model); it has a clip, as every tenth has."""
    count, every = int(sized(10_000, 400)), int(sized(1_000, 200))
    poisoned = range(140, count, every)

    def text(number: int) -> str:
        return f"{'POISON ' * (number in poisoned)}what a day ({number})"

    environment = {"PYTHONPATH": with_broken_model()}
    with running_worker(settings, tmp_path / "log", environment=environment) as worker:
        with Traffic(settings, count, text=text) as traffic:
            ledger = traffic.settle(within_s=ROW_S)
        assert worker.metric("emostream_gpu_worker_restarts_total") == 0
        said = worker.log.read_text()
        assert "the model raised" in said
        assert "POISON" not in said
    account = note_row(f"one post in {every} makes the model raise", broker.name, ledger)
    assert ledger.dead == {("text", traffic.posts[number]) for number in poisoned}, "their clips are answered"
    assert account.answers == count + len(traffic.clips) - len(poisoned)
    assert set(ledger.reasons.values()) == {"scoring_failed"}


NASTY_TEXTS = (
    "\u200b\u200c\u200d\ufeff", "\u202eright to left\u202c", "مرحبا بالعالم", "a\u0000b", "\x1b[31mred\x1b[0m\x07",
    "Z̸̢̛a̷l̶g̵o̸ " * 40, "👩‍👩‍👧‍👦" * 300, "\U000e0041\U000e0042", "\ufffe\uffff", "💩", "a" * 60_000, "\n" * 5_000,
    "'; DROP TABLE posts; --",
    "${jndi:ldap://x}", "../../etc/passwd", "%s%n%x", "NaN", "null", "ﷺ" * 3_000, "\u0301" * 5_000, "🇦" * 999,
)  # fmt: skip
"""Zero width, right to left, nulls, terminal escapes, stacked accents, joined emoji, tags, noncharacters, very long."""


def nasty_posts() -> list[bytes]:
    """Return values of posts that somebody was bound to send, well-formed or not."""
    whole = [encode_post(Post(id=f"nasty-{number}", text=text)) for number, text in enumerate(NASTY_TEXTS)]
    return [
        *whole,
        b"", b"null", b"[]", b"{}", b"0", b'"text"', b"\x00" * 100, b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}",
        b'{"id": "s", "text": "\\ud800 alone"}', b'{"id": "s", "text": "\xed\xa0\x80"}',
        b'{"id": "n", "text": "x", "lang": NaN}', b'{"id": "n", "text": "x", "topics": Infinity}',
        b'{"id": "twice", "id": "again", "text": "duplicate keys", "text": "twice"}',
        b'{"id": 5, "text": "a number for an id"}', b'{"id": "x", "text": ["a list"]}', b'{"id": "", "text": "x"}',
        b'{"id": "deep", "text": "x", "more": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b"[" * 60_000, b'{"a":' * 10_000, b'{"id": "x", "text": "cut o',
        b'{"id": "t", "text": "x", "created_at": "0000-00-00"}',
        b'{"id": "t", "text": "x", "created_at": "2026-13-45T99:99:99Z"}',
        b'{"id": "big", "text": "' + b"x" * MOST_POST_BYTES + b'"}',
        b'{"id": "line", "text": "' + b"x" * (1024 * 1024 - 100) + b'"}',
        json.dumps({"id": "w" * 300, "text": "x"}).encode(), json.dumps({"id": "\u0000", "text": "x"}).encode(),
        json.dumps({"id": "r", "text": "x", "source": ":" * 128, "author": "\u202e" * 256}).encode(),
    ]  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
almost_posts = st.fixed_dictionaries(
    {"id": st.text(max_size=300) | json_values, "text": st.text(max_size=200) | json_values},
    optional={
        name: st.text(max_size=300) | json_values
        for name in ("source", "author", "lang", "created_at", "topics", "clip", "v")
    },
).map(lambda post: json.dumps(post, ensure_ascii=False).encode(errors="surrogatepass"))
anything = st.one_of(
    almost_posts,
    almost_posts.flatmap(lambda value: st.integers(0, len(value)).map(lambda end: value[:end])),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
)


def drawn(strategy: st.SearchStrategy[bytes], count: int) -> list[bytes]:
    """Return so many examples of a strategy, the same ones each time."""
    values: list[bytes] = []

    @seed(6)
    @hypothesis_settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(value: bytes) -> None:
        values.append(value)

    draw()
    return values


def damaged_recordings(count: int) -> list[bytes]:
    """Return recordings whose headers say something else than they did: bits flipped, cut, lengthened, swapped."""
    chance = random.Random(6)
    made: list[bytes] = [b"", b"\x00", b"OggS", b"RIFF\xff\xff\xff\xffWAVEfmt ", bytes(MOST_CLIP_BYTES), CLIPS[0]]
    while len(made) < count:
        clip = bytearray(chance.choice(CLIPS))
        for _ in range(chance.randint(1, 8)):
            clip[chance.randrange(min(len(clip), 300))] = chance.randrange(256)
        if chance.random() < 0.3:
            clip = clip[: chance.randrange(len(clip))]
        if chance.random() < 0.1:
            clip += chance.randbytes(5_000)
        made.append(bytes(clip))
    return made


def test_malformed(shared_worker: RunningWorker, broker: Broker, note_row: NoteRow) -> None:
    """Whatever is sent is answered or dead, under the key or the id that it came with; the worker notices nothing."""
    worker, settings, run = shared_worker, shared_worker.settings, uuid.uuid4().hex[:8]
    posts = [*nasty_posts(), *drawn(anything, int(sized(10_000, 700)))]
    clips = damaged_recordings(int(sized(1_000, 80)))
    before, restarts = handled(worker), worker.metric("emostream_gpu_worker_restarts_total")
    with RecordProducer(settings.kafka_access) as producer:
        for number, value in enumerate(posts):
            producer.publish(settings.posts_topic, key=f"{run}-post-{number}", value=value)
        for number, clip in enumerate(clips):
            producer.publish(settings.clips_topic, key=f"{run}-clip-{number}", value=clip)
        producer.flush()
    await_true(lambda: handled(worker) - before >= len(posts) + len(clips), within_s=ROW_S)
    assert worker.metric("emostream_gpu_worker_restarts_total") == restarts
    keys = [f"{run}-post-{number}" for number in range(len(posts))]

    def look() -> Ledger:
        """Read the outputs. A post is answered under the id in its value; what has none is dead under its key."""
        ledger = Ledger(set(keys), {f"{run}-clip-{number}" for number in range(len(clips))})
        read_to_the_end(settings, ledger)
        answered = {id_ for half, id_ in ledger.answered if half == "text"}
        by_key = zip(keys, posts, strict=True)
        ledger.answered |= {("text", key) for key, value in by_key if readable_id(value) in answered}
        return ledger

    # What was delivered again was counted twice: the last may still be under way.
    await_true(lambda: not look().missing, within_s=60, what=lambda: f"lost: {sorted(look().missing)[:10]}")
    await_true(lambda: worker.metric("emostream_uncommitted_seconds") == 0, within_s=30)
    ledger = look()
    account = note_row(f"{len(posts)} malformed posts, {len(clips)} damaged recordings", broker.name, ledger)
    assert account.dead_letters > 100
    said = worker.log.read_text()
    assert "Traceback" not in said
    assert not re.search("DROP TABLE|jndi", said), "the text of a post is never logged"


def handled(worker: RunningWorker) -> float:
    """Return how many records are behind it: each is one answer here, or one dead letter."""
    return worker.metric("emostream_answers_total") + worker.metric("emostream_dead_letters_total")


def readable_id(value: bytes) -> str | None:
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return read.get("id") if isinstance(read, dict) and isinstance(read.get("id"), str) else None


class RawName(str):
    """A header's name whose bytes are no UTF-8."""

    def encode(self, *_: Any) -> bytes:
        return b"na\xffme"


def test_header_names_that_are_no_utf8(shared_worker: RunningWorker, broker: Broker, note_row: NoteRow) -> None:
    settings, run = shared_worker.settings, uuid.uuid4().hex[:8]
    ids = [f"{run}-{number}" for number in range(50)]
    # Headers that the worker itself notes down, made by a stranger, are the stranger's.
    forged = [("emostream-whole-bytes", b"many"), ("emostream-unreadable", b"no")]
    with RecordProducer(settings.kafka_access) as producer:
        for number, id_ in enumerate(ids):
            value = encode_post(Post(id=id_, text="what a day")) if number % 5 else b"no post"
            producer.publish(settings.posts_topic, key=id_, value=value, headers=[(RawName("x"), b"\xff"), *forged])
        producer.flush()
    ledger = settle(settings, ids)
    assert shared_worker.process.poll() is None
    account = note_row("header names that are no UTF-8", broker.name, ledger)
    assert account.dead_letters == 10


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed(shared_worker: RunningWorker, broker: Broker, note_row: NoteRow, codec: str) -> None:
    """Posts in each of Kafka's codecs, and lines of 10 MB that are small while they are compressed."""
    settings, run = shared_worker.settings, uuid.uuid4().hex[:8]
    values = {f"{run}-{n}": encode_post(Post(id=f"{run}-{n}", text=f"what a day ({n})")) for n in range(40)}
    lines = {f"{run}-line-{n}": b'{"id": "line", "text": "' + b"x" * 10_000_000 + b'"}' for n in range(5)}

    async def publish() -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.kafka, compression_type=codec, acks="all", max_request_size=20_000_000
        )
        await producer.start()
        for key, value in {**values, **lines}.items():
            await producer.send_and_wait(settings.posts_topic, value=value, key=key.encode())
        await producer.stop()

    asyncio.run(publish())
    ledger = settle(settings, {*values, *lines})
    assert shared_worker.process.poll() is None
    account = note_row(f"posts in {codec}, lines of 10 MB among them", broker.name, ledger)
    assert {id_ for _, id_ in ledger.dead if id_ in lines} == set(lines)
    assert {ledger.reasons["text", id_] for id_ in lines} == {"too_large"}
    assert account.answers == len(values)


DAY_MS = 24 * 3600 * 1000
CLOCKS_MS = (0, 1, -1, 978_307_200_000, 30 * DAY_MS, 4_102_444_800_000, 253_402_300_800_000, 2**53)
"""1970, a millisecond later, unknown, 2001, a month, 2100, the year 10000, as far as a double counts."""


def test_clocks(shared_worker: RunningWorker, broker: Broker, note_row: NoteRow) -> None:
    """Every other post has a clip, whose clock is wrong in another way."""
    settings = shared_worker.settings
    if broker.name == "kafka":
        take_any_time(settings)
    posts, clips = publish_at(settings, CLOCKS_MS)
    ledger = settle(settings, posts, clips)
    assert shared_worker.process.poll() is None
    note_row("clocks: timestamps of 1970 to the year 10000", broker.name, ledger)


def take_any_time(settings: Settings) -> None:
    """Have Kafka take records of any timestamp; by itself it refuses those of the far future."""
    any_time = {"message.timestamp.after.max.ms": str(2**63 - 1)}
    topics = [
        ConfigResource(ConfigResourceType.TOPIC, name, configs=any_time)
        for name in (settings.posts_topic, settings.clips_topic)
    ]
    admin = connect(KafkaAdminClient, settings.kafka_access)
    try:
        admin.alter_configs(topics)
    finally:
        admin.close()


def publish_at(settings: Settings, times_ms: Sequence[int]) -> tuple[list[str], list[str]]:
    """Publish posts and clips with timestamps, and return the ids of both."""
    run, times_ms = uuid.uuid4().hex[:8], [*times_ms, int(time.time() * 1000)] * 5
    posts = [f"{run}-{number}" for number in range(len(times_ms))]
    clips = posts[::2]
    producer = connect(KafkaProducer, settings.kafka_access, acks="all")
    for id_, post_ms, clip_ms in zip(posts, times_ms, reversed(times_ms), strict=True):
        value = encode_post(Post(id=id_, text="what a day", clip=id_ in clips))
        producer.send(settings.posts_topic, key=id_.encode(), value=value, timestamp_ms=post_ms).get(30)
        if id_ in clips:
            producer.send(settings.clips_topic, key=id_.encode(), value=CLIPS[0], timestamp_ms=clip_ms).get(30)
    producer.close()
    return posts, clips
