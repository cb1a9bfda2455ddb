"""Posts and clips meet in real workers, on real brokers and a real Redis, in whatever order they come, whoever dies."""

import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from redis import Redis
from support import (
    TEXTS,
    Broker,
    await_true,
    collect,
    emostream,
    make_settings,
    publish,
    publish_clips,
    running_worker,
)

from emostream.connectors.messages import MOST_CLIP_BYTES, Emotion, Post, decode_emotion
from emostream.connectors.reader import Received
from emostream.connectors.topics import TopicState, create_topics
from emostream.streams.settings import Settings
from emostream.streams.stack import Stack

CLIPS = [file.read_bytes() for file in sorted((Path(__file__).parents[2] / "docs/examples/clips").glob("*.ogg"))]
BOTH = ["text", "voice"]


def announced(id_: str, number: int = 0) -> Post:
    return Post(id=id_, text=TEXTS[number % len(TEXTS)], source="tests", clip=True)


def answers_of(settings: Settings, received: Sequence[Received]) -> dict[str, list[Emotion]]:
    """Return the answers of each id, in the order that they stand in `emotions`."""
    answers: dict[str, list[Emotion]] = {}
    for record in received:
        if record.topic == settings.emotions_topic:
            answer = decode_emotion(record.value or b"")
            answers.setdefault(answer.post_id, []).append(answer)
    return answers


def stored(settings: Settings, id_: str) -> Emotion:
    """Return the best answer that Redis has."""
    with Redis.from_url(settings.redis.get_secret_value()) as redis:
        return decode_emotion(redis.hget(f"{settings.redis_prefix}emotion:{id_}", "answer"))


def counted(settings: Settings) -> int:
    with Redis.from_url(settings.redis.get_secret_value(), decode_responses=True) as redis:
        trends = [redis.hvals(key) for key in redis.keys(f"{settings.redis_prefix}trend:*")]
    return sum(int(count) for trend in trends for count in trend)


def test_every_order_of_arrival(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"join_grace_s": 2.0})
    with running_worker(settings, tmp_path / "log") as worker:
        unheard = ("broken", "cut", "encrypted", "large")
        # Together, in both orders; a clip and a post that never come; a clip that cannot be heard, one cut short.
        publish_clips(settings, [("clip-first", CLIPS[0])])
        publish(settings, [announced(id_) for id_ in ("post-first", "clip-first", "no-clip", *unheard)])
        publish_clips(settings, [
            ("post-first", CLIPS[0]), ("no-post", CLIPS[1]), ("broken", b"no recording"), ("cut", CLIPS[2][:-2000]),
            ("encrypted", random.Random(1).randbytes(20_000)), ("large", CLIPS[0] + bytes(MOST_CLIP_BYTES)),
        ])  # fmt: skip
        publish(
            settings, [Post(id="plain", text="nothing announced", source="tests"), announced("late"), announced("2x")]
        )
        publish_clips(settings, [("2x", CLIPS[0])])
        first = {"clip-first", "post-first", "no-clip", "no-post", *unheard, "plain", "late", "2x"}
        collect(settings, lambda so_far: first <= set(answers_of(settings, so_far)))
        # After the grace: partners that come late, announced or not, and a second clip.
        publish_clips(settings, [("late", CLIPS[1]), ("plain", CLIPS[1]), ("2x", CLIPS[2])])
        publish(settings, [announced("no-post")])

        def all_joined(so_far: Sequence[Received]) -> bool:
            answers = answers_of(settings, so_far)
            late = [answers.get(id_, []) for id_ in ("late", "plain", "no-post", "2x")]
            return all(len(each) == 2 for each in late)

        received = collect(settings, all_joined)
        answers = answers_of(settings, received)
        # An answer is counted after it is in Redis, a moment after it is seen in Kafka.
        await_true(lambda: worker.metric("emostream_answers_total", path="fused") >= 7, within_s=20)
        assert worker.metric("emostream_answers_total", path="fused") == 7
        await_true(lambda: worker.metric("emostream_uncommitted_seconds") == 0, within_s=20)
        assert worker.metric("emostream_late_halves_total", outcome="joined") == 4
        assert worker.metric("emostream_audio_seconds_total") > 10
        assert worker.metric("emostream_join_wait_seconds_count", outcome="joined") >= 4

    def shape(id_: str) -> list[tuple[list[str], int, list[str]]]:
        ours = ("clip_failed", "clip_missing", "partner_unknown")
        return [(a.modalities, a.revision, [f for f in a.flags if f in ours]) for a in answers[id_]]

    assert shape("clip-first") == shape("post-first") == [(BOTH, 1, [])]
    assert shape("no-clip") == [(["text"], 1, ["clip_missing"])]
    assert all(shape(id_) == [(["text"], 1, ["clip_failed"])] for id_ in unheard)
    assert shape("late") == [(["text"], 1, ["clip_missing"]), (BOTH, 2, [])]
    assert shape("plain") == [(["text"], 1, []), (BOTH, 2, [])]
    assert shape("no-post") == [(["voice"], 1, []), (BOTH, 2, [])]
    assert shape("2x") == [(BOTH, 1, []), (BOTH, 2, [])]
    for id_, each in answers.items():
        assert stored(settings, id_) == each[-1]
    assert counted(settings) == len(answers), "each id counts once"
    dead = {r.key: r for r in received if r.topic == settings.dead_letters_topic}
    assert {key: letter.headers["reason"] for key, letter in dead.items()} == {
        b"broken": b"audio_undecodable",
        b"cut": b"audio_damaged",
        b"encrypted": b"audio_undecodable",
        b"large": b"too_large",
    }
    assert dead[b"broken"].headers["origin"].startswith(settings.clips_topic.encode())


def test_halves_that_wait_when_a_worker_is_killed_are_answered_by_the_next(settings: Settings, tmp_path: Path) -> None:
    patient = settings.model_copy(update={"join_grace_s": 30.0})
    lonely_posts = [announced(f"post-{i}", i) for i in range(10)]
    lonely_clips = [(f"clip-{i}", CLIPS[i % len(CLIPS)]) for i in range(10)]
    split = [f"split-{i}" for i in range(10)]
    with running_worker(patient, tmp_path / "first") as first:
        publish(settings, [*lonely_posts, *(announced(id_) for id_ in split)])
        publish_clips(settings, lonely_clips)
        await_true(lambda: first.metric("emostream_join_waiting") == 30, within_s=60)
        first.end(signal.SIGKILL)
    publish_clips(settings, [(id_, CLIPS[0]) for id_ in split])  # their posts wait in Kafka again
    with running_worker(settings.model_copy(update={"join_grace_s": 3.0}), tmp_path / "second"):
        wanted = {post.id for post in lonely_posts} | {id_ for id_, _ in lonely_clips} | set(split)

        def enough(so_far: Sequence[Received]) -> bool:
            answers = answers_of(settings, so_far)
            return wanted <= set(answers) and all(answers[id_][-1].modalities == BOTH for id_ in split)

        answers = answers_of(settings, collect(settings, enough))
    assert wanted == set(answers)
    assert {tuple(answers[post.id][-1].modalities) for post in lonely_posts} == {("text",)}
    assert {tuple(answers[id_][-1].modalities) for id_, _ in lonely_clips} == {("voice",)}
    assert all(answers[id_][-1].modalities == BOTH for id_ in split)


def test_workers_killed_while_pairs_flow_never_push_a_poorer_answer(settings: Settings, tmp_path: Path) -> None:
    """After a crash one half can come again whose partner's offset was committed: it must not be answered alone."""
    settings = settings.model_copy(update={"join_grace_s": 2.0})
    chance = random.Random(4)
    ids = [f"pair-{i}" for i in range(80)]
    # Among the pairs, posts whose clips never come hold back the commits of those behind them.
    lonely = [f"lonely-{i}" for i in range(20)]
    posts = [announced(id_, number) for number, id_ in enumerate([*ids, *lonely])]
    chance.shuffle(posts)
    clips = [(id_, CLIPS[number % len(CLIPS)]) for number, id_ in enumerate(ids)]
    chance.shuffle(clips)
    for start in range(0, 100, 20):  # halves come some seconds apart, as they do
        publish(settings, posts[start : start + 20])
        publish_clips(settings, clips[start : start + 20])
    for kill in range(2):
        with running_worker(settings, tmp_path / f"killed-{kill}") as worker:
            await_true(lambda: worker.metric("emostream_answers_total") >= 10, within_s=90)
            time.sleep(chance.uniform(0.2, 1.5))
            worker.end(signal.SIGKILL)
    with running_worker(settings, tmp_path / "last") as worker:

        def enough(so_far: Sequence[Received]) -> bool:
            answers = answers_of(settings, so_far)
            return set(lonely) <= set(answers) and all(
                any(each.modalities == BOTH for each in answers.get(id_, [])) for id_ in ids
            )

        assert enough(collect(settings, enough, within_s=120))
        await_true(worker.idle, within_s=60)
        answers = answers_of(settings, collect(settings, lambda _: False, within_s=3))
    for id_ in ids:
        richness = [len(each.modalities) for each in answers[id_]]
        assert richness == sorted(richness), f"{id_}: a poorer answer came after a richer one: {richness}"
        assert richness[-1] == 2
        assert stored(settings, id_).modalities == BOTH
    assert counted(settings) == len(ids) + len(lonely)


def test_topics_of_different_partitions_are_named(broker: Broker, stack: Stack, tmp_path: Path) -> None:
    settings = make_settings(broker, stack)
    create_topics(settings.kafka_access, [settings.posts_topic], partitions=4, replication=-1)
    create_topics(settings.kafka_access, [settings.clips_topic], partitions=3, replication=-1)
    with running_worker(settings, tmp_path / "log", ready=False) as worker:
        assert worker.process.wait(60) == 1
    said = " ".join(worker.log.read_text().split())
    assert f"'{settings.posts_topic}' has 4, '{settings.clips_topic}' has 3" in said
    assert "Traceback" not in said


def test_a_missing_topic_gets_as_many_partitions_as_its_partner(broker: Broker, stack: Stack) -> None:
    settings = make_settings(broker, stack)
    create_topics(settings.kafka_access, [settings.posts_topic], partitions=5, replication=-1)
    done = emostream(settings, "topics", "create", "--partitions", "2")
    assert done.returncode == 0, done.stderr
    clips, posts, emotions = f"{settings.clips_topic}: 5", f"{settings.posts_topic}: 5", f"{settings.emotions_topic}: 2"
    assert {clips, posts, emotions} < {line.removesuffix(" partitions") for line in done.stdout.splitlines()}


@pytest.mark.parametrize("create", [True, False])
def test_a_missing_topic_is_created_or_named(broker: Broker, stack: Stack, tmp_path: Path, create: bool) -> None:
    settings = make_settings(broker, stack, create_topics=create)
    names = [settings.posts_topic, settings.emotions_topic, settings.dead_letters_topic]
    create_topics(settings.kafka_access, names, partitions=4, replication=-1)
    with running_worker(settings, tmp_path / "log", ready=False) as worker:
        if create:
            worker.await_ready()
            publish_clips(settings, [("a", CLIPS[0])])
            assert collect(settings, lambda so_far: "a" in answers_of(settings, so_far))
        else:
            assert worker.process.wait(60) == 1
            assert f"'{settings.clips_topic}' has none: it does not exist" in " ".join(worker.log.read_text().split())


def test_a_broker_may_hear_of_a_new_topic_late(broker: Broker, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Apache Kafka answers that a topic is created before its own list of topics holds it, now and then."""
    settings = make_settings(broker, stack)
    listed = KafkaAdminClient.list_topics
    kept_back = 6

    def late(admin: KafkaAdminClient) -> list[str]:
        nonlocal kept_back
        topics = set(listed(admin))
        if settings.clips_topic in topics and kept_back:
            kept_back -= 1
            topics.remove(settings.clips_topic)
        return sorted(topics)

    monkeypatch.setattr(KafkaAdminClient, "list_topics", late)
    states = create_topics(settings.kafka_access, settings.topics, partitions=4, replication=-1)
    assert states == [TopicState(name, 4) for name in settings.topics]
