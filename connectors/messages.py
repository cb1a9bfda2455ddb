"""Every wire format, version 1. JSON is UTF-8; unknown fields are ignored, so that producers may add their own.

`posts` and `clips` are decoded here, `emotions` encoded (and decoded by `emostream watch`), `dead-letters` built from
the record that failed. The JSON Schema files beside this module are generated from these structs (schemas.py).
"""

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from emostream.connectors.errors import MalformedRecord

POSTS, CLIPS, EMOTIONS, DEAD_LETTERS = "posts", "clips", "emotions", "dead-letters"
"""Default names of the topics."""

MOST_POST_BYTES = 64 * 1024
"""Largest record on `posts`; what is larger becomes a dead letter."""

MOST_CLIP_BYTES = 1024 * 1024
"""Largest recording on `clips`; what is larger becomes a dead letter."""

CONTENT_TYPE = "content-type"
"""Header of a record on `clips`: the recording's media type. It may be missing; what the bytes say counts."""

ATTEMPT = "emostream-attempt"
"""Header of a record that was replayed from `dead-letters`: how many times."""

REPLAYED = "emostream-replayed"
"""Header of a mark on `dead-letters`: which letter, `partition/offset`, was replayed. A mark has no `reason`."""

UNREADABLE_REASON = "unreadable"
"""Reason of a record that could not be unpacked. Its letter has nothing of it but where it stands."""

_REASON = "reason"
"""The first of the headers that say why a record failed."""

_MOST_ID_CHARACTERS = 256

PostId = Annotated[str, Meta(min_length=1, max_length=_MOST_ID_CHARACTERS)]
Source = Annotated[str, Meta(max_length=128)]
Author = Annotated[str, Meta(max_length=256)]
Language = Annotated[str, Meta(max_length=35)]
Topics = Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=64)]
EmotionLabel = Literal["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
Modality = Literal["text", "voice"]
_MODALITIES = (["text"], ["voice"], ["text", "voice"])
Share = Annotated[float, Meta(ge=0, le=1)]


class Post(Struct, frozen=True, omit_defaults=True):
    """A post, as sources publish it to `posts` under its id as key.

    Attributes:
        id: The post's id, unique over all sources.
        text: What it says; may not be empty.
        source: Where it was posted.
        author: Who posted it.
        lang: Its language as the source says, BCP 47.
        created_at: When it was posted, RFC 3339 with an offset.
        topics: What the source or the subscriber files it under.
        clip: Whether a voice clip of this id follows on `clips`.
    """

    id: PostId
    text: Annotated[str, Meta(min_length=1)]
    source: Source | None = None
    author: Author | None = None
    lang: Language | None = None
    created_at: Annotated[dt.datetime, Meta(tz=True)] | None = None
    topics: Topics | None = None
    clip: bool = False


class Clip(Struct, frozen=True):
    """A voice clip, as sources publish it to `clips`: the recording is the record's value, the post's id its key.

    Attributes:
        post_id: The post that it belongs to, which may never come.
        audio: The encoded recording: WAV, FLAC, Ogg (Vorbis, Opus), MP3, M4A/AAC or WebM.
        fault: What is wrong with the record, where it is surely none; the post that it belongs to is to hear of that.
    """

    post_id: str
    audio: bytes
    fault: MalformedRecord | None = None


class Attribute(Struct, frozen=True):
    """An answer to a further question about the post: sentiment, irony, offensive, hate."""

    label: str
    confidence: Share


class Model(Struct, frozen=True):
    """Which model answered."""

    name: str
    version: str


class Scores(Struct, frozen=True):
    """Calibrated probabilities; they sum to 1."""

    anger: Share
    disgust: Share
    fear: Share
    joy: Share
    neutral: Share
    sadness: Share
    surprise: Share


class Emotion(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer for a post, on `emotions` under the post's id as key.

    Attributes:
        v: Version of this format.
        post_id: The post it answers.
        revision: Counts up when a richer answer (text and voice) follows a poorer one, or a newer one replaces it.
        emotion: The label with the highest score.
        confidence: That score.
        scores: Calibrated probabilities over the seven labels.
        modalities: What the answer rests on: `text`, `voice`, or both in this order.
        attributes: Answers to further questions.
        flags: What a reader should know about the answer, such as `truncated`.
        model: Which model answered.
        source: As in the post.
        author: As in the post.
        topics: As in the post.
        lang: As in the post.
        posted_at: The post's `created_at`.
        ingested_at: When the post reached Kafka: its record's timestamp; the clip's, where there is no post.
        scored_at: When the model answered.
    """

    # Written even where it equals a default: consumers may rely on these being there.
    v: int
    post_id: PostId
    revision: Annotated[int, Meta(ge=1)]
    emotion: EmotionLabel
    confidence: Share
    scores: Scores
    modalities: list[Modality]
    attributes: dict[str, Attribute]
    flags: list[str]
    model: Model
    ingested_at: dt.datetime
    scored_at: dt.datetime
    source: str | None = None
    author: str | None = None
    topics: list[str] | None = None
    lang: str | None = None
    posted_at: dt.datetime | None = None

    def __post_init__(self) -> None:
        """Refuse what an answer cannot rest on; msgspec makes a ValidationError of it."""
        if self.modalities not in _MODALITIES:
            raise ValueError("modalities are neither text nor voice nor, in this order, both")


class DeadLetterHeaders(Struct, frozen=True, omit_defaults=True):
    """The headers that a dead letter has beside those of the record that failed.

    Attributes:
        reason: A short stable word: `not_json`, `wrong_type`, `missing_field`, `empty_text` …
        error: One sentence for a person.
        origin: `topic/partition/offset` of the record.
        failed_at: RFC 3339.
        whole_bytes: How many bytes the value had, of a letter that was too large to be kept whole.
    """

    reason: str
    error: str
    origin: str
    failed_at: dt.datetime
    whole_bytes: int | None = None

    def encode(self) -> list[tuple[str, bytes]]:
        """Return the headers as Kafka wants them, `reason` first: `split_headers` relies on it."""
        return [(name, str(value).encode()) for name, value in msgspec.to_builtins(self).items()]


class DeadLetter(Struct, frozen=True):
    """A record that cannot be answered, on `dead-letters`: the original key and value, and why.

    Attributes:
        key: As in the record.
        value: As in the record.
        original_headers: As in the record.
        why: What is added to them.
    """

    key: bytes | None
    value: bytes | None
    original_headers: tuple[tuple[str, bytes], ...]
    why: DeadLetterHeaders

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """The record's headers followed by why it failed."""
        return [*self.original_headers, *self.why.encode()]


def split_headers(headers: Sequence[tuple[str, bytes]]) -> tuple[tuple[tuple[str, bytes], ...], dict[str, bytes]]:
    """Split the headers of a dead letter into those of the record that failed, and those that say why.

    The latter follow the former and begin with `reason`, so the last `reason` is where they begin. A header of that
    name which a source had set itself stands before it, and stays with the record.

    Returns:
        The record's headers, and why it failed; the latter is empty where it is no dead letter.
    """
    begin = max((at for at, (name, _) in enumerate(headers) if name == _REASON), default=len(headers))
    return tuple(headers[:begin]), dict(headers[begin:])


VERSION = 1

_post_decoder = msgspec.json.Decoder(Post)
_emotion_decoder = msgspec.json.Decoder(Emotion)
_encoder = msgspec.json.Encoder()
_PATH = re.compile(r" - at `\$(?P<path>[^`]*)`$")


def decode_post(value: bytes | None) -> Post:
    """Decode a record of `posts`.

    Raises:
        MalformedRecord: With the reason `empty`, `too_large`, `not_utf8`, `not_json`, `missing_field`,
            `empty_text`, `empty_id`, `too_long` or `wrong_type`.
    """
    if not value:
        raise MalformedRecord("empty", "the record has no value")
    if len(value) > MOST_POST_BYTES:
        raise MalformedRecord("too_large", f"{len(value)} bytes; at most {MOST_POST_BYTES} are read")
    try:
        post = _post_decoder.decode(value)
    except msgspec.ValidationError as error:
        raise MalformedRecord(_validation_reason(str(error)), str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRecord(*_syntax_fault(value, error)) from error
    if not post.text.strip():
        raise MalformedRecord("empty_text", "the text is nothing but white space")
    return post


def decode_clip(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> Clip:
    """Take a record of `clips` apart. Whether its bytes are a recording shows when they are decoded.

    Returns:
        The clip; its `fault` has the reason `empty`, `too_large` or `unknown_type`.

    Raises:
        MalformedRecord: It belongs to no post. With the reason `empty_id`, `too_long` or `not_utf8`.
    """
    if not key:
        raise MalformedRecord("empty_id", "a clip's key is its post's id; this one has none")
    try:
        post_id = key.decode()
    except UnicodeDecodeError as error:
        raise MalformedRecord("not_utf8", f"byte {error.start} of the key is not UTF-8") from error
    if len(post_id) > _MOST_ID_CHARACTERS:
        raise MalformedRecord(
            "too_long", f"an id of {len(post_id)} characters; at most {_MOST_ID_CHARACTERS} are taken"
        )
    fault = _body_fault(value, headers)
    return Clip(post_id=post_id, audio=value if value and not fault else b"", fault=fault)


def _body_fault(value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> MalformedRecord | None:
    if not value:
        return MalformedRecord("empty", "the record has no value")
    if len(value) > MOST_CLIP_BYTES:
        return MalformedRecord("too_large", f"{len(value)} bytes; at most {MOST_CLIP_BYTES} are read")
    for content_type in (content for name, content in headers if name.lower() == CONTENT_TYPE):
        if content_type and not _AUDIBLE.match(content_type):
            return MalformedRecord("unknown_type", f"the {CONTENT_TYPE} {content_type[:64]!r} is no recording's")
    return None


_AUDIBLE = re.compile(rb"\s*(audio/|video/(webm|mp4|ogg)|application/(ogg|octet-stream))", re.IGNORECASE)


def encode_post(post: Post) -> bytes:
    """Encode a post for `posts`; what has its default is left away."""
    return _encoder.encode(post)


def encode_emotion(emotion: Emotion) -> bytes:
    """Encode an answer for `emotions`."""
    return _encoder.encode(emotion)


def decode_emotion(value: bytes) -> Emotion:
    """Decode a record of `emotions`.

    Raises:
        msgspec.DecodeError: It is no answer of version 1.
    """
    try:
        return _emotion_decoder.decode(value)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"it cannot be read: {error}") from error


def _validation_reason(message: str) -> str:
    """Return the stable word for msgspec's description of a value that does not fit."""
    if "missing required field" in message:
        return "missing_field"
    found = _PATH.search(message)
    path = found["path"] if found else ""
    if "length >= 1" in message:
        return "empty_id" if path == ".id" else "empty_text"
    if "length <=" in message:
        return "too_long"
    return "wrong_type"


def _syntax_fault(value: bytes, error: Exception) -> tuple[str, str]:
    """Return reason and sentence for bytes that are not JSON at all."""
    try:
        value.decode()
    except UnicodeDecodeError as fault:
        return "not_utf8", f"byte {fault.start} is not UTF-8"
    return "not_json", str(error)


_HEADER_BYTES = 100
"""What a header takes in memory on top of its own bytes: an empty one has two on the wire."""


def size_of(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> int:
    """Return how many bytes of memory a record's contents take, about."""
    named_bytes = sum(len(name) + len(said or b"") + _HEADER_BYTES for name, said in headers)
    return len(key or b"") + len(value or b"") + named_bytes
