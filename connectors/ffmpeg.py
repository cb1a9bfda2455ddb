"""Opening recordings of strangers with ffmpeg: nothing but the bytes of the file, in the formats that the worker takes.

Called by `transcode`. Nothing is decoded before it is asked for, and what cannot be decoded is left out.
"""

import contextlib
import ctypes
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import av
import av._core
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Discard

from emostream.connectors.errors import MalformedRecord

_RATES_HZ = range(4_000, 192_000 + 1)
_MOST_CHANNELS = 64
_MOST_PACKETS = 100_000
"""As the worker's decoder: rates that recorders write, channels that ffmpeg mixes down, packets of a minute with room
to spare."""

_MOST_ALLOCATION_BYTES = 32 << 20
"""Largest single allocation of ffmpeg. It indexes an MP4 whole, 24 bytes for each packet that its header claims:
this is 8 hours of AAC, and an end to a file of 20 kB that claims a year."""

MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
    "mov": "audio/mp4",
    "matroska": "audio/webm",
}
"""Media types by ffmpeg's demuxer (`mov` reads MP4 and M4A, `matroska` WebM). Playlists are not among them: they name
further files to open."""

_CODECS = (
    *("aac", "alac", "flac", "mp3", "mp3float", "opus", "vorbis", "pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s8"),
    *(f"pcm_{kind}{order}" for kind in ("s16", "s24", "s32", "f32", "f64") for order in ("le", "be")),
)

_OPTIONS = {
    "format_whitelist": ",".join(MEDIA_TYPES),
    "codec_whitelist": ",".join(_CODECS),
    "protocol_whitelist": "none",  # a name that no protocol has: the file itself is read through Python
    "max_streams": "16",
    "advanced_editlist": "0",  # each entry of an MP4's edit list may repeat its whole index
}


@contextlib.contextmanager
def opened_recording(path: Path) -> Iterator[tuple[InputContainer, AudioStream]]:
    """Open a recording, and yield it with the stream to hear.

    Raises:
        MalformedRecord: With the reason `audio_undecodable` or `audio_no_stream`.
        OSError: The file cannot be read.
    """
    _bound_allocations()
    try:
        with (
            path.open("rb") as file,
            av.open(file, mode="r", container_options=_OPTIONS, metadata_errors="replace") as container,
        ):
            yield container, _sound(container)
    except av.FFmpegError as error:
        raise MalformedRecord("audio_undecodable", f"no recording that can be read: {error.strerror}") from error


def _sound(container: InputContainer) -> AudioStream:
    """Return the best audio stream, and have ffmpeg pass over all others."""
    best = container.streams.best("audio") if container.streams.audio else None
    if best is None:
        raise MalformedRecord("audio_no_stream", "the file holds no sound")
    # PyAV gives a stream that ffmpeg knows no decoder for no codec context, whatever its annotations say.
    codec = getattr(best, "codec_context", None)
    if not isinstance(best, AudioStream) or codec is None or codec.codec.name not in _CODECS:
        raise MalformedRecord("audio_undecodable", "the sound is in a format that is not taken")
    if codec.sample_rate not in _RATES_HZ or codec.channels > _MOST_CHANNELS:
        raise MalformedRecord("audio_undecodable", f"{codec.sample_rate} Hz, {codec.channels} channels: not taken")
    codec.thread_count = 1
    for stream in container.streams:
        if stream.index != best.index:
            stream.discard = Discard.all
    return best


def declared_seconds(container: InputContainer, sound: AudioStream) -> float | None:
    """Return how long a recording says it lasts, without decoding it; None where it does not say."""
    if sound.duration is not None and sound.time_base is not None:
        return float(sound.duration * sound.time_base)
    return container.duration / av.time_base if container.duration is not None else None


def decoded_frames(container: InputContainer, sound: AudioStream) -> Iterator[AudioFrame]:
    """Decode packet by packet; what cannot be decoded is left out."""
    packets = itertools.islice(container.demux(sound), _MOST_PACKETS)
    with contextlib.suppress(av.FFmpegError):  # the container breaks off: what came before counts
        for packet in packets:
            with contextlib.suppress(av.FFmpegError):
                for frame in packet.decode():
                    if frame.sample_rate in _RATES_HZ and frame.layout.nb_channels <= _MOST_CHANNELS:
                        yield frame


@functools.cache
def _bound_allocations() -> None:
    """Set ffmpeg's limit on one allocation for this process, where its library is found; PyAV has no call for it."""
    limit = getattr(ctypes.CDLL(av._core.__file__), "av_max_alloc", None)
    if limit is not None:
        limit.argtypes, limit.restype = (ctypes.c_size_t,), None
        limit(_MOST_ALLOCATION_BYTES)
