"""One contract for every answer sink, on real services; and what only one of them promises."""

import asyncio
import datetime as dt
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import ProducerClosed
from answers import INGESTED, make_answer, written
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from support import await_true, collect

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.errors import RecordRefused, SinkUnavailable
from emostream.connectors.kafka_sink import KafkaDeadLetters, KafkaSink, KafkaWriter
from emostream.connectors.messages import (
    MOST_CLIP_BYTES,
    DeadLetter,
    DeadLetterHeaders,
    Emotion,
    decode_emotion,
    encode_emotion,
)
from emostream.connectors.producer import MOST_REQUEST_BYTES
from emostream.connectors.redis_sink import RedisSink
from emostream.connectors.sinks import Answer, AnswerSink, AnswerStore, Known, ListSink
from emostream.streams.settings import Settings
from emostream.streams.stack import free_port, running_redis


@dataclass
class SinkUnderTest:
    """A sink, and how to see what stands in it: the newest answer of each post."""

    sink: AnswerSink
    read: Callable[[int], Mapping[str, Emotion]]


def _list_sink(_settings: Settings) -> SinkUnderTest:
    sink = ListSink()
    return SinkUnderTest(sink, lambda _: sink.answers)


def _kafka_sink(settings: Settings) -> SinkUnderTest:
    writer = KafkaWriter(topic=settings.emotions_topic, access=settings.kafka_access)

    def read(count: int) -> Mapping[str, Emotion]:
        received = collect(settings, lambda records: len({r.key for r in records}) >= count, within_s=20)
        return {answer.post_id: answer for r in received if (answer := decode_emotion(r.value or b""))}

    return SinkUnderTest(KafkaSink(writer), read)


def _redis_sink(settings: Settings) -> SinkUnderTest:
    url = settings.redis.get_secret_value()

    def read(_count: int) -> Mapping[str, Emotion]:
        with Redis.from_url(url) as redis:
            keys = redis.keys(f"{settings.redis_prefix}emotion:*")
            answers = [decode_emotion(redis.hget(key, "answer")) for key in keys]
        return {answer.post_id: answer for answer in answers}

    return SinkUnderTest(RedisSink(AsyncRedis.from_url(url), prefix=settings.redis_prefix, keep_s=600), read)


@pytest.fixture(params=[_list_sink, _kafka_sink, _redis_sink], ids=["list", "kafka", "redis"])
async def under_test(request: pytest.FixtureRequest, settings: Settings):
    made = request.param(settings)
    yield made
    await made.sink.close()


async def test_what_is_written_is_there(under_test: SinkUnderTest) -> None:
    answers = {f"p{i}": make_answer(f"p{i}", confidence=i / 100) for i in range(50)}
    await under_test.sink.write(written(*answers.values()))
    assert dict(under_test.read(50)) == answers


async def test_writing_again_changes_nothing(under_test: SinkUnderTest) -> None:
    answers = [make_answer("a"), make_answer("b", emotion="fear")]
    await under_test.sink.write(written(*answers))
    await under_test.sink.write(written(*answers))
    assert dict(under_test.read(2)) == {"a": answers[0], "b": answers[1]}


async def test_nothing_is_a_write_too(under_test: SinkUnderTest) -> None:
    await under_test.sink.write([])


async def test_any_id_and_source_can_be_written(under_test: SinkUnderTest) -> None:
    odd = {name: make_answer(name, source=name) for name in ("a:b", "{x}", "ä 🎉", "*", "\n", "a" * 256)}
    odd = {name: msgspec.structs.replace(a, source=(a.source or "")[:128]) for name, a in odd.items()}
    await under_test.sink.write(written(*odd.values()))
    assert dict(under_test.read(len(odd))) == odd


@pytest.mark.parametrize("kind", ["kafka", "redis"])
async def test_a_service_that_is_away_is_unavailable(kind: str) -> None:
    port = free_port(0)
    writer = KafkaWriter(topic="t", access=KafkaAccess(f"127.0.0.1:{port}"))
    sink: AnswerSink = (
        KafkaSink(writer) if kind == "kafka" else RedisSink(AsyncRedis(host="127.0.0.1", port=port), keep_s=60)
    )
    with pytest.raises(SinkUnavailable):
        await sink.write(written(make_answer("a")))
    await sink.close()


@pytest.fixture(params=[_list_sink, _redis_sink], ids=["list", "redis"])
async def store(request: pytest.FixtureRequest, settings: Settings):
    made = request.param(settings).sink
    yield made
    await made.close()


async def test_a_store_tells_what_it_knows_of_each_id(store: AnswerStore) -> None:
    text, both = make_answer("a"), make_answer("b", modalities=["text", "voice"], revision=2)
    await store.write(written(text, both))
    nothing, of_a, of_b = await store.look_up(["c", "a", "b"])
    ms = round(INGESTED.timestamp() * 1000)
    assert nothing == Known()
    assert of_a == Known(emotion=text, post_ms=ms, text_vector=b"text of a")
    assert of_b == Known(emotion=both, post_ms=ms, clip_ms=ms, text_vector=b"text of b", voice_vector=b"voice of b")
    assert await store.look_up([]) == []


class TestRedis:
    """What Redis keeps beyond the answer itself."""

    async def test_vectors_of_another_model_are_of_no_use(self, settings: Settings) -> None:
        url = settings.redis.get_secret_value()
        old, new = (
            RedisSink(AsyncRedis.from_url(url), prefix=settings.redis_prefix, keep_s=600, model=f"m/{version}")
            for version in (1, 2)
        )
        await old.write(written(make_answer("a")))
        (known,) = await new.look_up(["a"])
        assert (known.emotion, known.text_vector) == (make_answer("a"), None)
        voice = make_answer("a", modalities=["text", "voice"])
        await new.write([Answer(emotion=voice, clip_ms=1, voice_vector=b"new")])
        (known,) = await new.look_up(["a"])
        assert (known.text_vector, known.voice_vector) == (None, b"new"), "of two models, nothing is mixed"
        await old.close()
        await new.close()

    async def test_vectors_live_as_long_as_a_partner_may_be_late(
        self, sink: RedisSink, redis: Redis, settings: Settings
    ) -> None:
        await sink.write(written(make_answer("a")))
        assert 590 < redis.ttl(f"{settings.redis_prefix}half:a") <= 600
        redis.delete(f"{settings.redis_prefix}half:a")
        (known,) = await sink.look_up(["a"])
        assert (known.emotion, known.text_vector) == (make_answer("a"), None)

    async def test_an_answer_that_lacks_what_the_other_has_changes_nothing(
        self, sink: RedisSink, redis: Redis, settings: Settings
    ) -> None:
        """A voice alone does not replace a text alone: neither is richer."""
        await sink.write(written(make_answer("a")))
        later = INGESTED + dt.timedelta(hours=1)
        await sink.write(written(make_answer("a", modalities=["voice"], emotion="fear", ingested_at=later)))
        stored = redis.hget(f"{settings.redis_prefix}emotion:a", "answer")
        assert decode_emotion(stored.encode()) == make_answer("a")

    async def test_keys_of_other_types_say_nothing(self, sink: RedisSink, redis: Redis, settings: Settings) -> None:
        redis.set(f"{settings.redis_prefix}emotion:a", "not ours")
        redis.lpush(f"{settings.redis_prefix}half:b", "not ours")
        redis.hset(f"{settings.redis_prefix}emotion:c", "answer", "no json")
        odd = encode_emotion(make_answer("d")).replace(b'["text"]', b'["voice","text"]')
        redis.hset(f"{settings.redis_prefix}emotion:d", "answer", odd)
        redis.hset(f"{settings.redis_prefix}emotion:e", "answer", b"\xff")
        redis.hset(f"{settings.redis_prefix}emotion:f", "answer", b'{"x":' + b"[" * 5_000)
        assert await sink.look_up(["a", "b", "c", "d", "e", "f"]) == [Known()] * 6

    @pytest.fixture
    async def sink(self, settings: Settings):
        redis = AsyncRedis.from_url(settings.redis.get_secret_value())
        sink = RedisSink(redis, prefix=settings.redis_prefix, keep_s=600)
        yield sink
        await sink.close()

    @pytest.fixture
    def redis(self, settings: Settings):
        with Redis.from_url(settings.redis.get_secret_value(), decode_responses=True) as client:
            yield client

    async def test_a_post_counts_once_in_its_minute(self, sink: RedisSink, redis: Redis, settings: Settings) -> None:
        await sink.write(written(make_answer("a"), make_answer("b"), make_answer("c", emotion="anger")))
        await sink.write(written(make_answer("a"), make_answer("b")))
        trend = redis.hgetall(f"{settings.redis_prefix}trend:2026-03-01T12:30:tests")
        assert trend == {"joy": "2", "anger": "1"}
        assert redis.xlen(f"{settings.redis_prefix}recent") == 3

    async def test_everything_expires_but_the_capped_stream(
        self, sink: RedisSink, redis: Redis, settings: Settings
    ) -> None:
        await sink.write(written(make_answer("a")))
        keys = redis.keys(f"{settings.redis_prefix}*")
        assert {key for key in keys if redis.ttl(key) < 0} == {f"{settings.redis_prefix}recent"}

    async def test_a_poorer_answer_does_not_replace_a_richer_one(
        self, sink: RedisSink, redis: Redis, settings: Settings
    ) -> None:
        rich = make_answer("a", modalities=["text", "voice"], emotion="fear", revision=2)
        await sink.write(written(rich))
        await sink.write(written(make_answer("a", ingested_at=INGESTED + dt.timedelta(hours=1))))
        stored = redis.hget(f"{settings.redis_prefix}emotion:a", "answer")
        assert decode_emotion(stored.encode()) == rich

    async def test_a_richer_answer_moves_the_count(self, sink: RedisSink, redis: Redis, settings: Settings) -> None:
        await sink.write(written(make_answer("a")))
        await sink.write(written(make_answer("a", modalities=["text", "voice"], emotion="fear", revision=2)))
        trend = redis.hgetall(f"{settings.redis_prefix}trend:2026-03-01T12:30:tests")
        assert trend == {"joy": "0", "fear": "1"}

    async def test_subscribers_hear_of_each_answer_once(
        self, sink: RedisSink, redis: Redis, settings: Settings
    ) -> None:
        with redis.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(f"{settings.redis_prefix}emotions")
            await_true(lambda: redis.pubsub_numsub(f"{settings.redis_prefix}emotions")[0][1] == 1, within_s=5)
            await sink.write(written(make_answer("a")))
            await sink.write(written(make_answer("a"), make_answer("b")))
            heard = [channel.get_message(timeout=2) for _ in range(3)]  # the first is the subscription's own
            assert [decode_emotion(m["data"].encode()).post_id for m in heard if m] == ["a", "b"]
            assert channel.get_message(timeout=0.2) is None

    async def test_a_key_that_somebody_else_uses_refuses_its_post_alone(
        self, sink: RedisSink, redis: Redis, settings: Settings
    ) -> None:
        redis.set(f"{settings.redis_prefix}emotion:b", "not ours")
        with pytest.raises(RecordRefused) as refused:
            await sink.write(written(make_answer("a"), make_answer("b"), make_answer("c")))
        assert refused.value.positions == (1,)

    async def test_a_shared_key_of_another_type_stores_nothing(
        self, sink: RedisSink, redis: Redis, settings: Settings
    ) -> None:
        redis.set(f"{settings.redis_prefix}recent", "not ours")
        with pytest.raises(SinkUnavailable, match="belongs to somebody else"):
            await sink.write(written(make_answer("a")))
        assert not redis.exists(f"{settings.redis_prefix}emotion:a")

    async def test_flushed_scripts_are_loaded_again(self, sink: RedisSink, redis: Redis, settings: Settings) -> None:
        await sink.write(written(make_answer("a")))
        redis.script_flush()
        await sink.write(written(make_answer("b")))
        assert redis.exists(f"{settings.redis_prefix}emotion:b")


async def begun(settings: Settings) -> tuple[KafkaWriter, AIOKafkaProducer]:
    """Return a writer that has written a record, and the producer that it did so with."""
    writer = KafkaWriter(topic=settings.emotions_topic, access=settings.kafka_access)
    await writer.write([(b"a", b"value", [])])
    assert writer._producer is not None
    return writer, writer._producer


class TestKafka:
    """What only Kafka does."""

    async def test_a_producer_that_died_while_idle_is_replaced(self, settings: Settings) -> None:
        writer = KafkaWriter(topic=settings.emotions_topic, access=settings.kafka_access)
        sink = KafkaSink(writer)
        await sink.write(written(make_answer("a")))
        await writer._producer._sender.close()  # its task is gone, and nobody was told
        await writer._producer.stop()
        with pytest.raises(SinkUnavailable):
            await sink.write(written(make_answer("b")))
        await sink.write(written(make_answer("b")))
        await sink.close()
        received = collect(settings, lambda records: {b"a", b"b"} <= {r.key for r in records}, within_s=20)
        assert {record.key for record in received} == {b"a", b"b"}

    async def test_a_write_does_not_wait_for_a_producer_that_another_write_let_go_of(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It waits for what is known of its topic when the client closes, and nobody will tell it any more."""
        writer, producer = await begun(settings)
        asked = asyncio.Event()

        async def never(_topic: str) -> None:
            asked.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(producer.client, "_wait_on_metadata", never)
        writing = asyncio.create_task(writer.write([(b"b", b"value", [])]))
        await asked.wait()
        await writer._drop(producer)
        async with asyncio.timeout(20):
            with pytest.raises(SinkUnavailable):
                await writing
        await writer.write([(b"b", b"value", [])])
        await writer.close()

    async def test_nothing_is_sent_by_a_producer_that_another_write_let_go_of(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may not know the topic yet, and aiokafka would wait for ever."""
        writer, producer = await begun(settings)
        await writer._drop(producer)
        monkeypatch.setattr(producer.client, "_wait_on_metadata", lambda _topic: asyncio.Event().wait())
        async with asyncio.timeout(20):
            (outcome,) = await writer._deliver(producer, [(b"b", b"value", [])])
        assert isinstance(outcome, ProducerClosed)
        await writer.close()

    async def test_what_is_being_flushed_is_not_ended_by_another_write_that_fails(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two writes failed by one refusal let go of a producer twice; a third is confirmed by its flush."""
        writer, producer = await begun(settings)
        confirming = asyncio.Event()
        send, stop = producer.send, producer.stop

        async def slow(*arguments: Any, **named: Any) -> Any:
            await confirming.wait()
            return await send(*arguments, **named)

        async def flushing() -> None:
            await writing
            await stop()

        monkeypatch.setattr(producer, "send", slow)
        monkeypatch.setattr(producer, "stop", flushing)
        writing = asyncio.create_task(writer.write([(b"b", b"value", [])]))
        await asyncio.sleep(0.1)
        letting_go = asyncio.create_task(writer._drop(producer))
        await asyncio.sleep(0.1)
        monkeypatch.setattr(producer, "stop", stop)  # which ends at once, as any stop after the first
        await writer._drop(producer)
        confirming.set()
        async with asyncio.timeout(20):
            await writing
            await letting_go
        await writer.close()

    async def test_of_many_answers_only_the_one_too_large_is_refused(self, settings: Settings) -> None:
        sink = KafkaSink(KafkaWriter(topic=settings.emotions_topic, access=settings.kafka_access))
        large = make_answer("large", flags=[uuid.uuid4().hex * 40_000])
        with pytest.raises(RecordRefused) as refused:
            await sink.write(written(make_answer("a"), large, make_answer("c")))
        assert refused.value.positions == (1,)
        await sink.close()


class TestDeadLetters:
    """Dead letters keep the record as it was."""

    async def test_key_value_and_headers_are_kept(self, settings: Settings) -> None:
        writer = KafkaWriter(topic=settings.dead_letters_topic, access=settings.kafka_access)
        sink = KafkaDeadLetters(writer)
        why = DeadLetterHeaders(reason="not_json", error="because", origin="posts/3/7", failed_at=INGESTED)
        await sink.write([DeadLetter(b"k\xff", b"\x00v", (("trace", b"\x01"),), why), DeadLetter(None, None, (), why)])
        await sink.close()
        received = collect(settings, lambda records: len(records) == 2, within_s=20)
        full = next(record for record in received if record.key)
        assert (full.key, full.value) == (b"k\xff", b"\x00v")
        assert full.headers == {
            "trace": b"\x01",
            "reason": b"not_json",
            "error": b"because",
            "origin": b"posts/3/7",
            "failed_at": b"2026-03-01T12:30:15Z",
        }

    async def test_a_letter_too_large_for_kafka_is_cut_and_says_so(self, settings: Settings) -> None:
        writer = KafkaWriter(topic=settings.dead_letters_topic, access=settings.kafka_access)
        sink = KafkaDeadLetters(writer)
        value = uuid.uuid4().bytes * (MOST_REQUEST_BYTES // 16)
        why = DeadLetterHeaders(reason="too_large", error="big", origin="posts/0/0", failed_at=INGESTED)
        small, clip = DeadLetter(b"s", b"small", (), why), DeadLetter(b"c", value[:MOST_CLIP_BYTES], (), why)
        await sink.write([small, DeadLetter(b"k", value, (), why), clip])
        await sink.close()
        received = collect(settings, lambda records: {b"s", b"k", b"c"} <= {r.key for r in records}, within_s=20)
        letters = {record.key: record for record in received}
        assert letters[b"k"].value == value[: 512 * 1024]
        assert letters[b"k"].headers["error"] == b"big"
        assert letters[b"k"].headers["whole_bytes"] == b"1114112"
        assert letters[b"c"].value == value[:MOST_CLIP_BYTES], "the largest clip is kept whole"


async def test_redis_that_comes_back_empty_is_written_to_again() -> None:
    """A restart loses scripts and keys; the same sink goes on."""
    port = free_port(0)
    sink = RedisSink(AsyncRedis(host="127.0.0.1", port=port), keep_s=60)
    with running_redis(port):
        await sink.write(written(make_answer("a")))
    with pytest.raises(SinkUnavailable):
        await sink.write(written(make_answer("b")))
    with running_redis(port), Redis(host="127.0.0.1", port=port) as redis:
        await sink.write(written(make_answer("c")))
        assert redis.keys("emotion:*") == [b"emotion:c"]
    await sink.close()
