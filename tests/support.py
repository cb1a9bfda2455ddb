"""What several integration tests do: run a worker, feed it, read everything back."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient
from pydantic import SecretStr

from emostream.connectors.connecting import connect
from emostream.connectors.messages import Post, encode_post
from emostream.connectors.producer import RecordProducer
from emostream.connectors.reader import Received, read_records
from emostream.streams.settings import Settings
from emostream.streams.stack import Stack

ROOT = Path(__file__).parent.parent
KAFKA_SCRIPT = Path(os.environ.get("EMOSTREAM_TEST_KAFKA", ROOT.parent / "shared" / "kafka")) / "kafka.py"
BOOTSTRAP = os.environ.get("EMOSTREAM_TEST_BOOTSTRAP")

PARTITIONS = 4

_SESSION_TIMEOUT_S = 6 if BOOTSTRAP else 2
"""Kafka takes 6 s or more unless told otherwise; the brokers that tests start were."""


BROKERS = ["embedded", "kafka"] if BOOTSTRAP or KAFKA_SCRIPT.is_file() else ["embedded"]

READY_S = 120.0
ANSWER_S = 90.0

TEXTS = (
    "I can't believe they cancelled my train AGAIN, this is a joke",
    "we won!!! best day of my life 🎉",
    "the meeting is at three in room four",
    "miss you every single day, grandma",
    "there is mould on the bread i just ate 🤢",
    "someone is trying the door handle and i am home alone",
    "wait, you two are MARRIED?!",
)


@dataclass(frozen=True)
class Broker:
    """A running broker."""

    name: str
    bootstrap: str


def make_settings(broker: Broker, stack: Stack, **changes: object) -> Settings:
    """Return settings with topics, group and key prefix that nobody else uses."""
    unique = uuid.uuid4().hex[:8]
    return Settings(
        kafka=broker.bootstrap,
        redis=stack.redis,
        redis_prefix=f"{unique}:",
        posts_topic=f"posts-{unique}",
        clips_topic=f"clips-{unique}",
        emotions_topic=f"emotions-{unique}",
        dead_letters_topic=f"dead-letters-{unique}",
        group=f"group-{unique}",
        partitions=PARTITIONS,
        session_timeout_s=_SESSION_TIMEOUT_S,
        http_port=0,
        **changes,
    )


@dataclass
class RunningWorker:
    """A worker process under test."""

    settings: Settings
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def address(self) -> str:
        """Where its metrics and probes are; it says so in its log, once it listens."""
        found = re.search(r"metrics and probes: (http://\S+)/metrics", self.log.read_text())
        if not found:
            raise ConnectionError("not listening yet")
        return found[1]

    def get(self, path: str) -> tuple[int, str]:
        """Ask a probe."""
        try:
            with urllib.request.urlopen(self.address + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric's value, summed over the samples that have these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.split("{")[0] == name and all(f'{key}="{want}"' in sample for key, want in labels.items()):
                total += float(value)
        return total

    def await_ready(self) -> None:
        """Wait until /readyz says yes."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the worker ended:\n{self.log.read_text()[-3000:]}"
            try:
                return self.get("/readyz")[0] == 200
            except (ConnectionError, urllib.error.URLError):
                return False

        await_true(ready, within_s=READY_S, what=lambda: self.log.read_text()[-3000:])

    def children(self) -> list[int]:
        """Return the pids of its child processes: the GPU worker."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def gpu_worker(self) -> int:
        """Return the pid of its GPU worker, once there is one."""
        await_true(lambda: len(self.children()) == 1, within_s=READY_S)
        return self.children()[0]

    def answers_some(self) -> bool:
        """Say whether it has answered anything yet."""
        try:
            return self.metric("emostream_answers_total") > 0
        except (ConnectionError, urllib.error.URLError):
            return False

    def idle(self) -> bool:
        """Say whether nothing waits in it or is under way: what it has answered is in Redis, and counted."""
        names = ("emostream_join_waiting", "emostream_queued_items", "emostream_batches_in_flight")
        return not any(map(self.metric, names))

    def end(self, number: signal.Signals = signal.SIGTERM, *, within_s: float = 60.0) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(within_s)


@contextlib.contextmanager
def running_worker(
    settings: Settings, log: Path, *, ready: bool = True, environment: Mapping[str, str] | None = None
) -> Iterator[RunningWorker]:
    """Run a worker process, ready for posts, and end it with the block."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "emostream.streams.cli", "worker"],
            env={**os.environ, **as_environment(settings), **(environment or {})},
            stdout=sink,
            stderr=sink,
        )
    worker = RunningWorker(settings, process, log)
    try:
        if ready:
            worker.await_ready()
        yield worker
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running_up(log: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """Run `emostream up`, and yield its process and the environment of a user beside it."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "emostream.streams.cli", "up"],
            env={**os.environ, "COLUMNS": "40"},  # what is to be copied must stay whole on a narrow terminal
            stdout=sink,
            stderr=sink,
        )
    try:
        await_true(lambda: "Ctrl-C ends it" in log.read_text(), within_s=READY_S, what=log.read_text)
        found = re.search(r"EMOSTREAM_KAFKA=(\S+) EMOSTREAM_REDIS=(\S+)", log.read_text())
        assert found, log.read_text()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        yield process, {**os.environ, "PATH": path, "EMOSTREAM_KAFKA": found[1], "EMOSTREAM_REDIS": found[2]}
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def as_environment(settings: Settings) -> dict[str, str]:
    """Return settings as environment variables."""
    values = settings.model_dump(exclude_none=True)
    return {
        f"EMOSTREAM_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
    }


def with_broken_model() -> str:
    """Return a PYTHONPATH with which the model can be made to fail (faults/broken_model)."""
    before = os.environ.get("PYTHONPATH")
    return str(ROOT / "tests/faults/broken_model") + (f":{before}" if before else "")


def make_certificate(file: Path, *extensions: str, passphrase: str | None = None) -> Path:
    """Make a certificate that signs itself, its key in the same file."""
    further = [part for extension in extensions for part in ("-addext", extension)]
    lock = ["-passout", f"pass:{passphrase}"] if passphrase else ["-nodes"]
    names = ["-subj", f"/CN={file.stem}", "-keyout", file, "-out", file]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", *names, *lock, *further]
    subprocess.run(command, check=True, capture_output=True)
    return file


def command(settings: Settings, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return a command line and its environment."""
    return [sys.executable, "-m", "emostream.streams.cli", *arguments], {**os.environ, **as_environment(settings)}


def emostream(settings: Settings, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    line, variables = command(settings, *arguments)
    return subprocess.run(line, env=variables, capture_output=True, text=True, timeout=120, **more)


def make_posts(count: int) -> list[Post]:
    """Return posts with ids that nobody else uses."""
    run = uuid.uuid4().hex[:8]
    return [Post(id=f"{run}-{i}", text=f"{TEXTS[i % len(TEXTS)]} ({i})", source="tests") for i in range(count)]


def publish(settings: Settings, posts: Iterable[Post]) -> None:
    """Publish posts, and return once they are confirmed."""
    publish_raw(settings, [(post.id, encode_post(post)) for post in posts])


def publish_raw(settings: Settings, records: Iterable[tuple[str | None, bytes]]) -> None:
    """Publish keys and values as they are."""
    with RecordProducer(settings.kafka_access) as producer:
        for key, value in records:
            producer.publish(settings.posts_topic, key=key, value=value)
        producer.flush()


def publish_clips(settings: Settings, clips: Iterable[tuple[str, bytes]]) -> None:
    """Publish recordings under the ids of their posts."""
    with RecordProducer(settings.kafka_access) as producer:
        for key, value in clips:
            producer.publish(settings.clips_topic, key=key, value=value)
        producer.flush()


def collect(
    settings: Settings, done: Callable[[Sequence[Received]], bool], *, within_s: float = ANSWER_S
) -> list[Received]:
    """Read `emotions` and `dead-letters` from the beginning until `done` says it is enough, or time is up."""
    received: list[Received] = []
    deadline_s = time.monotonic() + within_s
    records = read_records(
        settings.kafka_access,
        [settings.emotions_topic, settings.dead_letters_topic],
        from_beginning=True,
        stopping=lambda: done(received) or time.monotonic() > deadline_s,
    )
    for record in records:
        received.append(record)  # noqa: PERF402  # `done` looks at the list while it grows
    return received


def collect_answers(settings: Settings, ids: set[str], *, within_s: float = ANSWER_S) -> list[Received]:
    """Read until each of these posts is answered or a dead letter, and return what concerns them."""

    def keys(received: Sequence[Received]) -> set[str]:
        return {record.key.decode() for record in received if record.key}

    received = collect(settings, lambda so_far: ids <= keys(so_far), within_s=within_s)
    return [record for record in received if record.key and record.key.decode() in ids]


def group_members(settings: Settings) -> int:
    """Return how many workers Kafka takes for members of the group."""
    admin = connect(KafkaAdminClient, settings.kafka_access)
    try:
        return len(admin.describe_groups([settings.group])[settings.group]["members"])
    finally:
        admin.close()


def await_true(condition: Callable[[], bool], *, within_s: float, what: Callable[[], str] = lambda: "") -> None:
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what()}"
        time.sleep(0.05)
