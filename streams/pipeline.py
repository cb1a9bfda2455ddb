"""The way of a batch from `posts` to `emotions`, in numbered steps. Imports neither Faust nor torch nor redis.

Outputs first, offsets last: a record is acknowledged only when its answer is confirmed by every sink, or its dead
letter by Kafka. Whatever fails on the way is tried again here; what happens to a process that ends in between is that
Kafka delivers its records once more.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from emostream.connectors.errors import MalformedRecord, RecordRefused, SinkUnavailable
from emostream.connectors.messages import DeadLetter, Emotion, Post
from emostream.connectors.sinks import AnswerSink, DeadLetterSink
from emostream.model.samples import BatchOutcome, ModelInfo, Outcome, Scored, Unscorable
from emostream.streams.batcher import Batcher
from emostream.streams.errors import ScorerGone, ScoringFailed
from emostream.streams.metrics import Metrics
from emostream.streams.offsets import OffsetOrder
from emostream.streams.records import Batch, Item, Record
from emostream.streams.translate import to_answer, to_dead_letter

_log = logging.getLogger(__name__)

_DEATHS_BEFORE_SPLIT = 3
"""A GPU worker that died so often while working on the same batch was killed by it: the batch is split from then on.
Each time it had scored its warm-up texts in between, so the device is sound."""

_LONGEST_RETRY_PAUSE_S = 10.0
"""Pauses between writes to a sink that is away are random up to a bound, which doubles up to this: short enough to be
back soon after it is."""

T = TypeVar("T")
Written = TypeVar("Written", contravariant=True)


class Scorer(Protocol):
    """What the pipeline needs of a GPU worker."""

    async def score(self, texts: Sequence[str]) -> BatchOutcome:
        """Score texts; raises `ScorerGone` or `ScoringFailed`."""


class Writes(Protocol[Written]):
    """What answer sinks and dead-letter sinks have in common."""

    name: str

    async def write(self, records: Sequence[Written], /) -> None:
        """Write, and return once it is safe."""


class Pipeline:
    """Carries batches from the batcher through model and sinks to acknowledgement.

    Args:
        scorer: The GPU worker.
        model: Which model it runs.
        answers: Where answers go first: Kafka.
        store: Where they go then: Redis.
        dead_letters: Where records go that cannot be answered.
        offsets: Acknowledges in order.
        metrics: What is observed.
        wall_clock: Seconds since 1970, to compare with Kafka's timestamps.
    """

    def __init__(
        self,
        *,
        scorer: Scorer,
        model: ModelInfo,
        answers: AnswerSink,
        store: AnswerSink,
        dead_letters: DeadLetterSink,
        offsets: OffsetOrder,
        metrics: Metrics,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._scorer = scorer
        self._model = model
        self._answers = answers
        self._store = store
        self._dead_letters = dead_letters
        self._offsets = offsets
        self._metrics = metrics
        self._wall_clock = wall_clock

    async def run(self, batcher: Batcher, *, batches_in_flight: int) -> None:
        """Carry batches until cancelled, several at a time, so that one is scored while others are written."""
        slots = asyncio.Semaphore(batches_in_flight)
        async with asyncio.TaskGroup() as carriers:
            while True:
                await slots.acquire()
                batch = await batcher.take()
                carriers.create_task(self.carry(batch)).add_done_callback(lambda _: slots.release())

    async def carry(self, batch: Batch) -> None:
        """Carry one batch all the way. Returns when every record of it is answered or dead, and acknowledged."""
        with self._metrics.batches_in_flight.track_inprogress():
            self._observe_arrival(batch)
            # 1. Score the posts; what is no post goes past the model.
            posts = [item for item in batch if isinstance(item.content, Post)]
            outcomes = await self._timed("score", self._score([_text(item) for item in posts]))
            # 2. Turn outcomes into answers and dead letters.
            answers, letters = self._sort(batch, posts, outcomes)
            # 3. Answers to Kafka, confirmed. An answer that Kafka can never take becomes a dead letter.
            answers = await self._timed("kafka", self._write_answers(self._answers, answers, letters))
            # 4. Answers to Redis. One that Redis can never take stands in Kafka, and its dead letter says so.
            answers = await self._timed("redis", self._write_answers(self._store, answers, letters))
            # 5. Dead letters, confirmed.
            await self._timed("dead_letters", self._write(self._dead_letters, list(letters.values())))
            # 6. Only now may the offsets be committed.
            self._offsets.done([item.record for item in batch])
            self._observe_end(answers, letters)

    async def _score(self, texts: Sequence[str], deaths: int = 0) -> list[Outcome]:
        """Score texts; find, by splitting, the one that the model cannot take."""
        if not texts:
            return []
        try:
            result = await self._scorer.score(texts)
        except ScorerGone as gone:
            self._metrics.batch_retries.labels(ScorerGone.reason).inc()
            deaths += gone.suspect
            if deaths < _DEATHS_BEFORE_SPLIT:
                return await self._score(texts, deaths)
            return await self._split(texts, Unscorable("kills_scorer", "the model's process dies of this post"))
        except ScoringFailed as fault:
            self._metrics.batch_retries.labels(ScoringFailed.reason).inc()
            return await self._split(texts, Unscorable(ScoringFailed.reason, str(fault)))
        self._observe_scoring(result)
        return list(result.outcomes)

    async def _split(self, texts: Sequence[str], verdict: Unscorable) -> list[Outcome]:
        """Score the halves of a batch that fails as a whole; a single text that fails gets the verdict."""
        if len(texts) == 1:
            return [verdict]
        middle = len(texts) // 2
        return [*await self._score(texts[:middle]), *await self._score(texts[middle:])]

    def _sort(
        self, batch: Batch, posts: Sequence[Item], outcomes: Sequence[Outcome]
    ) -> tuple[list[tuple[Record, Emotion]], dict[Record, DeadLetter]]:
        answers: list[tuple[Record, Emotion]] = []
        letters = {
            item.record: to_dead_letter(item.record, item.content)
            for item in batch
            if isinstance(item.content, MalformedRecord)
        }
        for item, outcome in zip(posts, outcomes, strict=True):
            if isinstance(outcome, Scored) and isinstance(item.content, Post):
                answers.append((item.record, to_answer(item.record, item.content, outcome, model=self._model)))
            elif isinstance(outcome, Unscorable):
                letters[item.record] = to_dead_letter(item.record, outcome)
        return answers, letters

    async def _write_answers(
        self, sink: AnswerSink, answers: list[tuple[Record, Emotion]], letters: dict[Record, DeadLetter]
    ) -> list[tuple[Record, Emotion]]:
        """Write answers to a sink, and return those that it took; the others become dead letters."""
        left = answers
        while True:
            try:
                await self._write(sink, [answer for _, answer in left])
                return left
            except RecordRefused as refused:
                record, _ = left[refused.position]
                letters[record] = to_dead_letter(record, Unscorable(refused.reason, str(refused)))
                left = [*left[: refused.position], *left[refused.position + 1 :]]

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
                await sink.write(records)

    async def _timed(self, stage: str, work: Awaitable[T]) -> T:
        with self._metrics.stage.labels(stage).time():
            return await work

    def _observe_arrival(self, batch: Batch) -> None:
        self._metrics.batch_posts.observe(len(batch))
        self._metrics.stage.labels("wait").observe(max(0.0, time.monotonic() - batch[0].taken_s))

    def _observe_scoring(self, result: BatchOutcome) -> None:
        self._metrics.stage.labels("tokenise").observe(result.tokenise_s)
        self._metrics.stage.labels("forward").observe(result.forward_s)
        self._metrics.tokens.inc(result.tokens)
        self._metrics.padding_share.observe(1 - result.tokens / result.padded_tokens)

    def _observe_end(self, answers: Sequence[tuple[Record, Emotion]], letters: dict[Record, DeadLetter]) -> None:
        now_s = self._wall_clock()
        for record, answer in answers:
            self._metrics.posts_out.labels(answer.emotion).inc()
            self._metrics.latency.observe(max(0.0, now_s - record.timestamp_s))
        for letter in letters.values():
            self._metrics.dead_letters.labels(letter.why.reason).inc()


def _text(item: Item) -> str:
    assert isinstance(item.content, Post)  # noqa: S101  # only posts are scored
    return item.content.text
