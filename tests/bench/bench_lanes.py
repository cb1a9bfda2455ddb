"""How long texts take with and without a burst of minute-long clips, on one worker, turn by turn in one run.

Texts come at a steady rate; every second round, a burst of 60-second clips is published at its beginning. What is
printed is the latency from Kafka's timestamp of a post to that of its answer, and how much of the burst was heard
meanwhile. Run with `make bench-lanes`.
"""

import argparse
import statistics
import sys
import tempfile
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from bench_pipeline import demo_texts
from rich.console import Console
from rich.table import Table
from support import RunningWorker, await_true, collect_answers, publish_clips, running_worker
from tiny_recordings import write_wav

from emostream.connectors.jsonl import Pace
from emostream.connectors.messages import Post, decode_emotion, encode_post
from emostream.connectors.producer import RecordProducer
from emostream.connectors.topics import create_topics
from emostream.connectors.transcode import fit_clip
from emostream.streams.settings import Settings
from emostream.streams.stack import embedded_stack


def latencies_s(worker: RunningWorker, texts: list[str], *, rate: float) -> list[float]:
    """Publish texts at a rate, and return how long each took to be answered."""
    run = uuid.uuid4().hex[:8]
    pace = Pace(rate)
    with RecordProducer(worker.settings.kafka_access) as producer:
        for number, text in enumerate(texts):
            pace.wait()
            post = Post(id=f"{run}-{number}", text=text)
            producer.publish(worker.settings.posts_topic, key=post.id, value=encode_post(post))
        producer.flush()
    ids = {f"{run}-{number}" for number in range(len(texts))}
    answers = {record.key: record for record in collect_answers(worker.settings, ids, within_s=300)}
    return [r.timestamp_s - decode_emotion(r.value or b"").ingested_at.timestamp() for r in answers.values()]


def with_burst(worker: RunningWorker, texts: list[str], clip: bytes, *, clips: int, rate: float) -> list[float]:
    """Do the same while a burst of clips is heard; the burst outlasts the texts, or the figure would flatter."""
    heard_s = worker.metric("emostream_audio_seconds_total")
    burst = [(f"burst-{uuid.uuid4().hex}", clip) for _ in range(clips)]
    publish_clips(worker.settings, burst)
    await_true(lambda: worker.metric("emostream_audio_seconds_total") > heard_s, within_s=60)
    taken = latencies_s(worker, texts, rate=rate)
    so_far_s = worker.metric("emostream_audio_seconds_total") - heard_s
    Console().print(f"  burst: {so_far_s:.0f} of {60 * clips} s of speech were heard while the texts came")
    await_true(lambda: worker.metric("emostream_audio_seconds_total") - heard_s >= 60 * clips, within_s=600)
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=30.0, help="texts a second (30)")
    parser.add_argument("--texts", type=int, default=300, help="texts a round (300)")
    parser.add_argument("--clips", type=int, default=60, help="clips of a minute each in a burst (60)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind (3)")
    parser.add_argument("--kafka", help="bootstrap address of a running Kafka; the embedded broker if not given")
    options = parser.parse_args()
    console = Console()
    texts = (demo_texts() * (options.texts // 250 + 1))[: options.texts]
    with embedded_stack() as stack, tempfile.TemporaryDirectory() as folder:
        clip = fit_clip(write_wav(Path(folder) / "minute.wav", 61)).audio
        unique = uuid.uuid4().hex[:8]
        settings = Settings(
            kafka=options.kafka or stack.kafka, redis=stack.redis, redis_prefix=f"{unique}:", group=unique,
            posts_topic=f"posts-{unique}", clips_topic=f"clips-{unique}", emotions_topic=f"emotions-{unique}",
            dead_letters_topic=f"dead-{unique}", session_timeout_s=6, http_port=0, join_grace_s=0.5,
        )  # fmt: skip
        create_topics(settings.kafka_access, settings.topics, partitions=8, replication=-1)
        with running_worker(settings, Path(folder) / "log") as worker:
            latencies_s(worker, texts[:100], rate=options.rate)  # warm-up
            rounds = []
            for number in range(options.rounds):
                quiet = np.percentile(latencies_s(worker, texts, rate=options.rate), [50, 95])
                busy = np.percentile(with_burst(worker, texts, clip, clips=options.clips, rate=options.rate), [50, 95])
                rounds.append((*quiet, *busy, busy[1] / quiet[1]))
                console.print(f"round {number + 1}: p95 {quiet[1] * 1000:.0f} ms, with a burst {busy[1] * 1000:.0f} ms")
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    table = Table("", "p50", "p95", title=f"{options.rate:g} texts a second, {options.rounds} rounds of {len(texts)}")
    table.add_row("texts alone", *(f"{1000 * value:.0f} ms" for value in medians[:2]))
    table.add_row(f"with {options.clips} minutes of speech", *(f"{1000 * value:.0f} ms" for value in medians[2:4]))
    table.add_row("ratio of p95", "", f"{medians[4]:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
