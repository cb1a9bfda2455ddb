"""Every order in which posts and clips can come: both halves are answered, the richest answer stands, nothing is held.

The whole way from records to acknowledgement runs here, on lists and with a scorer that hashes; integration tests walk
it on real brokers with the real model.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from emostream.connectors.errors import RecordRefused, SinkUnavailable
from emostream.connectors.messages import MOST_CLIP_BYTES, Emotion, Post, encode_post
from emostream.connectors.sinks import Answer, Known, ListDeadLetters, ListSink
from emostream.model.samples import BatchOutcome, Query, Unscorable
from emostream.streams.batcher import Batcher
from emostream.streams.errors import ScorerGone, ScoringFailed
from emostream.streams.frames import LANES, Lane
from emostream.streams.join import Join
from emostream.streams.metrics import Metrics
from emostream.streams.offsets import OffsetOrder
from emostream.streams.pipeline import Pipeline
from emostream.streams.records import Record
from emostream.streams.testing import MODEL, HashedScorer, hashed_scores

GRACE_S = 0.15
LONG_S = 60.0


class Log(ListSink):
    """Every answer in the order it was written, and the newest of each id."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Emotion] = []

    async def write(self, answers: list[Answer]) -> None:
        await super().write(answers)
        self.log += [answer.emotion for answer in answers]


class Away(ListSink):
    """A store that takes answers but cannot be asked."""

    async def look_up(self, post_ids: list[str]) -> list[Known]:
        raise SinkUnavailable("away")


@dataclass
class Stream:
    """A stream worker without Kafka, Redis and model."""

    grace_s: float = GRACE_S
    most_bytes: int = 10**9
    answers: Log = field(default_factory=Log)
    store: ListSink = field(default_factory=ListSink)
    dead: ListDeadLetters = field(default_factory=ListDeadLetters)
    scorer: HashedScorer = field(default_factory=HashedScorer)
    acknowledged: list[str] = field(default_factory=list)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.offsets = OffsetOrder()
        metrics = Metrics(self.registry)
        self.batchers = {lane: Batcher(most_items=4, most_cost=1000, max_wait_s=0, queue_items=8) for lane in LANES}
        self.join = Join(
            texts=self.batchers["texts"].put, voices=self.batchers["clips"].put, grace_s=self.grace_s,
            most_bytes=self.most_bytes, metrics=metrics,
        )  # fmt: skip
        self.pipeline = Pipeline(
            scorer=self.scorer, model=MODEL, answers=self.answers, store=self.store, dead_letters=self.dead,
            offsets=self.offsets, metrics=metrics, carried=self.join.carried,
        )  # fmt: skip
        self.taken = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Stream"]:
        tasks = [asyncio.create_task(self.join.run())]
        for lane, batcher in self.batchers.items():
            tasks.append(asyncio.create_task(self.pipeline.run(lane, batcher, batches_in_flight=2)))
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in tasks:
                assert task.cancelled() or task.exception() is None, task.exception()

    async def post(self, id_: str, text: str = "a text", *, clip: bool = False, at_s: float = 0.0) -> None:
        value = encode_post(Post(id=id_, text=text, clip=clip, source="s", author="a"))
        await self.join.take_post(self._record("posts", id_, value, at_s))

    async def clip(self, id_: str, audio: bytes = b"a clip", *, at_s: float = 0.0) -> None:
        await self.join.take_clip(self._record("clips", id_, audio, at_s))

    def _record(self, topic: str, key: str, value: bytes, at_s: float) -> Record:
        offset = self.taken
        self.taken += 1
        record = Record(
            topic=topic, partition=0, offset=offset, timestamp_s=1_700_000_000 + (at_s or offset), key=key.encode(),
            value=value, headers=(), acknowledge=lambda: self._acknowledge(f"{topic}/0/{offset}"),
        )  # fmt: skip
        self.offsets.take(record)
        return record

    def _acknowledge(self, place: str) -> bool:
        self.acknowledged.append(place)
        return True

    async def all_acknowledged(self) -> None:
        async with asyncio.timeout(10):
            while len(self.acknowledged) < self.taken:  # noqa: ASYNC110  # a list tells nobody that it grew
                await asyncio.sleep(0.002)
        assert self.join.waiting == {"post": 0, "clip": 0}
        assert not self.join._turns
        assert self.join._texts.held_bytes == self.join._voices.held_bytes == 0

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


def fused(text: str = "a text", audio: bytes = b"a clip") -> float:
    return round(max(hashed_scores(text.encode() + audio)), 6)


def plain(half: str) -> float:
    return fused(half, b"")


@pytest.mark.parametrize("announced", [True, False])
async def test_clip_first(announced: bool) -> None:
    async with Stream(grace_s=LONG_S).running() as stream:
        await stream.clip("p")
        await stream.post("p", clip=announced)
        await stream.all_acknowledged()
    (answer,) = stream.answers.log
    assert (answer.modalities, answer.revision, answer.flags) == (["text", "voice"], 1, [])
    assert answer.confidence == fused()
    assert (answer.source, answer.author) == ("s", "a")
    assert stream.value("emostream_join_wait_seconds_count", outcome="joined") == 1


async def test_an_announced_clip_is_waited_for() -> None:
    async with Stream(grace_s=LONG_S).running() as stream:
        await stream.post("p", clip=True)
        await asyncio.sleep(0.05)
        assert stream.answers.log == []
        assert stream.join.waiting == {"post": 1, "clip": 0}
        await stream.clip("p")
        await stream.all_acknowledged()
    (answer,) = stream.answers.log
    assert (answer.modalities, answer.revision) == (["text", "voice"], 1)


async def test_a_post_that_announces_nothing_is_answered_at_once() -> None:
    async with Stream(grace_s=LONG_S).running() as stream:
        await stream.post("p")
        await stream.all_acknowledged()
    (answer,) = stream.answers.log
    assert (answer.modalities, answer.flags) == (["text"], [])


async def test_a_clip_that_never_comes() -> None:
    async with Stream().running() as stream:
        await stream.post("p", clip=True)
        await stream.all_acknowledged()
    (answer,) = stream.answers.log
    assert (answer.modalities, answer.flags) == (["text"], ["clip_missing"])
    assert stream.value("emostream_join_wait_seconds_count", outcome="alone") == 1


async def test_a_post_that_never_comes() -> None:
    async with Stream().running() as stream:
        await stream.clip("p")
        await stream.all_acknowledged()
    (answer,) = stream.answers.log
    assert (answer.modalities, answer.flags, answer.attributes, answer.source) == (["voice"], [], {}, None)
    assert answer.ingested_at.timestamp() == 1_700_000_000


@pytest.mark.parametrize("announced", [True, False])
async def test_a_clip_after_its_post_was_answered_makes_the_answer_richer(announced: bool) -> None:
    async with Stream().running() as stream:
        await stream.post("p", clip=announced)
        await stream.all_acknowledged()
        await stream.clip("p")
        await stream.all_acknowledged()
    alone, both = stream.answers.log
    assert (alone.modalities, alone.revision) == (["text"], 1)
    assert (both.modalities, both.revision, both.flags) == (["text", "voice"], 2, [])
    assert both.confidence == fused()
    assert (both.source, both.author, both.ingested_at) == ("s", "a", alone.ingested_at)
    assert stream.value("emostream_late_halves_total", half="clip", outcome="joined") == 1


async def test_a_post_after_its_clip_was_answered_makes_the_answer_richer() -> None:
    async with Stream().running() as stream:
        await stream.clip("p")
        await stream.all_acknowledged()
        await stream.post("p", clip=True)
        await stream.all_acknowledged()
    alone, both = stream.answers.log
    assert (alone.modalities, alone.revision) == (["voice"], 1)
    assert (both.modalities, both.revision, both.flags) == (["text", "voice"], 2, [])
    assert both.confidence == fused()
    assert stream.value("emostream_late_halves_total", half="post", outcome="joined") == 1


async def test_a_clip_that_comes_while_its_post_is_being_answered_does_not_wait_out_the_grace() -> None:
    async with Stream(grace_s=LONG_S).running() as stream:
        await stream.post("p")  # on its way to the model, with nothing known yet
        await stream.clip("p")
        await stream.all_acknowledged()
    assert [answer.revision for answer in stream.answers.log] == [1, 2]
    assert stream.answers.log[1].confidence == fused()
    assert stream.value("emostream_join_wait_seconds_count", outcome="answered_before") == 1


async def test_two_clips_for_one_post_the_newer_one_stands() -> None:
    async with Stream().running() as stream:
        await stream.clip("p", b"first")
        await stream.clip("p", b"second")
        await stream.post("p", clip=True)
        await stream.all_acknowledged()
    first, second = stream.answers.log
    assert (first.confidence, first.revision) == (fused(audio=b"first"), 1)
    assert (second.confidence, second.revision) == (fused(audio=b"second"), 2)
    assert stream.answers.answers["p"] == second


async def test_a_post_published_again_is_answered_again_after_the_first() -> None:
    async with Stream(grace_s=LONG_S).running() as stream:
        for text in ("one", "two", "three"):
            await stream.post("p", text)
        await stream.all_acknowledged()
    confidences = [round(max(hashed_scores(text)), 6) for text in (b"one", b"two", b"three")]
    assert [answer.confidence for answer in stream.answers.log] == confidences
    assert [answer.revision for answer in stream.answers.log] == [1, 2, 3]


@pytest.mark.parametrize("announced", [True, False])
async def test_a_post_that_waits_is_answered_before_a_newer_one_of_its_id(announced: bool) -> None:
    async with Stream(grace_s=LONG_S).running() as stream:
        await stream.post("p", "one", clip=True)
        if announced:
            await stream.post("p", "two", clip=True)
        await stream.post("p", "three")
        await stream.clip("p")
        stream.join.close()
        await stream.all_acknowledged()
    *_, last = stream.answers.log
    assert last.confidence == fused("three")
    texts = [answer.confidence for answer in stream.answers.log if answer.modalities == ["text"]]
    assert texts == [plain(text) for text in ("one", "two", "three") if announced or text != "two"]


@pytest.mark.parametrize("kind", ["clip", "post"])
async def test_halves_of_one_id_wait_together_not_one_after_another(kind: str) -> None:
    async with Stream(grace_s=0.5).running() as stream:
        for number in range(40):
            await (stream.clip("p", b"%d" % number) if kind == "clip" else stream.post("p", f"{number}", clip=True))
        await stream.all_acknowledged()  # within half of what they would take one after another
    halves = [str(number).encode() for number in range(40)]
    assert [answer.confidence for answer in stream.answers.log] == [plain(half.decode()) for half in halves]


@pytest.mark.parametrize("clip_first", [True, False])
async def test_a_clip_that_cannot_be_heard_is_a_dead_letter_and_its_post_is_answered(clip_first: bool) -> None:
    async with Stream(grace_s=LONG_S).running() as stream:
        if clip_first:
            await stream.clip("p", b"! broken")
            await stream.post("p", clip=True)
        else:
            await stream.post("p", clip=True)
            await stream.clip("p", b"! broken")
        await stream.all_acknowledged()
    (answer,) = stream.answers.log
    assert (answer.modalities, answer.flags) == (["text"], ["clip_failed"])
    (letter,) = stream.dead.letters.values()
    assert (letter.why.reason, letter.value) == ("audio_undecodable", b"! broken")


@pytest.mark.parametrize("clip_first", [True, False])
async def test_a_clip_that_is_surely_none_tells_its_post(clip_first: bool) -> None:
    async with Stream(grace_s=LONG_S).running() as stream:
        if clip_first:
            await stream.clip("p", b"x" * (MOST_CLIP_BYTES + 1))
        await stream.post("p", clip=True)
        if not clip_first:
            await stream.clip("p", b"x" * (MOST_CLIP_BYTES + 1))
        await stream.all_acknowledged()
    (answer,) = stream.answers.log
    assert (answer.modalities, answer.flags) == (["text"], ["clip_failed"])
    assert [letter.why.reason for letter in stream.dead.letters.values()] == ["too_large"]


async def test_a_clip_that_is_surely_none_and_whose_post_never_comes_is_a_dead_letter() -> None:
    async with Stream().running() as stream:
        await stream.clip("p", b"")
        await stream.all_acknowledged()
    assert stream.answers.log == []
    assert [letter.why.reason for letter in stream.dead.letters.values()] == ["empty"]


async def test_a_broken_clip_that_comes_late_leaves_the_answer_alone() -> None:
    async with Stream().running() as stream:
        await stream.post("p")
        await stream.all_acknowledged()
        await stream.clip("p", b"! broken")
        await stream.all_acknowledged()
    assert [answer.revision for answer in stream.answers.log] == [1]
    assert len(stream.dead.letters) == 1


async def test_a_clip_whose_post_is_malformed_is_answered_alone() -> None:
    async with Stream().running() as stream:
        await stream.join.take_post(stream._record("posts", "p", b'{"id": "p", "te', 0.0))
        await stream.clip("p")
        await stream.all_acknowledged()
    (answer,) = stream.answers.log
    assert answer.modalities == ["voice"]
    assert [letter.why.reason for letter in stream.dead.letters.values()] == ["not_json"]


class Choosy(HashedScorer):
    """A model that cannot take certain halves: it raises, its process dies, or what comes out is no number."""

    def __init__(self, manner: str) -> None:
        super().__init__()
        self._manner = manner

    async def score(self, lane: Lane, queries: Sequence[Query], *, alone: bool = False) -> BatchOutcome:
        poisoned = [query.text == "poison" or query.clip == b"poison" for query in queries]
        if any(poisoned) and self._manner == "scoring_failed":
            raise ScoringFailed("it raised")
        if any(poisoned) and self._manner == "kills_scorer":
            raise ScorerGone(suspect=alone)
        result = await super().score(lane, queries, alone=alone)
        no_number = Unscorable("not_a_number", "no number")
        pairs = zip(poisoned, result.outcomes, strict=True)
        return msgspec.structs.replace(result, outcomes=tuple(no_number if bad else good for bad, good in pairs))


@pytest.mark.parametrize("manner", ["scoring_failed", "kills_scorer", "not_a_number"])
@pytest.mark.parametrize(
    ("text", "clip", "answered", "dead"),
    [
        ("poison", b"a clip", ["voice"], {"posts/0/0": ""}),
        ("a text", b"poison", ["text"], {"clips/0/1": ""}),
        ("poison", b"poison", None, {"posts/0/0": "", "clips/0/1": ""}),
        ("poison", b"! broken", None, {"posts/0/0": "", "clips/0/1": "audio_undecodable"}),
        ("poison", b"x" * (MOST_CLIP_BYTES + 1), None, {"posts/0/0": "", "clips/0/1": "too_large"}),
    ],
)
async def test_a_half_that_the_model_cannot_take_dies_alone(
    manner: str, text: str, clip: bytes, answered: list[str] | None, dead: dict[str, str]
) -> None:
    async with Stream(grace_s=LONG_S, scorer=Choosy(manner)).running() as stream:
        await stream.post("p", text, clip=True)
        await stream.clip("p", clip)
        await stream.all_acknowledged()
    assert [answer.modalities for answer in stream.answers.log] == ([answered] if answered else [])
    reasons = {origin: letter.why.reason for origin, letter in stream.dead.letters.items()}
    assert reasons == {origin: reason or manner for origin, reason in dead.items()}


async def test_a_clip_that_cannot_be_heard_keeps_its_reason_when_the_answer_is_refused() -> None:
    class Refusing(Log):
        async def write(self, answers: Sequence[Answer]) -> None:
            if answers:
                raise RecordRefused([0], "too large")

    async with Stream(grace_s=LONG_S, answers=Refusing()).running() as stream:
        await stream.post("p", clip=True)
        await stream.clip("p", b"! broken")
        await stream.all_acknowledged()
    reasons = {origin: letter.why.reason for origin, letter in stream.dead.letters.items()}
    assert reasons == {"posts/0/0": "record_refused", "clips/0/1": "audio_undecodable"}


async def test_a_clip_whose_post_the_model_cannot_take_is_joined_with_what_was_read_before() -> None:
    async with Stream(grace_s=LONG_S, scorer=Choosy("scoring_failed")).running() as stream:
        await stream.post("p")
        await stream.all_acknowledged()
        await stream.post("p", "poison", clip=True)
        await stream.clip("p")
        await stream.all_acknowledged()
    assert [(answer.revision, answer.modalities) for answer in stream.answers.log] == [
        (1, ["text"]),
        (2, ["text", "voice"]),
    ]
    assert list(stream.dead.letters) == ["posts/0/1"]


async def test_a_clip_without_a_key_is_a_dead_letter_at_once() -> None:
    async with Stream(grace_s=LONG_S).running() as stream:
        await stream.clip("", b"whose?")
        await stream.all_acknowledged()
    assert [letter.why.reason for letter in stream.dead.letters.values()] == ["empty_id"]


async def test_a_half_delivered_again_alone_does_not_push_a_poorer_answer() -> None:
    """After a crash one half can come again whose partner's offset was committed."""
    async with Stream().running() as stream:
        await stream.post("p", clip=True, at_s=5)
        await stream.clip("p", at_s=6)
        await stream.all_acknowledged()
        await stream.clip("p", at_s=6)
        await stream.post("p", clip=True, at_s=5)
        await stream.all_acknowledged()
        await stream.post("p", clip=False, at_s=5)
        await stream.all_acknowledged()
    assert {(tuple(answer.modalities), answer.confidence) for answer in stream.answers.log} == {
        (("text", "voice"), fused())
    }
    assert {answer.revision for answer in stream.answers.log} == {1}, "the same records, the same revision"


async def test_a_half_whose_partners_vector_is_gone_gets_the_answer_that_stands() -> None:
    async with Stream().running() as stream:
        await stream.post("p", clip=True, at_s=5)
        await stream.clip("p", at_s=6)
        await stream.all_acknowledged()
        known = stream.store._known["p"]
        stream.store._known["p"] = Known(emotion=known.emotion, post_ms=known.post_ms, clip_ms=known.clip_ms)
        await stream.clip("p", at_s=6)
        await stream.all_acknowledged()
    first, again = stream.answers.log
    assert first == again
    assert stream.value("emostream_late_halves_total", half="clip", outcome="kept") == 1


async def test_without_a_store_halves_are_answered_alone_and_say_so() -> None:
    async with Stream(store=Away()).running() as stream:
        await stream.post("plain")
        await stream.post("p", clip=True)
        await stream.all_acknowledged()
        await stream.clip("p")
        await stream.all_acknowledged()
    plain, text, voice = stream.answers.log
    assert plain.flags == []
    assert text.flags == ["clip_missing", "partner_unknown"]
    assert (voice.modalities, voice.flags) == (["voice"], ["partner_unknown"])


async def test_a_flood_of_announced_clips_that_never_come_neither_fills_memory_nor_delays_others() -> None:
    async with Stream(grace_s=LONG_S, most_bytes=20_000).running() as stream:
        for number in range(200):
            await stream.post(f"flood-{number}", clip=True)
            assert stream.join._texts.held_bytes <= 20_000 + 2_000
        await stream.post("plain")
        async with asyncio.timeout(5):
            while "plain" not in stream.answers.answers:  # noqa: ASYNC110  # a dictionary tells nobody that it grew
                await asyncio.sleep(0.002)
        assert 0 < stream.join.waiting["post"] < 20
        assert stream.value("emostream_join_wait_seconds_count", outcome="no_room") > 180
        stream.join.close()
        await stream.all_acknowledged()
    assert len(stream.answers.answers) == 201


async def test_a_flood_of_clips_waits_in_kafka_and_delays_no_post() -> None:
    async with Stream(most_bytes=20_000).running() as stream:

        async def flood() -> None:
            for number in range(100):
                await stream.clip(f"flood-{number}")
                assert stream.join._voices.held_bytes <= 20_000 + 2_000

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(0.02)
        assert not flooding.done()
        await stream.post("plain")
        async with asyncio.timeout(5):
            while "plain" not in stream.answers.answers:  # noqa: ASYNC110  # a dictionary tells nobody that it grew
                await asyncio.sleep(0.002)
        assert not flooding.done()
        await flooding
        await stream.all_acknowledged()
    assert len(stream.answers.answers) == 101


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("pc"), st.sampled_from("xyz"), st.booleans(), st.booleans()), max_size=14))
def test_whatever_comes_every_record_is_acknowledged_and_what_had_both_halves_ends_with_both(
    arrivals: list[tuple[str, str, bool, bool]],
) -> None:
    async def scenario() -> Stream:
        async with Stream(grace_s=0.02).running() as stream:
            for number, (kind, id_, flag, pause) in enumerate(arrivals):
                if kind == "p":
                    await stream.post(id_, f"text {number}", clip=flag)
                else:
                    await stream.clip(id_, b"! broken" if flag else b"a clip")
                if pause:
                    await asyncio.sleep(0.005)
            await stream.all_acknowledged()
        return stream

    stream = asyncio.run(scenario())
    assert sorted(stream.acknowledged) == sorted(set(stream.acknowledged))
    posts = {id_ for kind, id_, _, _ in arrivals if kind == "p"}
    clips = {id_ for kind, id_, broken, _ in arrivals if kind == "c" and not broken}
    assert set(stream.answers.answers) == posts | clips
    for id_ in posts & clips:
        assert stream.answers.answers[id_].modalities == ["text", "voice"], "the last answer is the richest"
    for id_, text in {id_: f"text {number}" for number, (kind, id_, *_) in enumerate(arrivals) if kind == "p"}.items():
        expected = fused(text) if id_ in clips else plain(text)
        assert stream.answers.answers[id_].confidence == expected, "the last answer is of the newest post"
    dead = sum(1 for kind, _, broken, _ in arrivals if kind == "c" and broken)
    assert len(stream.dead.letters) == dead
