"""The way of a batch, with every outcome: each record is answered or dead, and acknowledged only then."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from emostream.connectors.errors import RecordRefused, SinkUnavailable
from emostream.connectors.messages import Post, encode_post
from emostream.connectors.sinks import Answer, Known, ListDeadLetters, ListSink
from emostream.model.samples import BatchOutcome, Query, Unscorable
from emostream.streams.batcher import Batcher
from emostream.streams.errors import ScorerGone
from emostream.streams.frames import Lane
from emostream.streams.gpu_worker import _Door
from emostream.streams.metrics import Metrics
from emostream.streams.offsets import OffsetOrder
from emostream.streams.pipeline import Pipeline, Scorer
from emostream.streams.records import Item, Record, decode_posts_record, post_item
from emostream.streams.testing import MODEL, HashedScorer, hashed_scores


@dataclass
class Scene:
    """A pipeline on lists, and what was acknowledged."""

    scorer: Scorer = field(default_factory=HashedScorer)
    answers: ListSink = field(default_factory=ListSink)
    store: ListSink = field(default_factory=ListSink)
    dead: ListDeadLetters = field(default_factory=ListDeadLetters)
    acknowledged: list[int] = field(default_factory=list)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.offsets = OffsetOrder()
        self.pipeline = Pipeline(
            scorer=self.scorer,
            model=MODEL,
            answers=self.answers,
            store=self.store,
            dead_letters=self.dead,
            offsets=self.offsets,
            metrics=Metrics(self.registry),
        )

    def items(self, values: Sequence[bytes]) -> list[Item]:
        made = []
        for offset, value in enumerate(values):
            record = Record(
                topic="posts", partition=0, offset=offset, timestamp_s=1_700_000_000.5, key=b"k", value=value,
                headers=(("h", b"v"),), acknowledge=lambda offset=offset: self._acknowledge(offset),
            )  # fmt: skip
            self.offsets.take(record)
            made.append(to_item(record))
        return made

    def _acknowledge(self, offset: int) -> bool:
        """An acknowledgement before the outputs are safe would be a lost post after a crash."""
        safe = f"p{offset}" in self.store.answers or f"posts/0/{offset}" in self.dead.letters
        assert safe, f"offset {offset} was acknowledged before its output was safe"
        self.acknowledged.append(offset)
        return True

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


def to_item(record: Record) -> Item:
    taken = decode_posts_record(record)
    return taken if isinstance(taken, Item) else post_item(taken)


def posts(*texts: str) -> list[bytes]:
    return [encode_post(Post(id=f"p{i}", text=text)) for i, text in enumerate(texts)]


async def test_answers_carry_what_the_model_said_and_the_post() -> None:
    scene = Scene()
    value = b'{"id": "p0", "text": "hi", "source": "s", "author": "a", "lang": "en", "topics": ["t"]}'
    await scene.pipeline.carry("texts", scene.items([value]))
    answer = scene.answers.answers["p0"]
    scores = [round(score, 6) for score in hashed_scores(b"hi")]
    assert [answer.scores.anger, answer.scores.surprise] == [scores[0], scores[6]]
    assert answer.confidence == max(scores)
    assert (answer.source, answer.author, answer.lang, answer.topics) == ("s", "a", "en", ["t"])
    assert (answer.revision, answer.modalities, answer.model.name) == (1, ["text"], "hashed")
    assert answer.ingested_at.isoformat() == "2023-11-14T22:13:20.500000+00:00"
    assert scene.store.answers == scene.answers.answers
    assert scene.acknowledged == [0]


async def test_what_is_no_post_goes_past_the_model_to_the_dead_letters() -> None:
    scene = Scene()
    await scene.pipeline.carry("texts", scene.items([*posts("one"), b"oops", b'{"id": "x", "text": " "}']))
    assert set(scene.answers.answers) == {"p0"}
    letters = scene.dead.letters
    assert {origin: letter.why.reason for origin, letter in letters.items()} == {
        "posts/0/1": "not_json",
        "posts/0/2": "empty_text",
    }
    assert letters["posts/0/1"].value == b"oops"
    assert letters["posts/0/1"].headers[0] == ("h", b"v")
    assert scene.acknowledged == [0, 1, 2]
    assert scene.value("emostream_dead_letters_total", topic="posts", reason="not_json") == 1


async def test_a_batch_of_nothing_but_malformed_records_is_carried() -> None:
    scene = Scene()
    await scene.pipeline.carry("texts", scene.items([b"", b"[]"]))
    assert scene.acknowledged == [0, 1]


async def test_the_post_that_the_model_cannot_take_is_found_and_dies_alone() -> None:
    scorer = HashedScorer(refuses=lambda text: text == "poison")
    scene = Scene(scorer=scorer)
    texts = [f"fine {i}" for i in range(63)]
    texts.insert(17, "poison")
    await scene.pipeline.carry("texts", scene.items(posts(*texts)))
    assert len(scene.answers.answers) == 63
    (letter,) = scene.dead.letters.values()
    assert (letter.why.reason, letter.why.origin) == ("scoring_failed", "posts/0/17")
    assert len(scorer.batches) <= 1 + 2 * 6
    assert scene.acknowledged == list(range(64))


class DyingScorer:
    """Its process dies for the first `deaths` batches, and of every batch that holds a deadly text."""

    def __init__(self, deaths: int = 0, deadly: str | bytes = "") -> None:
        self._deaths = deaths
        self._deadly = deadly
        self._inner = HashedScorer()

    async def score(self, lane: Lane, queries: Sequence[Query], *, alone: bool = False) -> BatchOutcome:
        self._deaths -= 1
        if self._deaths >= 0 or any(self._deadly and self._deadly in (q.text, q.clip) for q in queries):
            raise ScorerGone(suspect=alone)
        return await self._inner.score(lane, queries)


async def test_a_batch_is_sent_again_when_the_gpu_worker_died() -> None:
    scene = Scene(scorer=DyingScorer(deaths=2))
    await scene.pipeline.carry("texts", scene.items(posts("one", "two")))
    assert set(scene.answers.answers) == {"p0", "p1"}
    assert scene.value("emostream_batch_retries_total", reason="scorer_gone") == 2


async def test_a_post_that_kills_the_gpu_worker_again_and_again_dies_alone() -> None:
    scene = Scene(scorer=DyingScorer(deadly="killer"))
    await scene.pipeline.carry("texts", scene.items(posts("one", "killer", "three")))
    assert set(scene.answers.answers) == {"p0", "p2"}
    assert [letter.why.reason for letter in scene.dead.letters.values()] == ["kills_scorer"]


async def test_neighbours_of_a_deadly_post_are_not_blamed() -> None:
    """One process for all batches, as it is: its death fails every batch that is with it, but only one is to blame."""

    class SharedProcess(HashedScorer):
        def __init__(self) -> None:
            super().__init__()
            self.door = _Door()
            self.waiting: list[tuple[list[Query], asyncio.Future[BatchOutcome]]] = []

        async def score(self, lane: Lane, queries: Sequence[Query], *, alone: bool = False) -> BatchOutcome:
            async with self.door.passed(alone=alone):
                answer: asyncio.Future[BatchOutcome] = asyncio.get_running_loop().create_future()
                self.waiting.append((list(queries), answer))
                asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._work()))
                try:
                    return await answer
                except EOFError as ended:
                    raise ScorerGone(suspect=alone) from ended

        async def _work(self) -> None:
            if not self.waiting:
                return
            queries, answer = self.waiting[0]
            if "killer" in [query.text for query in queries]:
                gone, self.waiting = self.waiting, []
                for _, each in gone:
                    each.set_exception(EOFError())
                return
            self.waiting.pop(0)
            answer.set_result(await super().score("texts", queries))

    scene = Scene(scorer=SharedProcess())
    batcher = Batcher(most_items=1, most_cost=1000, max_wait_s=0, queue_items=300)
    running = asyncio.create_task(scene.pipeline.run("texts", batcher, batches_in_flight=4))
    texts = [f"fine {i}" for i in range(100)]
    texts[50] = "killer"
    for item in scene.items(posts(*texts)):
        await batcher.put(item)
    async with asyncio.timeout(20):
        while len(scene.acknowledged) < 100:  # noqa: ASYNC110  # a list tells nobody that it grew
            await asyncio.sleep(0.005)
    running.cancel()
    assert set(scene.dead.letters) == {"posts/0/50"}
    assert len(scene.answers.answers) == 99


async def test_a_score_that_is_no_number_is_a_dead_letter() -> None:
    class Nan(HashedScorer):
        async def score(self, lane: Lane, queries: Sequence[Query], *, alone: bool = False) -> BatchOutcome:
            batch = await super().score(lane, queries)
            bad = Unscorable("not_a_number", "no number")
            return BatchOutcome((bad, *batch.outcomes[1:]), 1, 1, 0.0, 0.0)

    scene = Scene(scorer=Nan())
    await scene.pipeline.carry("texts", scene.items(posts("one", "two")))
    assert [letter.why.reason for letter in scene.dead.letters.values()] == ["not_a_number"]
    assert set(scene.answers.answers) == {"p1"}


class FlakySink(ListSink):
    """Fails as told before each write, after having kept some of the answers or none."""

    def __init__(self, faults: list[Callable[[], Exception]], keeps: int = 0, name: str = "list") -> None:
        super().__init__()
        self.name = name
        self._faults = faults
        self._keeps = keeps

    async def write(self, answers: Sequence[Answer]) -> None:
        if self._faults:
            await super().write(answers[: self._keeps])
            raise self._faults.pop()()
        await super().write(answers)


@pytest.mark.parametrize("which", ["answers", "store"])
@pytest.mark.parametrize("keeps", [0, 1])
async def test_a_sink_that_is_away_is_written_to_again(which: str, keeps: int) -> None:
    name = {"answers": "kafka", "store": "redis"}[which]
    scene = Scene(**{which: FlakySink([lambda: SinkUnavailable("away")] * 2, keeps, name=name)})
    await scene.pipeline.carry("texts", scene.items(posts("one", "two")))
    assert set(scene.answers.answers) == set(scene.store.answers) == {"p0", "p1"}
    assert scene.value("emostream_sink_errors_total", sink=name) == 2


async def test_a_write_that_takes_long_is_counted_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(ListSink):
        async def write(self, answers: Sequence[Answer]) -> None:
            await asyncio.sleep(0.1)
            await super().write(answers)

    monkeypatch.setattr("emostream.streams.pipeline._PATIENCE_S", 0.03)
    sink = Slow()
    sink.name = "kafka"
    scene = Scene(answers=sink)
    await scene.pipeline.carry("texts", scene.items(posts("one")))
    assert set(sink.answers) == {"p0"}
    assert scene.value("emostream_sink_errors_total", sink="kafka") >= 1


async def test_an_answer_that_kafka_refuses_becomes_a_dead_letter() -> None:
    scene = Scene(answers=FlakySink([lambda: RecordRefused([1], "too large")]))
    await scene.pipeline.carry("texts", scene.items(posts("one", "two", "three")))
    assert set(scene.answers.answers) == set(scene.store.answers) == {"p0", "p2"}
    assert [(origin, x.why.reason) for origin, x in scene.dead.letters.items()] == [("posts/0/1", "record_refused")]
    assert scene.acknowledged == [0, 1, 2]


async def test_a_clock_that_is_no_time_of_this_age_is_flagged() -> None:
    scene = Scene()
    (item,) = scene.items(posts("one"))
    for odd_s in (-1.0, 9.3e18):
        record = Record(**{**msgspec.structs.asdict(item.records[0]), "timestamp_s": odd_s})
        scene.offsets.take(record)
        await scene.pipeline.carry("texts", [to_item(record)])
        assert scene.answers.answers["p0"].flags == ["clock"]


class Crash(BaseException):
    """The process ends here."""


@settings(max_examples=60)
@given(st.integers(0, 5), st.integers(1, 3))
def test_no_post_is_lost_by_a_crash_at_any_step(crash_at: int, batch_size: int) -> None:
    """Kafka delivers again what was not acknowledged: after a crash at any step nothing is missing anywhere."""
    values = [*posts("one", "two"), b"oops", *posts("1", "2", "3", "four")[3:]]
    answers, store, dead = ListSink(), ListSink(), ListDeadLetters()
    steps = itertools.count()

    class Crashing:
        name = "crashing"

        def __init__(self, inner: ListSink | ListDeadLetters) -> None:
            self._inner = inner

        async def write(self, records: Sequence[object]) -> None:
            if next(steps) == crash_at:
                raise Crash
            await self._inner.write(records)
            if next(steps) == crash_at:
                raise Crash

        async def look_up(self, post_ids: Sequence[str]) -> list[Known]:
            return await self._inner.look_up(post_ids)

        async def close(self) -> None: ...

    async def run(from_offset: int, *, crashing: bool) -> int:
        """Carry everything from an offset on; return the offset that Kafka would deliver next."""
        wrap = Crashing if crashing else (lambda sink: sink)
        scene = Scene(store=store, dead=dead)
        scene.pipeline._answers, scene.pipeline._store = wrap(answers), wrap(store)
        scene.pipeline._dead_letters = wrap(dead)
        items = scene.items(values)[from_offset:]
        scene.offsets._taken.clear()
        for item in items:
            scene.offsets.take(item.records[0])
        try:
            for start in range(0, len(items), batch_size):
                await scene.pipeline.carry("texts", items[start : start + batch_size])
        except Crash:
            pass
        return from_offset + len(scene.acknowledged)

    committed = asyncio.run(run(0, crashing=True))
    asyncio.run(run(committed, crashing=False))
    assert set(answers.answers) == set(store.answers) == {"p0", "p1", "p3"}
    assert set(dead.letters) == {"posts/0/2"}


async def test_run_keeps_several_batches_in_flight_and_acknowledges_in_order() -> None:
    class Slow(HashedScorer):
        running = most = 0

        async def score(self, lane: Lane, queries: Sequence[Query], *, alone: bool = False) -> BatchOutcome:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.02 if "0" in (queries[0].text or "") else 0.001)
            self.running -= 1
            return await super().score(lane, queries)

    scorer = Slow()
    scene = Scene(scorer=scorer)
    batcher = Batcher(most_items=2, most_cost=1000, max_wait_s=0, queue_items=100)
    running = asyncio.create_task(scene.pipeline.run("texts", batcher, batches_in_flight=3))
    for item in scene.items(posts(*(str(i) for i in range(20)))):
        await batcher.put(item)
    async with asyncio.timeout(10):
        while len(scene.acknowledged) < 20:  # noqa: ASYNC110  # a list tells nobody that it grew
            await asyncio.sleep(0.005)
    running.cancel()
    assert scene.acknowledged == list(range(20))
    assert scorer.most == 2, "one is computed, the next is made ready; the third is being written"
