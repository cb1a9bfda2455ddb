"""Posts per second of the bare model and of the whole stream, in one run, and their ratio.

    bare    the scorer in a process of its own, on batches sorted by length beforehand: what the hardware can do
    stream  posts topic -> worker -> emotions topic and Redis, from a backlog: what a user gets

Both score the same texts with the same weights, precision and threads, turn by turn, so that what else runs on the
machine falls on both alike. Run with `make bench`; `--kafka HOST:PORT` takes a running Kafka in place of the embedded
broker. The texts are the demo's: written for it, 3 to 470 words.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from redis import Redis
from rich.console import Console
from rich.table import Table
from support import RunningWorker, await_true, collect_answers, publish, running_worker

from emostream.connectors.errors import MalformedRecord
from emostream.connectors.messages import Post, decode_emotion, decode_post
from emostream.connectors.topics import create_topics
from emostream.streams.demo import POSTS_FILE
from emostream.streams.settings import Settings
from emostream.streams.stack import embedded_stack

BARE = """
import json, sys, time
from emostream.model.scorer import EmotionScorer, Item
import torch
texts = [Item(text=text) for text in sorted(json.load(sys.stdin), key=len)]
torch.set_num_threads(int(sys.argv[1]))
scorer = EmotionScorer.load(precision=sys.argv[2])
scorer.warm_up()
batches = [texts[i : i + 256] for i in range(0, len(texts), 256)]
scorer.score(batches[len(batches) // 2])
started = time.perf_counter()
for batch in batches:
    scorer.score(batch)
print(json.dumps({"rate": len(texts) / (time.perf_counter() - started), "info": str(scorer.info)}))
"""


def demo_texts() -> list[str]:
    """Return the texts of the demo's posts."""
    texts = []
    for row in POSTS_FILE.read_bytes().splitlines():
        with contextlib.suppress(MalformedRecord):
            texts.append(decode_post(row).text)
    return texts


def measure_bare(texts: list[str], *, threads: int, precision: str) -> tuple[float, str]:
    """Return posts per second of the model alone, and what it ran on."""
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(threads), precision],
        input=json.dumps(texts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    return result["rate"], result["info"]


def measure_stream(worker: RunningWorker, texts: list[str]) -> float:
    """Return posts per second from a backlog in `posts` to the last answer in `emotions` and Redis."""
    run = uuid.uuid4().hex[:8]
    posts = [Post(id=f"{run}-{i}", text=text, source="bench") for i, text in enumerate(texts)]
    publish(worker.settings, posts)
    records = collect_answers(worker.settings, {post.id for post in posts}, within_s=600)
    answered = {record.key: record for record in records if record.topic == worker.settings.emotions_topic}
    assert len(answered) == len(posts), f"{len(posts) - len(answered)} posts are not answered"
    # Redis is written after Kafka: when the newest answers are there, all are.
    keys = [f"{worker.settings.redis_prefix}emotion:{post.id}" for post in posts]
    with Redis.from_url(worker.settings.redis.get_secret_value()) as redis:
        await_true(lambda: int(redis.exists(*keys)) == len(keys), within_s=60)
    ended = time.time()
    began = min(decode_emotion(r.value or b"").ingested_at.timestamp() for r in answered.values())
    return len(posts) / (ended - began)


def stage_seconds(worker: RunningWorker) -> dict[str, float]:
    """Return the seconds spent in each stage so far, summed over batches."""
    stages = ("look_up", "score", "prepare", "forward", "kafka", "redis")
    return {stage: worker.metric("emostream_stage_seconds_sum", stage=stage) for stage in stages}


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=4000, help="posts a round (4000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is printed (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of the model (all)")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--kafka", help="bootstrap address of a running Kafka; the embedded broker if not given")
    options = parser.parse_args()
    console = Console()
    texts = (demo_texts() * (options.posts // 250 + 1))[: options.posts]
    with embedded_stack() as stack, tempfile.TemporaryDirectory() as folder:
        unique = uuid.uuid4().hex[:8]
        settings = Settings(
            kafka=options.kafka or stack.kafka, redis=stack.redis, redis_prefix=f"{unique}:", group=unique,
            posts_topic=f"posts-{unique}", clips_topic=f"clips-{unique}",
            emotions_topic=f"emotions-{unique}", dead_letters_topic=f"dead-{unique}",
            session_timeout_s=2, http_port=0, threads=options.threads, precision=options.precision,
        )  # fmt: skip
        create_topics(settings.kafka_access, settings.topics, partitions=8, replication=-1)
        with running_worker(settings, Path(folder) / "log") as worker:
            measure_stream(worker, texts[:500])  # warm-up
            rounds = []
            before, began = stage_seconds(worker), time.monotonic()
            pids = {"worker": worker.process.pid, "GPU worker": worker.children()[0]}
            cpu = dict.fromkeys(pids, 0.0)
            stream_s = 0.0
            for number in range(options.rounds):
                bare, info = measure_bare(texts, threads=options.threads, precision=options.precision)
                start = {name: cpu_seconds(pid) for name, pid in pids.items()}
                stream = measure_stream(worker, texts)
                stream_s += len(texts) / stream
                for name, pid in pids.items():
                    cpu[name] += cpu_seconds(pid) - start[name]
                rounds.append((bare, stream))
                console.print(
                    f"round {number + 1}: bare {bare:.0f}/s, stream {stream:.0f}/s, ratio {stream / bare:.2f}"
                )
            after = stage_seconds(worker)
            padding = worker.metric("emostream_padding_share_sum") / worker.metric("emostream_padding_share_count")
    bare, stream = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(s / b for b, s in rounds)
    table = Table(title=f"{options.rounds} rounds of {len(texts)} posts, {options.threads} threads, {info}")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_row("bare model, posts/s", f"{bare:.0f}")
    table.add_row(f"stream ({'Kafka' if options.kafka else 'embedded broker'} and Redis), posts/s", f"{stream:.0f}")
    table.add_row("ratio", f"{ratio:.2f}")
    table.add_row("padding share in the stream", f"{padding:.2f}")
    for name, seconds in cpu.items():
        table.add_row(f"CPU of the {name}, ms a post", f"{1000 * seconds / (options.rounds * len(texts)):.2f}")
    for stage, seconds in after.items():
        table.add_row(f"time in {stage} / wall time", f"{(seconds - before[stage]) / stream_s:.2f}")
    console.print(table)
    console.print(f"{time.strftime('%Y-%m-%d')}, {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
