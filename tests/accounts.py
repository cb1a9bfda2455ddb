"""What went in, what came out: the count behind every row of docs/guarantees.md."""

import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from redis import Redis
from support import ANSWER_S, TEXTS, RunningWorker, await_true

from emostream.connectors.messages import Post, decode_emotion, encode_post
from emostream.connectors.producer import RecordProducer
from emostream.connectors.reader import Received, read_records, read_spans
from emostream.streams.settings import Settings

FULL = os.environ.get("EMOSTREAM_FAULTS") == "full"
"""Whether rows run at their full size (`make test-faults`); else in the smaller one that CI takes."""

ROW_S = 900.0 if FULL else 240.0
"""Longest time until every record of a row is accounted for, on a machine that is busy with other rows."""

FAULT = "fault"
"""Name of the property of a test's report that is a row of the table."""

CLIPS = [file.read_bytes() for file in sorted((Path(__file__).parents[1] / "docs/examples/clips").glob("*.ogg"))]


_HEADER = ("what was broken", "broker", "posts", "clips", "answered", "dead letters", "answered twice", "lost", "")


@dataclass(frozen=True)
class Account:
    """What became of the records of a test.

    Attributes:
        posts: Records that `posts` accepted.
        clips: Records that `clips` accepted.
        answers: Records that an answer answers.
        dead_letters: Records that stand in the dead letters, and have no answer.
        duplicates: Answers of an id that say no more than an earlier one of it.
        lost: Records of which nothing is known.
    """

    posts: int
    clips: int
    answers: int
    dead_letters: int
    duplicates: int
    lost: int


@dataclass
class Ledger:
    """What `emotions` and `dead-letters` say of the records that went in.

    Args:
        posts: Ids of the posts.
        clips: Ids of the clips.
    """

    posts: set[str]
    clips: set[str] = field(default_factory=set)
    answered: set[tuple[str, str]] = field(default_factory=set)
    dead: set[tuple[str, str]] = field(default_factory=set)
    answers: Counter[tuple[str, tuple[str, ...]]] = field(default_factory=Counter)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def note(self, settings: Settings, record: Received) -> None:
        """Note one record of an output topic."""
        id_ = (record.key or b"").decode(errors="replace")
        if record.topic == settings.emotions_topic:
            answer = decode_emotion(record.value or b"")
            self.answers[id_, tuple(answer.modalities)] += 1
            self.answered |= {(name, id_) for name in answer.modalities}
        elif "reason" in record.headers:  # else it marks a letter that was replayed
            half = "voice" if record.headers["origin"].decode().startswith(f"{settings.clips_topic}/") else "text"
            self.dead.add((half, id_))
            self.reasons[half, id_] = record.headers["reason"].decode()

    @property
    def wanted(self) -> set[tuple[str, str]]:
        """The records that went in."""
        return {("text", id_) for id_ in self.posts} | {("voice", id_) for id_ in self.clips}

    @property
    def missing(self) -> set[tuple[str, str]]:
        """The records that nothing is known of."""
        return self.wanted - self.answered - self.dead

    @property
    def account(self) -> Account:
        """The count."""
        wanted = self.wanted
        return Account(
            posts=len(self.posts),
            clips=len(self.clips),
            answers=len(wanted & self.answered),
            dead_letters=len(wanted & self.dead - self.answered),
            duplicates=sum(count - 1 for (id_, _), count in self.answers.items() if id_ in self.posts | self.clips),
            lost=len(self.missing),
        )


def settle(
    settings: Settings, posts: Iterable[str], clips: Iterable[str] = (), *, within_s: float = ANSWER_S
) -> Ledger:
    """Read the outputs from the beginning until every record is accounted for, or time is up."""
    ledger = Ledger(set(posts), set(clips))
    deadline_s = time.monotonic() + within_s
    left = ledger.wanted
    records = read_records(
        settings.kafka_access,
        [settings.emotions_topic, settings.dead_letters_topic],
        from_beginning=True,
        stopping=lambda: not left or time.monotonic() > deadline_s,
    )
    for record in records:
        ledger.note(settings, record)
        id_ = (record.key or b"").decode(errors="replace")
        left -= {pair for pair in (("text", id_), ("voice", id_)) if pair in ledger.answered or pair in ledger.dead}
    return ledger


def read_to_the_end(settings: Settings, ledger: Ledger) -> Ledger:
    """Note everything that stands in the outputs."""
    for topic in (settings.emotions_topic, settings.dead_letters_topic):
        for record in read_spans(settings.kafka_access, topic):
            ledger.note(settings, record)
    return ledger


def counted(settings: Settings) -> int:
    """Return how many ids Redis has counted, over all minutes and sources."""
    with Redis.from_url(settings.redis.get_secret_value(), decode_responses=True) as redis:
        trends = [redis.hvals(key) for key in redis.scan_iter(f"{settings.redis_prefix}trend:*")]
    return sum(int(count) for trend in trends for count in trend)


def assert_each_counts_once(settings: Settings, worker: RunningWorker, count: int) -> None:
    """Make sure that Redis has counted so many ids, and counts no more, once nothing is under way in the worker."""
    await_true(lambda: worker.idle() and counted(settings) >= count, within_s=60)
    assert counted(settings) == count, "each id counts once"


class Traffic:
    """Posts, every tenth with a clip, published beside the test; use it as a context manager, which waits for its end.

    Attributes:
        posts: Ids of the posts.
        clips: Ids of those with a clip.
        published: How many posts have been published so far.

    Args:
        settings: Where to.
        count: Posts.
        rate: Posts a second; 0 is as fast as Kafka takes them.
        name: What ids begin with.
        text: The text of a post, by its number.
        padding: Bytes of a field beside, which nobody reads: a lag that were held in memory shows by them.
    """

    def __init__(
        self,
        settings: Settings,
        count: int,
        *,
        rate: float = 0.0,
        name: str = "post",
        clip_every: int = 10,
        text: Callable[[int], str] = lambda number: f"{TEXTS[number % len(TEXTS)]} ({number})",
        padding: int = 0,
    ) -> None:
        self.posts = [f"{name}-{number}" for number in range(count)]
        self.clips = self.posts[::clip_every] if clip_every else []
        self.published = 0
        self._settings = settings
        self._rate = rate
        self._text = text
        self._ending = b',"padding":"%b"}' % (b"x" * padding) if padding else b"}"
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._publish)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.join()
        if self._fault is not None and kind is None:
            raise self._fault

    @property
    def through(self) -> bool:
        """Whether everything has been published, or publishing failed."""
        return not self._thread.is_alive()

    def _publish(self) -> None:
        try:
            self._publish_all(set(self.clips))
        except BaseException as fault:  # noqa: BLE001  # raised where the test waits
            self._fault = fault

    def _publish_all(self, with_clip: set[str]) -> None:
        settings, started = self._settings, time.monotonic()
        with RecordProducer(settings.kafka_access) as producer:
            for number, id_ in enumerate(self.posts):
                post = encode_post(Post(id=id_, text=self._text(number), source="tests", clip=id_ in with_clip))
                producer.publish(settings.posts_topic, key=id_, value=post.removesuffix(b"}") + self._ending)
                if id_ in with_clip:
                    clip = CLIPS[number % len(CLIPS)]
                    producer.publish(settings.clips_topic, key=id_, value=clip)
                self.published = number + 1
                if self._rate:
                    time.sleep(max(0.0, started + number / self._rate - time.monotonic()))
            producer.flush()

    def settle(self, *, within_s: float = ANSWER_S) -> Ledger:
        """Wait until every record is accounted for."""
        return settle(self._settings, self.posts, self.clips, within_s=within_s)

    def count(self) -> Ledger:
        """Count what stands in the outputs by now, all duplicates among it."""
        return read_to_the_end(self._settings, Ledger(set(self.posts), set(self.clips)))


def capacity(worker: RunningWorker, count: int, *, clip_every: int = 0) -> float:
    """Return how many posts a second it answers from a backlog, and hears the clips of."""
    answers, taken = (worker.metric(name) for name in ("emostream_answers_total", "emostream_records_in_total"))
    with Traffic(worker.settings, count, name=f"backlog-{uuid.uuid4().hex[:8]}", clip_every=clip_every) as traffic:
        pass
    started, so_far = time.monotonic(), worker.metric("emostream_answers_total") - answers
    records = taken + len(traffic.posts) + len(traffic.clips)
    await_true(lambda: worker.metric("emostream_records_in_total") >= records and worker.idle(), within_s=300)
    return (count - so_far) / max(0.5, time.monotonic() - started)


def sized(full: float, small: float) -> float:
    """Return the size of a row."""
    return full if FULL else small


class NoteRow(Protocol):
    """Notes what became of a test's records, and demands that none is lost."""

    def __call__(self, fault: str, broker: str, ledger: Ledger, seen: str = "") -> Account:
        """Note a row: what was broken, on which broker, what was seen beside the count."""


def table_of_faults(rows: Iterable[Sequence[object]]) -> str:
    """Return the table of docs/guarantees.md."""
    return markdown_table(_HEADER, rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
