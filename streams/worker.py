"""One stream worker: wires everything together, runs it until a signal, and ends it in order.

Called by `emostream worker`. Order of the end: Faust first (it stops reading and waits until everything taken is
acknowledged and committed), then the pipeline, the GPU worker and the sinks.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faust
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from emostream.connectors.kafka_sink import KafkaDeadLetters, KafkaSink, KafkaWriter
from emostream.connectors.optional_store import OptionalStore
from emostream.connectors.redis_sink import RedisSink
from emostream.connectors.sinks import AnswerStore
from emostream.connectors.topics import create_topics, describe_topics, require_equal_partitions, require_group
from emostream.model.samples import ModelInfo, attribute_names
from emostream.streams.app import build_app
from emostream.streams.batcher import Batcher
from emostream.streams.errors import StreamError
from emostream.streams.frames import Lane, ScorerOptions
from emostream.streams.gpu_worker import GpuWorker
from emostream.streams.join import Join
from emostream.streams.metrics import Metrics
from emostream.streams.offsets import OffsetOrder
from emostream.streams.pipeline import Pipeline
from emostream.streams.probes import Check, ProbeServer
from emostream.streams.records import Record
from emostream.streams.settings import Settings
from emostream.streams.stopping import signals_to_stop

_log = logging.getLogger(__name__)

_COMMIT_PATIENCE_S = 30.0
"""A worker whose commits stand still for longer is not ready: it answers posts that others will answer again."""

_GAUGE_INTERVAL_S = 0.5

_REDIS_TIMEOUT_S = {"wait": 10.0, "skip": 2.0}
"""Whoever does not wait for Redis does not wait long to see that it hangs."""


class Worker:
    """A stream worker.

    Args:
        settings: All settings.
        on_listening: Told the address of metrics and probes.
    """

    def __init__(self, settings: Settings, *, on_listening: Callable[[str], None] = lambda _: None) -> None:
        self._settings = settings
        self._on_listening = on_listening
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._metrics = Metrics(self._registry)
        self._offsets = OffsetOrder(rebalanced=self._metrics.rebalances.inc)
        self._batchers: dict[Lane, Batcher] = {
            "texts": Batcher(
                most_items=settings.batch_posts,
                most_cost=settings.batch_tokens,
                max_wait_s=settings.max_wait_ms / 1000,
                queue_items=settings.queue_posts,
                queue_bytes=settings.join_waiting_mb * 2**20,
            ),
            "clips": Batcher(
                most_items=settings.batch_posts,
                most_cost=settings.batch_audio_s,
                max_wait_s=settings.max_wait_ms / 1000,
                queue_items=settings.queue_clips,
                queue_bytes=settings.join_waiting_mb * 2**20,
            ),
        }
        self._join = Join(
            texts=self._batchers["texts"].put,
            voices=self._batchers["clips"].put,
            grace_s=settings.join_grace_s,
            most_bytes=round(settings.join_waiting_mb * 2**20),
            metrics=self._metrics,
        )
        self._gpu_worker = GpuWorker(
            ScorerOptions(
                checkpoint=str(settings.checkpoint or ""),
                device=settings.device,
                precision=settings.precision,
                threads=settings.threads,
                attributes=attribute_names(settings.attributes),
            ),
            deadline_s=settings.inference_deadline_s,
            restarts=self._metrics.gpu_worker_restarts,
        )

        self._app: faust.App | None = None

    async def run(self) -> None:
        """Run until SIGTERM, SIGINT, or a closed terminal.

        Raises:
            BrokerError: Kafka is away at the start, or refuses to create topics.
            AccessRefused: Kafka or Redis does not let us in at the start.
            ScorerUnusable: The model cannot be loaded, or its process dies of whatever it is asked.
            StreamError: The port is taken, or Faust gave up; what was not committed is delivered to the next worker.
        """
        stopping = asyncio.Event()
        serving = asyncio.create_task(self._serve(stopping))

        def stop() -> None:
            stopping.set()
            if self._app is None:  # a model may load for minutes, and there is nothing to drain yet
                serving.cancel()

        for number in signals_to_stop():
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            await serving
        except asyncio.CancelledError:
            if not stopping.is_set():
                raise
            _log.info("stopped before it was ready")

    async def _serve(self, stopping: asyncio.Event) -> None:
        async with contextlib.AsyncExitStack() as ending:
            await self._start_probes(ending)
            await asyncio.to_thread(self._ensure_kafka)
            ending.push_async_callback(self._gpu_worker.stop)
            pipeline = await self._build_pipeline(ending)
            scratch = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="emostream-")))
            app = build_app(
                self._settings, posts=self._take_post, clips=self._take_clip, offsets=self._offsets, scratch=scratch
            )
            carrying = asyncio.create_task(self._carry(pipeline))
            ending.push_async_callback(_cancel, carrying, asyncio.create_task(self._keep_gauges()))
            ending.push_async_callback(self._drain, app, carrying)
            await app.start()
            self._app = app
            await self._until_the_end(stopping, app, carrying)

    async def _until_the_end(self, stopping: asyncio.Event, app: faust.App, carrying: "asyncio.Task[None]") -> None:
        """Wait until told to stop, or until Faust or the pipeline ends by itself, which is an error."""
        told = asyncio.create_task(stopping.wait())
        ended = asyncio.create_task(app.wait_until_stopped())
        unscored = asyncio.create_task(self._gpu_worker.wait_failed())
        await asyncio.wait({told, ended, unscored, carrying}, return_when=asyncio.FIRST_COMPLETED)
        for task in (unscored, carrying):  # the cause before what it ended
            if task.done():
                await _cancel(carrying)  # what is left is not answered here: draining need not wait for it
                task.result()
        await _cancel(told, ended, unscored)
        if app.crashed:
            raise StreamError(f"Faust gave up: {app.crash_reason!r}")
        _log.info("stopping: no more records are taken, what was taken is answered and committed")

    async def _start_probes(self, ending: contextlib.AsyncExitStack) -> None:
        host, port = self._settings.http_host, self._settings.http_port
        probes = ProbeServer(registry=self._registry, checks=self._checks)
        ending.push_async_callback(probes.stop)
        try:
            port = await probes.start(host=host, port=port)
        except OSError as error:
            raise StreamError(
                f"{host}:{port} cannot be listened on ({error.strerror}); EMOSTREAM_HTTP_PORT=0 takes a free port"
            ) from error
        self._on_listening(f"http://{host}:{port}")

    async def _drain(self, app: faust.App, carrying: "asyncio.Task[None]") -> None:
        """Stop Faust, which waits until what was taken is acknowledged and commits it."""
        self._join.close()
        grace_s = 0.0 if carrying.done() else self._settings.stop_grace_s
        stopping = asyncio.create_task(app.stop())  # it heeds no cancellation
        await asyncio.wait({stopping, carrying}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            stopping.result()
        else:
            _log.warning("not everything taken could be answered; Kafka delivers the rest to the next worker")

    def _ensure_kafka(self) -> None:
        settings = self._settings
        states = (
            create_topics(
                settings.kafka_access,
                settings.topics,
                partitions=settings.partitions,
                replication=settings.replication,
                alike=settings.topics_of_halves,
            )
            if settings.create_topics
            else describe_topics(settings.kafka_access, settings.topics)
        )
        require_equal_partitions([each for each in states if each.name in settings.topics_of_halves])
        require_group(settings.kafka_access, settings.group)

    async def _carry(self, pipeline: Pipeline) -> None:
        """Carry both lanes, and let halves meet, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._join.run())
            for lane, batcher in self._batchers.items():
                tasks.create_task(pipeline.run(lane, batcher, batches_in_flight=self._settings.batches_in_flight))

    async def _build_pipeline(self, ending: contextlib.AsyncExitStack) -> Pipeline:
        """Start the GPU worker and return the pipeline around it."""
        model = await self._gpu_worker.start()
        _log.info("model %s", model)
        self._metrics.model.info(
            {"name": model.name, "version": model.version, "device": model.device, "precision": model.precision}
        )
        answers = KafkaSink(self._writer(self._settings.emotions_topic))
        dead_letters = KafkaDeadLetters(self._writer(self._settings.dead_letters_topic))
        store = self._redis_sink(model)
        for sink in (answers, dead_letters, store):
            ending.push_async_callback(sink.close)
        await store.open()
        return Pipeline(
            scorer=self._gpu_worker,
            model=model,
            answers=answers,
            store=self._as_wished(store),
            dead_letters=dead_letters,
            offsets=self._offsets,
            metrics=self._metrics,
            carried=self._join.carried,
        )

    def _redis_sink(self, model: ModelInfo) -> RedisSink:
        settings = self._settings
        return RedisSink(
            settings.redis_access.client(timeout_s=_REDIS_TIMEOUT_S[settings.redis_outage]),
            prefix=settings.redis_prefix,
            keep_s=settings.redis_keep_s,
            late_s=settings.late_s,
            model=f"{model.name}/{model.version}",
        )

    def _as_wished(self, store: AnswerStore) -> AnswerStore:
        """Return a store that is waited for, or one that is not."""
        if self._settings.redis_outage == "wait":
            return store
        return OptionalStore(store, skipped=self._metrics.skipped_answers.inc)

    def _writer(self, topic: str) -> KafkaWriter:
        return KafkaWriter(topic=topic, access=self._settings.kafka_access)

    async def _take_post(self, record: Record) -> None:
        self._metrics.records_in.labels(record.topic).inc()
        await self._join.take_post(record)

    async def _take_clip(self, record: Record) -> None:
        self._metrics.records_in.labels(record.topic).inc()
        await self._join.take_clip(record)

    def _checks(self) -> Sequence[Check]:
        assigned = self._assigned()
        rebalancing = self._app is None or self._app.rebalancing
        partitions = ", ".join(f"{n} of {kind}" for kind, n in assigned.items()) + ", rebalancing" * rebalancing
        uncommitted_s = self._offsets.uncommitted_s
        return [
            Check("model", self._gpu_worker.ready, "warm" if self._gpu_worker.ready else "starting"),
            Check("partitions", all(assigned.values()) and not rebalancing, partitions),
            Check("commits", uncommitted_s < _COMMIT_PATIENCE_S, f"oldest waits {uncommitted_s:.1f} s"),
        ]

    def _assigned(self) -> dict[str, int]:
        """Return how many partitions of each topic this worker reads."""
        topics = {"posts": self._settings.posts_topic, "clips": self._settings.clips_topic}
        return {kind: sum(topic == name for topic, _ in self._offsets.partitions) for kind, name in topics.items()}

    async def _keep_gauges(self) -> None:
        while True:
            checks = self._checks()
            self._metrics.ready.set(all(check.met for check in checks))
            for lane, batcher in self._batchers.items():
                self._metrics.queued_items.labels(lane).set(len(batcher))
            for half, count in self._join.waiting.items():
                self._metrics.join_waiting.labels(half).set(count)
            self._metrics.uncommitted_seconds.set(self._offsets.uncommitted_s)
            for kind, count in self._assigned().items():
                self._metrics.assigned_partitions.labels(kind).set(count)
            await asyncio.sleep(_GAUGE_INTERVAL_S)


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
