"""Every metric, declared once.

`model` and `connectors` return facts; the pipeline, the GPU worker and the worker observe them. Base units: seconds,
tokens. A registry is passed in, so that tests and benchmarks have their own.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from emostream.model.samples import MODALITIES
from emostream.streams.frames import LANES

_LATENCY_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
"""10 ms (an idle worker on a GPU) to 10 minutes (a backlog being worked off)."""

_STAGE_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
"""Half a millisecond (decoding a batch) to a minute (an output that is away and retried)."""

_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""One post (an idle stream) to twice the default largest batch."""

_JOIN_S = (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 30, 60)
"""Halves that arrive together to a grace far above the default of 5 s."""

_SHARE = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Share of computed tokens that are padding: 0.1 is what sorted tweets give, 0.5 is half the work wasted."""

STAGES = ("wait", "look_up", "score", "prepare", "forward", "kafka", "redis", "dead_letters")
"""wait: in the queue and the batcher. look_up: asking Redis for partners. score: round trip to the GPU worker, of which
prepare (tokenise, decode, cut) and forward are parts. The others: writing until confirmed, with every retry."""

JOIN_OUTCOMES = ("joined", "alone", "answered_before", "no_room")
"""joined: the other half came. alone: it did not within the grace, or before a newer post. answered_before: it had been
answered, and what is kept of it is joined. no_room: sent on early, because too much waited."""


class Metrics:
    """The metrics of one worker.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.records_in = Counter("emostream_records_in", "Records taken, by topic.", ["topic"], registry=registry)
        self.answers = Counter(
            "emostream_answers",
            "Answers that are confirmed everywhere, by path (text, voice, fused) and emotion.",
            ["path", "emotion"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "emostream_dead_letters",
            "Records that became a dead letter, by the topic they came from and the reason.",
            ["topic", "reason"],
            registry=registry,
        )
        self.latency = Histogram(
            "emostream_latency_seconds",
            "From the Kafka timestamp of an item's newer record until its answer is confirmed everywhere.",
            ["path"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.stage = Histogram(
            "emostream_stage_seconds",
            "Time a batch spends in a stage, by lane: texts, clips.",
            ["stage", "lane"],
            buckets=_STAGE_S,
            registry=registry,
        )
        self.batch_items = Histogram(
            "emostream_batch_items", "Items of a batch.", ["lane"], buckets=_ITEMS, registry=registry
        )
        self.padding_share = Histogram(
            "emostream_padding_share",
            "Share of the tokens computed for a batch that are padding.",
            buckets=_SHARE,
            registry=registry,
        )
        self.tokens = Counter("emostream_tokens", "Tokens read by the encoder.", registry=registry)
        self.audio_seconds = Counter(
            "emostream_audio_seconds", "Seconds of speech heard by the model.", registry=registry
        )
        self.join_wait = Histogram(
            "emostream_join_wait_seconds",
            "How long halves waited for the other, by how the wait ended.",
            ["outcome"],
            buckets=_JOIN_S,
            registry=registry,
        )
        self.join_waiting = Gauge(
            "emostream_join_waiting", "Halves that wait for the other: post, clip.", ["half"], registry=registry
        )
        self.late_halves = Counter(
            "emostream_late_halves",
            "Halves that came after the other was answered: joined with it, alone (its vector was gone), or kept (the "
            "richer answer stands).",
            ["half", "outcome"],
            registry=registry,
        )
        self.queued_items = Gauge("emostream_queued_items", "Items that wait for a batch.", ["lane"], registry=registry)
        self.batches_in_flight = Gauge(
            "emostream_batches_in_flight", "Batches between intake and acknowledgement.", ["lane"], registry=registry
        )
        self.gpu_worker_restarts = Counter(
            "emostream_gpu_worker_restarts",
            "Times the model's process was started again, by cause.",
            ["cause"],
            registry=registry,
        )
        self.batch_retries = Counter(
            "emostream_batch_retries",
            "Batches sent to the GPU worker again, or split, by reason.",
            ["reason"],
            registry=registry,
        )
        self.out_of_memory = Counter(
            "emostream_out_of_memory",
            "Times the model's device ran out of memory; each halves what is computed at once.",
            registry=registry,
        )
        self.sink_errors = Counter(
            "emostream_sink_errors",
            "Writes to an output that failed or are not confirmed for long, each tried until it is, and failed "
            "look-ups; none of a Redis that is not waited for.",
            ["sink"],
            registry=registry,
        )
        self.skipped_answers = Counter(
            "emostream_skipped_answers",
            "Answers that went to Kafka alone, because Redis was away and is not waited for.",
            registry=registry,
        )
        self.rebalances = Counter(
            "emostream_rebalances", "Times that partitions were shared out anew among workers.", registry=registry
        )
        self.uncommitted_seconds = Gauge(
            "emostream_uncommitted_seconds",
            "How long an acknowledged record has been waiting for its commit; 0 when none is.",
            registry=registry,
        )
        self.assigned_partitions = Gauge(
            "emostream_assigned_partitions",
            "Partitions that this worker reads, by topic.",
            ["topic"],
            registry=registry,
        )
        self.ready = Gauge("emostream_ready", "1 when /readyz says yes.", registry=registry)
        self.model = Info("emostream_model", "The model that answers.", registry=registry)
        for lane in LANES:
            for stage in STAGES:
                self.stage.labels(stage, lane)
        for path in MODALITIES:
            self.latency.labels(path)
        for outcome in JOIN_OUTCOMES:
            self.join_wait.labels(outcome)
        for sink in ("kafka", "redis", "dead_letters"):
            self.sink_errors.labels(sink)
        for cause in ("died", "deadline"):
            self.gpu_worker_restarts.labels(cause)
