"""What the demo plays in, and what it hears back. Called by `demo`.

A post and its clip go in one right after the other. Clips that no post announces are spread over the rest, and one clip
comes on purpose only when its post is already answered.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import msgspec
from rich.console import Console
from rich.text import Text

from emostream.connectors import messages
from emostream.connectors.broker import KafkaAccess
from emostream.connectors.clips import ClipPublisher
from emostream.connectors.errors import MalformedRecord
from emostream.connectors.jsonl import MalformedRow, Pace, bounded_lines, ingest_lines
from emostream.connectors.messages import Emotion, decode_emotion, decode_post
from emostream.connectors.producer import RecordProducer
from emostream.connectors.reader import Received, read_records
from emostream.connectors.transcode import FittedClip, fit_clip
from emostream.model.samples import FLAG_CLIP_MISSING, PATHS
from emostream.streams.show import answer_line, dead_letter_line, text_cells

LATE_CLIPS = frozenset({"demo-0069"})
"""Clips that come only when their posts are answered: a second, richer answer follows the first."""

_SILENCE_S = 60.0
"""A worker that answers nothing for so long while something waits has failed; the demo says so and ends."""

_LOOK_UP_S = 0.1


class Programme(msgspec.Struct, frozen=True):
    """What is played in.

    Attributes:
        posts_file: Posts, one a line, and lines that are none.
        rows: How many lines it has.
        texts: What the posts say, by id.
        clips: The clips, by id.
        cues: Which clips follow which line, counted from 1.
        late: Which clips follow the answers of their posts.
    """

    posts_file: Path
    rows: int
    texts: dict[str, str]
    clips: dict[str, FittedClip]
    cues: dict[int, list[str]]
    late: list[str]


class Played(msgspec.Struct):
    """What came back.

    Attributes:
        answers: The newest answer of each id.
        latencies_s: Of every answer, by path: from when the last half of it reached Kafka.
        dead_posts: Reasons of the posts' dead letters, by where the records stood.
        dead_clips: Reasons of the clips' dead letters, by id.
        sent_s: When each clip was sent, seconds since 1970.
        first_s: When the first post reached Kafka.
        last_s: When the last post was answered, those aside that waited for a clip which did not come.
    """

    answers: dict[str, Emotion] = {}
    latencies_s: defaultdict[str, list[float]] = msgspec.field(default_factory=lambda: defaultdict(list))
    dead_posts: dict[str, str] = {}
    dead_clips: dict[str, str] = {}
    sent_s: dict[str, float] = {}
    first_s: float = float("inf")
    last_s: float = 0.0

    @property
    def answered_posts(self) -> list[Emotion]:
        """The newest answer of each post."""
        return [answer for answer in self.answers.values() if "text" in answer.modalities]

    def ids_on(self, path: str) -> list[str]:
        """Return the ids whose newest answer took a path: text, voice or fused."""
        return [id_ for id_, answer in self.answers.items() if path_of(answer) == path]

    def unaccounted(self, programme: Programme) -> tuple[int, int]:
        """Return how many posts and how many clips are neither answered nor dead letters."""
        heard = {id_ for id_, answer in self.answers.items() if "voice" in answer.modalities}
        return (
            programme.rows - len(self.answered_posts) - len(self.dead_posts),
            len(programme.clips.keys() - heard - self.dead_clips.keys()),
        )


def path_of(answer: Emotion) -> str:
    """Return the path that an answer took: text, voice or fused."""
    return PATHS[tuple(answer.modalities)]


def read_programme(posts_file: Path, clips_folder: Path) -> Programme:
    """Return what is played in: the rows of a file, and the clips of a folder, named by their posts' ids."""
    rows = posts_file.read_bytes().splitlines()
    posts = dict(_posts(rows))
    lines = {post.id: line for line, post in posts.items()}
    clips = {path.stem: fit_clip(path, checked=False) for path in sorted(clips_folder.glob("*.ogg"))}
    alone = [id_ for id_ in clips if id_ not in lines]
    lines |= {id_: len(rows) * (nth + 1) // (len(alone) + 1) for nth, id_ in enumerate(alone)}
    cues: defaultdict[int, list[str]] = defaultdict(list)
    for id_ in clips:
        if id_ not in LATE_CLIPS:
            cues[lines[id_]].append(id_)
    return Programme(
        posts_file=posts_file,
        rows=len(rows),
        texts={post.id: post.text for post in posts.values()},
        clips=clips,
        cues=cues,
        late=sorted(clips.keys() & LATE_CLIPS),
    )


def _posts(rows: Sequence[bytes]) -> Iterator[tuple[int, messages.Post]]:
    for line, row in enumerate(rows, start=1):
        try:
            yield line, decode_post(row)
        except MalformedRecord:
            continue


def play(
    console: Console,
    kafka: KafkaAccess,
    programme: Programme,
    *,
    rate: float,
    stopping: Event,
    alive: Callable[[], bool],
) -> Played:
    """Play a programme in, from a thread, and show what comes back, until every post and clip is accounted for.

    Args:
        console: Where it is shown.
        kafka: Where Kafka is, and how to get in.
        programme: What is played in.
        rate: Posts a second; 0 is as fast as it goes.
        stopping: Ends it.
        alive: Whether the worker still runs; when it does not, it ends, too.
    """
    played, over = Played(), Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        feeding = pool.submit(
            _feed, kafka, programme, played, Pace(rate or None, sleep=over.wait),
            stopped=lambda: stopping.is_set() or over.is_set(),
        )  # fmt: skip

        def ended() -> bool:
            failed = feeding.done() and feeding.exception() is not None
            return failed or stopping.is_set() or not alive()

        try:
            _read_back(console, kafka, programme, played, ended)
        finally:
            over.set()
        feeding.result()
    return played


def _feed(kafka: KafkaAccess, programme: Programme, played: Played, pace: Pace, *, stopped: Callable[[], bool]) -> None:
    """Play a programme in, what is malformed as it stands."""

    def leave_to_the_worker(_row: MalformedRow) -> None:
        """Say nothing: the row comes back as a dead letter."""

    def send_clip(id_: str) -> None:
        played.sent_s[id_] = time.time()
        clips.publish(id_, programme.clips[id_], post=None)

    with RecordProducer(kafka) as producer, programme.posts_file.open("rb") as stream:
        clips = ClipPublisher(producer, posts_topic=messages.POSTS, clips_topic=messages.CLIPS)
        for tally in ingest_lines(
            bounded_lines(stream), producer=producer, topic=messages.POSTS,
            pace=pace, on_malformed=leave_to_the_worker, checked=False,
        ):  # fmt: skip
            if stopped():
                break
            for id_ in programme.cues.get(tally.lines, ()):
                send_clip(id_)
        for id_ in programme.late:
            while id_ not in played.answers and not stopped():
                time.sleep(_LOOK_UP_S)
            send_clip(id_)
        producer.flush()


def _read_back(
    console: Console, kafka: KafkaAccess, programme: Programme, played: Played, ended: Callable[[], bool]
) -> None:
    """Show answers and dead letters until everything is accounted for, or nothing more is to be expected."""
    cells = text_cells(console)
    silent_since_s = time.monotonic()

    def done() -> bool:
        silent_s = time.monotonic() - silent_since_s
        return ended() or silent_s > _SILENCE_S or not any(played.unaccounted(programme))

    topics = [messages.EMOTIONS, messages.DEAD_LETTERS]
    for record in read_records(kafka, topics, from_beginning=True, stopping=done):
        silent_since_s = time.monotonic()
        take_in = _take_dead_letter if record.topic == messages.DEAD_LETTERS else _take_answer
        line = take_in(played, record, programme.texts, cells)
        if line is not None:
            console.print(line, soft_wrap=True)


def _take_dead_letter(played: Played, record: Received, _texts: dict[str, str], cells: int) -> Text | None:
    """Note a dead letter, and return its line if it is new."""
    origin, reason, error = (record.headers[name].decode() for name in ("origin", "reason", "error"))
    is_clip = origin.startswith(f"{messages.CLIPS}/")
    # Of a recording, the bytes say nothing to a reader; its id does.
    name, text = (record.key, f"clip {_text(record.key)}") if is_clip else (origin.encode(), _text(record.value))
    dead = played.dead_clips if is_clip else played.dead_posts
    if _text(name) in dead:
        return None
    dead[_text(name)] = reason
    return dead_letter_line(text, reason=reason, error=error, text_cells=cells)


def _take_answer(played: Played, record: Received, texts: dict[str, str], cells: int) -> Text | None:
    """Note an answer, and return its line if it is new: a richer one counts, one that is delivered again does not."""
    answer = decode_emotion(record.value or b"")
    before = played.answers.get(answer.post_id)
    if before is not None and before.revision >= answer.revision:
        return None
    played.answers[answer.post_id] = answer
    ingested_s = answer.ingested_at.timestamp()
    # A clip that came late is not what the worker took long for.
    complete_s = max(ingested_s, played.sent_s[answer.post_id]) if "voice" in answer.modalities else ingested_s
    played.latencies_s[path_of(answer)].append(record.timestamp_s - complete_s)
    if before is None and "text" in answer.modalities and FLAG_CLIP_MISSING not in answer.flags:
        played.first_s = min(played.first_s, ingested_s)
        played.last_s = max(played.last_s, record.timestamp_s)
    return answer_line(answer, texts.get(answer.post_id), text_cells=cells)


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
