"""Every metric, declared once.

`model` and `connectors` return facts; the pipeline, the GPU worker and the worker observe them. Base units: seconds,
tokens, posts. A registry is passed in, so that tests and benchmarks have their own.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

_LATENCY_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
"""10 ms (an idle worker on a GPU) to 10 minutes (a backlog being worked off)."""

_STAGE_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
"""Half a millisecond (decoding a batch) to a minute (an output that is away and retried)."""

_POSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""One post (an idle stream) to twice the default largest batch."""

_SHARE = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Share of computed tokens that are padding: 0.1 is what sorted tweets give, 0.5 is half the work wasted."""

STAGES = ("wait", "score", "tokenise", "forward", "kafka", "redis", "dead_letters")
"""wait: in the queue and the batcher. score: round trip to the GPU worker, of which tokenise and forward are parts.
The others: writing until confirmed, with every retry."""


class Metrics:
    """The metrics of one worker.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.posts_in = Counter("emostream_posts_in", "Records taken from posts.", registry=registry)
        self.posts_out = Counter(
            "emostream_posts_out", "Posts whose answer is confirmed everywhere.", ["emotion"], registry=registry
        )
        self.dead_letters = Counter(
            "emostream_dead_letters", "Records that became a dead letter.", ["reason"], registry=registry
        )
        self.latency = Histogram(
            "emostream_latency_seconds",
            "From a record's Kafka timestamp until its answer is confirmed everywhere.",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.stage = Histogram(
            "emostream_stage_seconds",
            "Time a batch spends in a stage.",
            ["stage"],
            buckets=_STAGE_S,
            registry=registry,
        )
        self.batch_posts = Histogram("emostream_batch_posts", "Posts of a batch.", buckets=_POSTS, registry=registry)
        self.padding_share = Histogram(
            "emostream_padding_share",
            "Share of the tokens computed for a batch that are padding.",
            buckets=_SHARE,
            registry=registry,
        )
        self.tokens = Counter("emostream_tokens", "Tokens read by the encoder.", registry=registry)
        self.queued_posts = Gauge("emostream_queued_posts", "Posts that wait for a batch.", registry=registry)
        self.batches_in_flight = Gauge(
            "emostream_batches_in_flight", "Batches between intake and acknowledgement.", registry=registry
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
        self.sink_errors = Counter(
            "emostream_sink_errors", "Failed writes to an output; each is tried again.", ["sink"], registry=registry
        )
        self.uncommitted_seconds = Gauge(
            "emostream_uncommitted_seconds",
            "How long an acknowledged record has been waiting for its commit; 0 when none is.",
            registry=registry,
        )
        self.assigned_partitions = Gauge(
            "emostream_assigned_partitions", "Partitions of posts that this worker reads.", registry=registry
        )
        self.ready = Gauge("emostream_ready", "1 when /readyz says yes.", registry=registry)
        self.model = Info("emostream_model", "The model that answers.", registry=registry)
        for stage in STAGES:
            self.stage.labels(stage)
        for sink in ("kafka", "redis", "dead_letters"):
            self.sink_errors.labels(sink)
        for cause in ("died", "deadline"):
            self.gpu_worker_restarts.labels(cause)
