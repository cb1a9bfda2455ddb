"""Half an hour at 70 % of what one worker can do: memory, open files and latency must stay flat.

Measures first what the worker can do, then publishes posts at a share of it, every tenth with a clip, and looks every
ten seconds. Prints a line for each of ten stretches of time, and the last beside the second (the first one warms
up). CPU is that of the worker and its model, latency is everybody's: it shows what neighbours on the machine do, too.

Run with `make soak`. The broker is the one that `--kafka HOST:PORT` names, or an Apache Kafka started for this run
where there is one, or else the embedded one; that one takes more CPU the more it holds, and after a quarter of an hour
the worker wants for it.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from accounts import Traffic, capacity
from faulty import resident_mib, running_cluster
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from support import KAFKA_SCRIPT, RunningWorker, await_true, running_worker

from emostream.connectors.topics import create_topics
from emostream.streams.settings import Settings
from emostream.streams.stack import Stack, embedded_stack

_LOOK_S = 10.0
_STRETCHES = 10
_MOST = {
    "answers/s": 1.1,
    "CPU, ms an answer": 1.3,
    "mean latency, ms": 1.5,
    "p95 at most, ms": 2.5,
    "memory, MiB": 1.1,
    "open files": 1.1,
}
"""What is looked at, and how far the last stretch of time may be above the second one. The p95 is known to the width of
a histogram's bucket, which is a factor of two or more; latency is what neighbours on a shared machine disturb."""
_COLUMNS = tuple(_MOST)


def cpu_s(process: Path) -> float:
    """Return the CPU seconds that a process has had, of its folder in /proc."""
    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def a_kafka(stack: Stack, folder: Path, *, named: str | None, console: Console) -> Iterator[str]:
    """Yield the address of the best broker at hand."""
    if named:
        yield named
    elif KAFKA_SCRIPT.is_file():
        with running_cluster(folder / "kafka") as cluster:
            yield cluster.bootstrap
    else:
        console.print("[yellow]no Apache Kafka at hand: the embedded broker, which takes ever more CPU")
        yield stack.kafka


def look(worker: RunningWorker) -> dict[str, float]:
    """Return what counts at this moment."""
    buckets = {}
    for line in worker.get("/metrics")[1].splitlines():
        if line.startswith("emostream_latency_seconds_bucket"):
            bound = line.split('le="')[1].split('"')[0]
            buckets[bound] = buckets.get(bound, 0.0) + float(line.rpartition(" ")[2])
    children = [Path(f"/proc/{pid}") for pid in worker.children()]
    return {
        "time_s": time.monotonic(),
        "answers": worker.metric("emostream_latency_seconds_count"),
        "latency_s": worker.metric("emostream_latency_seconds_sum"),
        "cpu_s": sum(map(cpu_s, [Path(f"/proc/{worker.process.pid}"), *children])),
        "memory_mib": resident_mib(worker.process.pid),
        "files": worker.metric("process_open_fds") + sum(len(list((child / "fd").iterdir())) for child in children),
        **{f"le {bound}": count for bound, count in buckets.items()},
    }


def stretch(looks: list[dict[str, float]]) -> list[float]:
    """Return the columns of a stretch of time."""
    first, last = looks[0], looks[-1]
    answers = last["answers"] - first["answers"]
    below = {key[3:]: last[key] - first[key] for key in last if key.startswith("le ")}
    p95_s = min((float(bound) for bound, count in below.items() if count >= 0.95 * answers), default=float("inf"))
    return [
        answers / (last["time_s"] - first["time_s"]),
        1000 * (last["cpu_s"] - first["cpu_s"]) / max(1.0, answers),
        1000 * (last["latency_s"] - first["latency_s"]) / max(1.0, answers),
        1000 * p95_s,
        float(np.median([each["memory_mib"] for each in looks])),
        float(np.median([each["files"] for each in looks])),
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--load", type=float, default=0.7, help="share of what the worker can do (0.7)")
    parser.add_argument("--kafka", help="bootstrap address of a running Kafka; see above")
    options = parser.parse_args()
    if options.minutes * 60 < 2 * _STRETCHES * _LOOK_S:
        parser.error(f"at least {2 * _STRETCHES * _LOOK_S / 60:.1f} minutes")
    console = Console()
    with (
        embedded_stack() as stack,
        tempfile.TemporaryDirectory() as folder,
        a_kafka(stack, Path(folder), named=options.kafka, console=console) as kafka,
    ):
        unique = uuid.uuid4().hex[:8]
        settings = Settings(
            kafka=kafka, redis=stack.redis, redis_prefix=f"{unique}:", group=unique,
            posts_topic=f"posts-{unique}", clips_topic=f"clips-{unique}", emotions_topic=f"emotions-{unique}",
            dead_letters_topic=f"dead-{unique}", session_timeout_s=6, http_port=0,
        )  # fmt: skip
        create_topics(settings.kafka_access, settings.topics, partitions=4, replication=-1)
        with running_worker(settings, Path(folder) / "log") as worker:
            capacity(worker, 300, clip_every=10)  # warm-up
            rate = options.load * capacity(worker, 3_000, clip_every=10)
            console.print(f"{rate:.0f} posts a second, {options.load:.0%} of what this worker can do")
            looks = []
            with (
                Progress(console=console) as progress,
                Traffic(settings, int(rate * 60 * options.minutes), rate=rate) as traffic,
            ):
                task = progress.add_task("soaking", total=60 * options.minutes)
                while not traffic.through:
                    looks.append(look(worker))
                    time.sleep(_LOOK_S)
                    progress.advance(task, _LOOK_S)
            traffic.settle(within_s=600)
            await_true(worker.idle, within_s=60)
            account = traffic.count().account
            log_lines = worker.log.read_text().count("\n")
            restarts = worker.metric("emostream_gpu_worker_restarts_total")
            rebalances = worker.metric("emostream_rebalances_total")
    size = len(looks) // _STRETCHES
    rows = [stretch(looks[number * size : (number + 1) * size + 1]) for number in range(_STRETCHES)]
    table = Table("minute", *_COLUMNS)
    for number, row in enumerate(rows):
        table.add_row(f"{number * options.minutes / _STRETCHES:.0f}", *(f"{value:.0f}" for value in row))
    ratios = [last / max(second, 1e-9) for second, last in zip(rows[1], rows[-1], strict=True)]
    table.add_row("last : second", *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)
    console.print(account)
    console.print(
        f"restarts of the model's process: {restarts:.0f}, rebalances: {rebalances:.0f}, log: {log_lines} lines"
    )
    grown = [name for (name, most), ratio in zip(_MOST.items(), ratios, strict=True) if ratio > most]
    if account.lost or restarts or grown:
        sys.exit(f"records lost: {account.lost}; restarts: {restarts:.0f}; not flat: {', '.join(grown) or 'nothing'}")


if __name__ == "__main__":
    main()
