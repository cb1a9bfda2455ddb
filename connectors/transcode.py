"""A recording in a file -> the bytes of one record on `clips`. Called by whatever publishes recordings.

What fits is sent as it is. What is longer than is heard of a recording, or larger than a record may be, becomes 16 kHz
mono, streamed through piece by piece: an hour of it takes no more memory than a minute.
"""

import functools
import io
import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import msgspec
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph

from emostream.connectors.errors import MalformedRecord
from emostream.connectors.ffmpeg import MEDIA_TYPES, declared_seconds, decoded_frames, opened_recording
from emostream.connectors.messages import MOST_CLIP_BYTES

MOST_CLIP_SECONDS = 60.0
"""What the worker hears of a recording; it flags a longer one as `truncated`."""

KEPT_SECONDS = MOST_CLIP_SECONDS + 1
"""What is kept of a longer one: more than is heard, so that the worker sees that it was cut, and flags it."""

RATE_HZ = 16_000
"""The rate that the worker hears at."""

_BLOCK_SAMPLES = RATE_HZ // 50
"""20 ms, Opus's own frame; `KEPT_SECONDS` is a whole number of them."""

_UNKNOWN_TYPE = "application/octet-stream"


class Encoder(msgspec.Struct, frozen=True):
    """What a recording is transcoded with: ffmpeg's names, and the media type that comes of it.

    Attributes:
        codec: The encoder.
        container: The muxer.
        content_type: Media type of the result.
        bit_rate: Bits per second; None where nothing is lost.
    """

    codec: str
    container: str
    content_type: str
    bit_rate: int | None = None


OPUS = Encoder("libopus", "ogg", MEDIA_TYPES["ogg"], 64_000)
"""61 s come to 0.45 MB of noise or 0.76 MB of pure tones: below what a record takes, whatever it is. To a person,
speech at 16 kHz sounds right with 16 to 20 kbit/s (RFC 6716, section 2.1.1); the rest is for what a model hears."""

FLAC = Encoder("flac", "flac", MEDIA_TYPES["flac"])
"""Where ffmpeg came without Opus. 61 s of noise come to 1.9 MB, more than a record takes; clean speech fits."""


class FittedClip(msgspec.Struct, frozen=True):
    """A recording that fits into a record.

    Attributes:
        audio: The encoded recording.
        content_type: Its media type.
        transcoded: Whether these are other bytes than the file's.
    """

    audio: bytes
    content_type: str
    transcoded: bool = False


def fit_clip(path: Path, *, checked: bool = True, encoder: Encoder | None = None) -> FittedClip:
    """Read a recording, and transcode it if it is longer than is heard or larger than a record may be.

    Args:
        path: WAV, FLAC, Ogg, MP3, M4A, AAC, WebM or the sound of an MP4, told apart by content.
        checked: Refuse what ffmpeg cannot open even if it is small enough to be sent.
        encoder: What to transcode with; the best there is if not given.

    Raises:
        MalformedRecord: With the reason `empty`, `audio_undecodable`, `audio_no_stream` or, for what is too large even
            transcoded, `too_large`.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    if not size:
        raise MalformedRecord("empty", "the file has no bytes")
    is_small = size <= MOST_CLIP_BYTES
    try:
        with opened_recording(path) as (container, sound):
            content_type = MEDIA_TYPES[container.format.name.split(",")[0]]
            if is_small and (declared_seconds(container, sound) or 0.0) <= MOST_CLIP_SECONDS:
                return FittedClip(_read(path), content_type)
            audio, seconds = _transcode(container, sound, encoder or best_encoder())
    except MalformedRecord:
        if checked or not is_small:
            raise
        return FittedClip(_read(path), _UNKNOWN_TYPE)
    if is_small and seconds <= MOST_CLIP_SECONDS:  # its header was wrong: let the worker see for itself
        return FittedClip(_read(path), content_type)
    return _fitted(audio, seconds, encoder or best_encoder())


@functools.cache
def best_encoder() -> Encoder:
    """Return Opus, or FLAC where ffmpeg was built without it."""
    try:
        av.codec.Codec(OPUS.codec, "w")
    except av.codec.codec.UnknownCodecError:
        return FLAC
    return OPUS


def _fitted(audio: bytes, seconds: float, encoder: Encoder) -> FittedClip:
    if not seconds:
        raise MalformedRecord("audio_undecodable", "no part of the recording can be decoded")
    if len(audio) > MOST_CLIP_BYTES:
        raise MalformedRecord(
            "too_large", f"{len(audio)} bytes as {encoder.codec}; at most {MOST_CLIP_BYTES} are taken"
        )
    return FittedClip(audio, encoder.content_type, transcoded=True)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MOST_CLIP_BYTES + 1)
    if len(content) > MOST_CLIP_BYTES:
        raise MalformedRecord("too_large", "the file grew while it was read")
    return content


def _transcode(container: InputContainer, sound: AudioStream, encoder: Encoder) -> tuple[bytes, float]:
    """Return the first `KEPT_SECONDS` encoded anew, and how many seconds that are."""
    buffer = io.BytesIO()
    samples = 0
    with av.open(buffer, mode="w", format=encoder.container) as output:
        target = output.add_stream(encoder.codec, rate=RATE_HZ, layout="mono")
        assert isinstance(target, AudioStream)  # noqa: S101  # the encoder is one of sound
        if encoder.bit_rate:
            target.codec_context.bit_rate = encoder.bit_rate
        for block in _mono_blocks(decoded_frames(container, sound)):
            block.pts, block.time_base = samples, Fraction(1, RATE_HZ)
            output.mux(target.encode(block))
            samples += block.samples
            if samples >= KEPT_SECONDS * RATE_HZ:
                break
        if samples:
            output.mux(target.encode(None))
    return buffer.getvalue(), samples / RATE_HZ


def _mono_blocks(frames: Iterable[AudioFrame]) -> Iterator[AudioFrame]:
    """Turn frames into blocks of 16 kHz mono; a stream may change its rate or channels on the way."""
    for _, alike in itertools.groupby(frames, key=_kind):
        first = next(alike)
        graph = _mixer(first)
        for frame in itertools.chain((first,), alike, (None,)):
            if frame is not None:
                frame.pts = None  # time stamps of a broken file are wrong, and nothing here needs them
            graph.push(frame)
            yield from _ready(graph)


def _kind(frame: AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name


def _mixer(first: AudioFrame) -> Graph:
    """Return a graph that averages the channels and resamples.

    PyAV's own resampler knows no way to mono from channels that have no names.
    """
    rate, sample_format, layout = _kind(first)
    names = [channel.name for channel in first.layout.channels]
    # The low-frequency channel carries no voice.
    heard = [i for i, name in enumerate(names) if not name.startswith("LFE")] or range(len(names))
    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add("abuffer", sample_rate=str(rate), sample_fmt=sample_format, channel_layout=layout),
        graph.add("aformat", sample_fmts="fltp"),
        graph.add("pan", "mono|c0=" + "+".join(f"{1 / len(heard):.6f}*c{i}" for i in heard)),
        graph.add("aformat", sample_fmts="s16", sample_rates=str(RATE_HZ)),
        graph.add("asetnsamples", nb_out_samples=str(_BLOCK_SAMPLES), pad="0"),
        graph.add("abuffersink"),
    )
    graph.configure()
    return graph


def _ready(graph: Graph) -> Iterator[AudioFrame]:
    while True:
        try:
            block = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        assert isinstance(block, AudioFrame)  # noqa: S101  # the sink is one of sound
        yield block
