"""The way of a batch from `posts` and `clips` to `emotions`, step by step. Imports neither Faust nor torch nor redis.

Outputs first, offsets last: a record is acknowledged only when its answer is confirmed by every sink, or its dead
letter by Kafka. Whatever fails on the way is tried again here; what happens to a process that ends in between is that
Kafka delivers its records once more.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from emostream.connectors.errors import RecordRefused, SinkUnavailable
from emostream.connectors.messages import DeadLetter
from emostream.connectors.sinks import Answer, AnswerSink, AnswerStore, DeadLetterSink, Known
from emostream.model.samples import PATHS, BatchOutcome, ModelInfo, Outcome, Query, Scored, Unscorable
from emostream.streams.batcher import Batcher
from emostream.streams.errors import ScorerGone, ScoringFailed
from emostream.streams.frames import Lane
from emostream.streams.metrics import Metrics
from emostream.streams.offsets import OffsetOrder
from emostream.streams.records import Batch, Item, Record
from emostream.streams.translate import to_answer, to_dead_letter

_log = logging.getLogger(__name__)

_DEATHS_BEFORE_SPLIT = 2
"""A GPU worker that died so often while it had one batch and no other was killed by it: the batch is split from then
on. Each time another has answered since what every sound one can, so it is not the device."""

_BATCHES_SCORED = 2
"""Batches of a lane that are with the GPU worker: one is computed while the next is made ready, or is there when the
lane's turn comes. What comes meanwhile is better off in the batcher, where it joins a fuller batch than in a row of
small ones; so of texts, where a CPU is to make them ready and to compute them, there is but one."""

_PATIENCE_S = 15.0
"""A write that is not confirmed for so long is counted as an error, and waited for: Kafka's producer tries for ever."""

_LONGEST_RETRY_PAUSE_S = 10.0
"""Pauses between writes to a sink that is away are random up to a bound, which doubles up to this: short enough to be
back soon after it is."""

T = TypeVar("T")
Written = TypeVar("Written", contravariant=True)


class Scorer(Protocol):
    """What the pipeline needs of a GPU worker."""

    async def score(self, lane: Lane, queries: Sequence[Query], *, alone: bool = False) -> BatchOutcome:
        """Score queries; raises `ScorerGone`, `ScoringFailed`, or `ScorerUnusable`, which ends the worker."""


class Writes(Protocol[Written]):
    """What answer sinks and dead-letter sinks have in common."""

    name: str

    async def write(self, records: Sequence[Written], /) -> None:
        """Write, and return once it is safe."""


class Question(msgspec.Struct, frozen=True):
    """An item, and what is known of its id.

    Attributes:
        item: A post, a clip or both.
        known: What was said of the id before; None where nobody could be asked.
    """

    item: Item
    known: Known | None

    @property
    def query(self) -> Query:
        """What the model is asked: the item, and halves that were read before for what is missing or broken."""
        known = self.known or Known()
        return msgspec.structs.replace(self.item.query, text_vector=known.text_vector, voice_vector=known.voice_vector)

    @property
    def refused(self) -> bool:
        """Whether all there is is a clip that is none."""
        clip = self.item.clip
        return self.item.post is None and clip is not None and clip.content.fault is not None

    @property
    def settled(self) -> bool:
        """Whether a better answer stands than can be given: of newer records, or of a partner no longer at hand."""
        query, known = self.query, self.known
        if known is None or known.emotion is None:
            return False
        halves = [query.text or query.text_vector, query.clip or query.voice_vector]
        return self._outdated(known) or (None in halves and len(known.emotion.modalities) > 1)

    def would_lose(self, scored: Scored) -> bool:
        """Whether an answer is poorer than the one that stands: one of its halves turned out to be none."""
        before = self.known.emotion if self.known is not None else None
        return before is not None and len(before.modalities) > len(scored.modalities)

    def _outdated(self, known: Known) -> bool:
        """Whether newer records of the same id were answered before these."""
        pairs = ((self.item.post, known.post_ms), (self.item.clip, known.clip_ms))
        return all(
            newest_ms is not None and half.record.timestamp_ms < newest_ms
            for half, newest_ms in pairs
            if half is not None
        )


class Pipeline:
    """Carries batches from the batcher through model and sinks to acknowledgement.

    Args:
        scorer: The GPU worker.
        model: Which model it runs.
        answers: Where answers go first: Kafka.
        store: Where they go then, and where halves find what was said of their partners: Redis.
        dead_letters: Where records go that cannot be answered.
        offsets: Acknowledges in order.
        metrics: What is observed.
        carried: Told of each item that is answered and acknowledged.
        wall_clock: Seconds since 1970, to compare with Kafka's timestamps.
    """

    def __init__(
        self,
        *,
        scorer: Scorer,
        model: ModelInfo,
        answers: AnswerSink,
        store: AnswerStore,
        dead_letters: DeadLetterSink,
        offsets: OffsetOrder,
        metrics: Metrics,
        carried: Callable[[Item], None] = lambda _: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._scorer = scorer
        self._model = model
        self._answers = answers
        self._store = store
        self._dead_letters = dead_letters
        self._offsets = offsets
        self._metrics = metrics
        self._carried = carried
        self._wall_clock = wall_clock

    async def run(self, lane: Lane, batcher: Batcher, *, batches_in_flight: int) -> None:
        """Carry a lane's batches until cancelled, several at a time, so that one is scored while others are written."""
        scored = 1 if lane == "texts" and self._model.device == "cpu" else _BATCHES_SCORED
        slots, scoring = asyncio.Semaphore(batches_in_flight), asyncio.Semaphore(scored)
        async with asyncio.TaskGroup() as carriers:
            while True:
                await slots.acquire()
                await scoring.acquire()
                batch = await batcher.take()
                carrier = carriers.create_task(self.carry(lane, batch, scored=scoring.release))
                carrier.add_done_callback(lambda _: slots.release())

    async def carry(self, lane: Lane, batch: Batch, *, scored: Callable[[], None] = lambda: None) -> None:
        """Carry one batch all the way. Returns when every record of it is answered or dead, and acknowledged.

        Args:
            lane: Which batches it goes with.
            batch: The items.
            scored: Told when the model has done its part.
        """
        with self._metrics.batches_in_flight.labels(lane).track_inprogress():
            self._observe_arrival(lane, batch)
            # 1. Ask what is known of each id: of halves that stand alone, the other may have been answered before.
            questions = await self._timed(lane, "look_up", self._look_up(batch))
            # 2. Score. What is neither post nor clip goes past the model, and so does what is answered well enough.
            open_ = [question for question in questions if not (question.settled or question.refused)]
            outcomes = await self._timed(lane, "score", self._score(lane, [question.query for question in open_]))
            scored()
            # 3. Turn outcomes into answers and dead letters.
            answers, letters = self._sort(batch, questions, dict(zip(map(id, open_), outcomes, strict=True)))
            # 4. Answers to Kafka, confirmed. An answer that Kafka can never take becomes a dead letter.
            answers = await self._timed(lane, "kafka", self._write_answers(self._answers, answers, letters))
            # 5. Answers to Redis. One that Redis can never take stands in Kafka, and its dead letter says so.
            answers = await self._timed(lane, "redis", self._write_answers(self._store, answers, letters))
            # 6. Dead letters, confirmed.
            await self._timed(lane, "dead_letters", self._write(self._dead_letters, list(letters.values())))
            # 7. Only now may the offsets be committed.
            self._offsets.done([record for item in batch for record in item.records])
            for item in batch:
                self._carried(item)
            self._observe_end(answers, letters)

    async def _look_up(self, batch: Batch) -> list[Question]:
        """Ask what is known of each item's id. When nobody can be asked, halves are answered alone, and say so."""
        items = [item for item in batch if item.fault is None]
        if not items:
            return []
        try:
            known: Sequence[Known | None] = await self._store.look_up([item.post_id or "" for item in items])
        except SinkUnavailable as away:
            self._metrics.sink_errors.labels(self._store.name).inc()
            _log.warning("%s cannot be asked about partners, going on without: %s", self._store.name, away)
            known = [None] * len(items)
        return [Question(*pair) for pair in zip(items, known, strict=True)]

    async def _score(self, lane: Lane, queries: Sequence[Query], *, deaths: int | None = None) -> list[Outcome]:
        """Score queries; find, by splitting, the one that the model cannot take.

        Args:
            lane: Where they wait.
            queries: What is asked.
            deaths: How often the model's process has died while it had these alone; None where it never died, and they
                may share it with others.
        """
        if not queries:
            return []
        try:
            result = await self._scorer.score(lane, queries, alone=deaths is not None)
        except ScorerGone as gone:
            self._metrics.batch_retries.labels(ScorerGone.reason).inc()
            deaths = (deaths or 0) + gone.suspect
            if deaths < _DEATHS_BEFORE_SPLIT:
                return await self._score(lane, queries, deaths=deaths)
            verdict = Unscorable("kills_scorer", "the model's process dies of this")
            return await self._split(lane, queries, verdict, deaths=_DEATHS_BEFORE_SPLIT - 1)
        except ScoringFailed as fault:
            self._metrics.batch_retries.labels(ScoringFailed.reason).inc()
            return await self._split(lane, queries, Unscorable(ScoringFailed.reason, str(fault)), deaths=deaths)
        self._observe_scoring(lane, result)
        return [
            await self._by_halves(lane, query, outcome, deaths=deaths) if isinstance(outcome, Unscorable) else outcome
            for query, outcome in zip(queries, result.outcomes, strict=True)
        ]

    async def _split(
        self, lane: Lane, queries: Sequence[Query], verdict: Unscorable, *, deaths: int | None
    ) -> list[Outcome]:
        """Score the halves of a batch that fails as a whole; a single query that fails gets the verdict."""
        if len(queries) > 1:
            middle = len(queries) // 2
            parts = [await self._score(lane, part, deaths=deaths) for part in (queries[:middle], queries[middle:])]
            return [*parts[0], *parts[1]]
        return [await self._by_halves(lane, queries[0], verdict, deaths=deaths)]

    async def _by_halves(self, lane: Lane, query: Query, verdict: Unscorable, *, deaths: int | None) -> Outcome:
        """Ask about the halves of a pair that cannot be answered, one by one; what is no pair gets the verdict."""
        if query.text is None or query.clip is None:
            return verdict
        (of_text,) = await self._score(lane, [msgspec.structs.replace(query, clip=None)], deaths=deaths)
        if isinstance(of_text, Scored):
            return msgspec.structs.replace(of_text, clip_fault=verdict)
        (of_clip,) = await self._score(lane, [msgspec.structs.replace(query, text=None)], deaths=deaths)
        if isinstance(of_clip, Scored):
            return msgspec.structs.replace(of_clip, text_fault=of_text)
        return msgspec.structs.replace(of_text, of_clip=of_clip)

    def _sort(
        self, batch: Batch, questions: Sequence[Question], outcomes: dict[int, Outcome]
    ) -> tuple[list[tuple[Item, Answer]], dict[Record, DeadLetter]]:
        """Return the answers of items, and the dead letters of records; an item can have both."""
        answers: list[tuple[Item, Answer]] = []
        faults = [item.fault for item in batch if item.fault is not None]
        letters = {fault.record: to_dead_letter(fault.record, fault.content) for fault in faults}
        for question in questions:
            item, outcome = question.item, outcomes.get(id(question))
            if item.clip is not None and (fault := item.clip.content.fault):
                letters[item.clip.record] = to_dead_letter(item.clip.record, fault)
                if isinstance(outcome, Scored):
                    outcome = msgspec.structs.replace(outcome, clip_fault=Unscorable(fault.reason, str(fault)))
            elif item.clip is not None and isinstance(outcome, Scored) and outcome.clip_fault:
                letters[item.clip.record] = to_dead_letter(item.clip.record, outcome.clip_fault)
            elif item.post is not None and isinstance(outcome, Scored) and outcome.text_fault:
                letters[item.post.record] = to_dead_letter(item.post.record, outcome.text_fault)
                item = msgspec.structs.replace(item, post=None)
            if question.refused:
                continue
            if isinstance(outcome, Unscorable):
                for record in item.records:
                    letters.setdefault(record, to_dead_letter(record, outcome))
                if item.clip is not None and outcome.of_clip:
                    letters[item.clip.record] = to_dead_letter(item.clip.record, outcome.of_clip)
            elif outcome is None or question.would_lose(outcome):  # the answer that stands is this record's, too
                answers.append((item, standing_answer(question.known)))
            else:
                answers.append((item, to_answer(item, outcome, question.known, model=self._model)))
            self._observe_partner(question, outcome)
        return answers, letters

    async def _write_answers(
        self, sink: AnswerSink, answers: list[tuple[Item, Answer]], letters: dict[Record, DeadLetter]
    ) -> list[tuple[Item, Answer]]:
        """Write answers to a sink, and return those that it took; the others' records become dead letters."""
        left = answers
        while True:
            try:
                await self._write(sink, [answer for _, answer in left])
                return left
            except RecordRefused as refused:
                fault = Unscorable(refused.reason, str(refused))
                for position in refused.positions:
                    item, _ = left[position]
                    for record in item.records:
                        letters.setdefault(record, to_dead_letter(record, fault))
                left = [pair for position, pair in enumerate(left) if position not in refused.positions]

    async def _write(self, sink: Writes[T], records: Sequence[T]) -> None:
        """Write to a sink, again and again until it is safe there."""
        if not records:
            return

        def note(attempt: RetryCallState) -> None:
            self._metrics.sink_errors.labels(sink.name).inc()
            fault = attempt.outcome.exception() if attempt.outcome else None
            _log.warning("%s: attempt %d failed, trying again: %s", sink.name, attempt.attempt_number, fault)

        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(SinkUnavailable),
            wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_RETRY_PAUSE_S),
            before_sleep=note,
            reraise=True,
        ):
            with attempt:
                await self._watched(sink, sink.write(records))

    async def _watched(self, sink: Writes[T], write: Awaitable[None]) -> None:
        """Wait for a write, and say so when it takes long."""
        task = asyncio.ensure_future(write)
        try:
            while not (await asyncio.wait({task}, timeout=_PATIENCE_S))[0]:
                self._metrics.sink_errors.labels(sink.name).inc()
                _log.warning("%s: not confirmed after %.0f s, waiting on", sink.name, _PATIENCE_S)
            task.result()
        finally:
            task.cancel()

    async def _timed(self, lane: Lane, stage: str, work: Awaitable[T]) -> T:
        with self._metrics.stage.labels(stage, lane).time():
            return await work

    def _observe_arrival(self, lane: Lane, batch: Batch) -> None:
        self._metrics.batch_items.labels(lane).observe(len(batch))
        self._metrics.stage.labels("wait", lane).observe(max(0.0, time.monotonic() - batch[0].taken_s))

    def _observe_scoring(self, lane: Lane, result: BatchOutcome) -> None:
        self._metrics.stage.labels("prepare", lane).observe(result.tokenise_s)
        self._metrics.stage.labels("forward", lane).observe(result.forward_s)
        self._metrics.tokens.inc(result.tokens)
        self._metrics.audio_seconds.inc(result.audio_s)
        self._metrics.out_of_memory.inc(result.halvings)
        if result.padded_tokens:
            self._metrics.padding_share.observe(1 - result.tokens / result.padded_tokens)

    def _observe_partner(self, question: Question, outcome: Outcome | None) -> None:
        """Count a half that came after its partner was answered."""
        item, known = question.item, question.known
        if known is None or known.emotion is None or len(item.records) > 1:
            return
        half, partner = ("post", "voice") if item.post is not None else ("clip", "text")
        if partner in known.emotion.modalities:
            joined = isinstance(outcome, Scored) and len(outcome.modalities) > 1
            self._metrics.late_halves.labels(half, "joined" if joined else "kept" if outcome is None else "alone").inc()

    def _observe_end(self, answers: Sequence[tuple[Item, Answer]], letters: dict[Record, DeadLetter]) -> None:
        now_s = self._wall_clock()
        for item, answer in answers:
            path = PATHS[tuple(answer.emotion.modalities)]
            self._metrics.answers.labels(path, answer.emotion.emotion).inc()
            newest_s = max(record.timestamp_s for record in item.records)
            self._metrics.latency.labels(path).observe(max(0.0, now_s - newest_s))
        for record, letter in letters.items():
            self._metrics.dead_letters.labels(record.topic, letter.why.reason).inc()


def standing_answer(known: Known | None) -> Answer:
    """Return the answer that an id has already, to be given once more."""
    assert known is not None and known.emotion is not None, "only what is known can stand"  # noqa: S101, PT018
    return Answer(emotion=known.emotion, post_ms=known.post_ms, clip_ms=known.clip_ms)
