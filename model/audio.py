"""An encoded recording -> its waveform, 16 kHz mono. Called by whatever takes recordings, before any model hears them.

Recordings come from strangers: what a header claims is not believed, and ffmpeg opens nothing but the bytes it gets.
Any number of threads may decode at once; each recording takes one.
"""

import ctypes
import functools
import io
import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

import av
import av._core
import msgspec
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph
from av.stream import Discard
from numpy.typing import NDArray

from emostream.model.errors import AudioError
from emostream.model.steps import exhaust

SAMPLE_RATE_HZ = 16_000
"""Rate of every waveform here: speech has nothing to say above 8 kHz that a model of emotion was trained to
hear."""

MOST_SECONDS = 60.0
"""What is read of one recording. A minute holds several turns of speech; 3.8 MB of waveform, whatever the file."""

MIN_SECONDS = 0.1
"""Less is shorter than a syllable (about 0.2 s) and than ten 10-ms frames of a spectrogram: it has no tone of
voice."""

SILENT_PEAK = 1e-4
"""A peak below this (-80 dBFS, three steps of 16 bits) is dither around nothing, not a quiet voice."""

RATES_HZ = range(4_000, 192_000 + 1)
"""Rates that recorders write. Below, one frame would swell a thousandfold in resampling; above lies nothing
real."""

MOST_CHANNELS = 64
"""What ffmpeg's `pan` mixes down."""

MOST_STREAMS = 16
"""Streams of one file, picture and subtitles included; each costs ffmpeg an index."""

MOST_PACKETS = 100_000
"""Packets read of one recording. The shortest that codecs write last 2.5 ms, 24,000 of them a minute; a file may
hold a million of a byte each, and take ten seconds."""

MOST_ALLOCATION_BYTES = 8 << 20
"""Largest single allocation that ffmpeg may make. An MP4 of 20 kB can claim 30 million samples, and ffmpeg builds
an index of 1 GB for them; 8 MiB index two hours of AAC. A cover picture of more than that makes a file
undecodable."""

LEAST_SHARE = 0.95
"""A recording that ends before this share of the length its header declares, less `_ROUNDING_S`, has lost
something. Padding and rounded time stamps are far from it."""

_STEP_SECONDS = 5.0
"""Sound decoded without a pause: 10 ms of work for Opus."""

_STEP_SAMPLES = round(_STEP_SECONDS * SAMPLE_RATE_HZ)
_ROUNDING_S = 0.1
_MOST_SAMPLES = round(MOST_SECONDS * SAMPLE_RATE_HZ)
_HEAD_BYTES = 65_536
_OGG_PAGE_BYTES = 65_307
_OGG_HEADER_BYTES = 27
_OGG_LAST_PAGE = 4
_UNKNOWN_LENGTH_BYTES = 0x7FFF_F000

_DEMUXERS = ("wav", "flac", "ogg", "mp3", "aac", "mov", "matroska")
"""The first name of each in ffmpeg; `mov` reads MP4 and M4A, `matroska` WebM. No playlist is among them: HLS, DASH
and concat open what their text names."""

_DECODERS = (
    *("aac", "alac", "flac", "mp3", "mp3float", "opus", "vorbis"),
    *("pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"),
    *("pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
)

_OPTIONS = {
    # ffmpeg checks both lists after probing and before the demuxer or the decoder gets to run.
    "format_whitelist": ",".join(_DEMUXERS),
    "codec_whitelist": ",".join(_DECODERS),
    # No protocol has this name, so nothing can be opened from inside a file; the file itself is read through Python.
    "protocol_whitelist": "none",
    "max_streams": str(MOST_STREAMS),
    # An edit list makes an MP4's index grow by the whole length with every entry. Padding is cut off without it, too.
    "advanced_editlist": "0",
}


class Recording(msgspec.Struct, frozen=True, eq=False):
    """One recording as a model hears it.

    Attributes:
        waveform: float32 of shape (samples,), 16 kHz mono, every value finite and within -1 … 1.
        seconds: Length of the waveform.
        truncated: Whether the recording went on behind `MOST_SECONDS`.
        damaged: Whether a part of it could not be decoded or is missing, as far as its format tells: an MP3, a bare
            AAC or a WebM with pictures that was cut between two frames looks whole.
    """

    waveform: NDArray[np.float32]
    seconds: float
    truncated: bool
    damaged: bool


def decode_recording(source: bytes | Path) -> Recording:
    """Decode WAV, FLAC, Ogg, MP3, M4A, AAC, WebM or the sound of an MP4, told apart by content.

    Args:
        source: The encoded recording, or a file that holds it. The caller bounds its size.

    Returns:
        The first `MOST_SECONDS` of its best audio stream; all channels but the low-frequency one, averaged.

    Raises:
        AudioError: There is nothing to hear; its `reason` says why.
        OSError: The file cannot be read.
    """
    return exhaust(decode_in_steps(source))


def require_whole(recording: Recording) -> Recording:
    """Return a recording of which nothing is missing.

    Raises:
        AudioError: It is damaged.
    """
    if recording.damaged:
        raise AudioError("audio_damaged", "a part of the recording is missing or corrupt")
    return recording


def decode_in_steps(source: bytes | Path) -> Generator[None, None, Recording]:
    """Decode as `decode_recording` does, and pause after every `_STEP_SECONDS` of sound: others get their turn."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            raise AudioError("audio_empty", "the recording has no bytes")
        _check_wav_rate(head)
        size_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            waveform, damaged = yield from _decode(file, whole_wav=_is_whole_wav(head, size_bytes))
        except av.FFmpegError as error:
            raise AudioError("audio_undecodable", f"no recording that can be read: {error.strerror}") from error
    truncated = waveform.size > _MOST_SAMPLES
    waveform = waveform[:_MOST_SAMPLES]
    _check_waveform(waveform, damaged=damaged)
    # Lossy codecs and the resampler overshoot full scale a little; a float WAV can hold anything.
    waveform = np.clip(waveform, -1, 1)
    seconds = waveform.size / SAMPLE_RATE_HZ
    return Recording(waveform=waveform, seconds=seconds, truncated=truncated, damaged=damaged)


def _check_waveform(waveform: NDArray[np.float32], *, damaged: bool) -> None:
    """Raise unless there is something to hear."""
    if not waveform.size and damaged:
        raise AudioError("audio_undecodable", "no part of the recording can be decoded")
    if not waveform.size:
        raise AudioError("audio_empty", "the recording has no samples")
    if not np.isfinite(waveform).all():
        raise AudioError("audio_not_finite", "the recording holds samples that are no numbers")
    if waveform.size < MIN_SECONDS * SAMPLE_RATE_HZ:
        seconds = waveform.size / SAMPLE_RATE_HZ
        raise AudioError("audio_too_short", f"the recording lasts {seconds:.3f} s; {MIN_SECONDS} s are needed")
    if np.abs(waveform).max() < SILENT_PEAK:
        raise AudioError("audio_silent", "the recording is digital silence")


def _check_rate(rate_hz: int) -> None:
    if rate_hz not in RATES_HZ:
        raise AudioError("audio_rate", f"{rate_hz} Hz is no rate that sound is recorded at")


def _check_wav_rate(head: bytes) -> None:
    """Raise for a WAV of 0 Hz or the like, about which ffmpeg would only say that it is invalid."""
    if head[:4] == b"RIFF" and head[12:16] == b"fmt " and len(head) >= 28:
        _check_rate(int.from_bytes(head[24:28], "little"))


def _is_whole_wav(head: bytes, size_bytes: int) -> bool:
    """Say whether this is a WAV with nearly all the bytes of sound that its header declares: some count a few too many.

    One written to a pipe declares none: its writer could not go back to fill in their number. ffmpeg leaves 0xFFFFFFFF,
    sox just below 0x80000000, others 0. It ends where the bytes end, and nothing is missing.
    """
    at = head.find(b"data", 12)
    if head[:4] != b"RIFF" or at < 0:
        return False
    declared_bytes = int.from_bytes(head[at + 4 : at + 8], "little")
    open_ended = declared_bytes == 0 or declared_bytes >= _UNKNOWN_LENGTH_BYTES
    return open_ended or size_bytes - at - 8 >= LEAST_SHARE * declared_bytes


def _decode(file: BinaryIO, *, whole_wav: bool) -> Generator[None, None, tuple[NDArray[np.float32], bool]]:
    """Return in steps the waveform, up to a frame longer than `MOST_SECONDS`, and whether something of it was lost."""
    _bound_allocations()
    with av.open(file, mode="r", container_options=_OPTIONS, metadata_errors="replace") as container:
        stream = _audio_stream(container)
        decoding = _Decoding(container, stream, whole_wav=whole_wav)
        blocks: list[NDArray[np.float32]] = []
        samples = paused_at = 0
        for block in decoding.blocks():
            blocks.append(block)
            samples += block.size
            if samples > _MOST_SAMPLES:
                break
            if samples - paused_at >= _STEP_SAMPLES:
                paused_at = samples
                yield
        else:
            decoding.damaged |= _ends_early(container, stream, seconds=samples / SAMPLE_RATE_HZ)
            decoding.damaged |= container.format.name == "ogg" and not _ends_with_last_page(file)
    return np.concatenate([*blocks, np.empty(0, np.float32)]), decoding.damaged


def _audio_stream(container: InputContainer) -> AudioStream:
    """Return the stream to decode, and have the demuxer skip all others."""
    if not container.streams.audio:
        raise AudioError("audio_no_stream", "the file holds no sound")
    best = container.streams.best("audio")
    # PyAV leaves out the codec's context where ffmpeg knows no decoder, whatever its annotations say.
    if not isinstance(best, AudioStream) or getattr(best, "codec_context", None) is None:
        raise AudioError("audio_undecodable", "the sound is in a format that is not known")
    if best.codec_context.codec.name not in _DECODERS:
        raise AudioError("audio_undecodable", f"sound as {best.codec_context.codec.name} is not taken")
    if best.codec_context.channels > MOST_CHANNELS:
        raise AudioError("audio_undecodable", f"more than {MOST_CHANNELS} channels are not taken")
    _check_rate(best.codec_context.sample_rate)
    best.codec_context.thread_count = 1
    for stream in container.streams:
        if stream.index != best.index:
            stream.discard = Discard.all
    return best


def _ends_early(container: InputContainer, stream: AudioStream, *, seconds: float) -> bool:
    """Say whether less was decoded than a header declares.

    MP3 and bare AAC declare nothing: ffmpeg guesses from the first frames' bit rate. The length of a whole file counts
    only where there is no picture that may last longer.
    """
    if container.format.name in ("mp3", "aac"):
        return False
    declared = 0.0
    if stream.duration is not None and stream.time_base is not None:
        declared = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        declared = container.duration / av.time_base
    return seconds < LEAST_SHARE * min(declared, MOST_SECONDS) - _ROUNDING_S


def _ends_with_last_page(file: BinaryIO) -> bool:
    """Say whether an Ogg file ends in a whole page marked as the last: ffmpeg drops a broken one without a word.

    Source: RFC 3533, section 6.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _OGG_PAGE_BYTES))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < _OGG_HEADER_BYTES or not page.startswith(b"OggS"):
        return False
    segments = page[26]
    body_bytes = sum(page[_OGG_HEADER_BYTES : _OGG_HEADER_BYTES + segments])
    return bool(page[5] & _OGG_LAST_PAGE) and len(page) >= _OGG_HEADER_BYTES + segments + body_bytes


class _Decoding:
    """The way from a stream's packets to blocks of 16 kHz mono."""

    def __init__(self, container: InputContainer, stream: AudioStream, *, whole_wav: bool) -> None:
        self._container = container
        self._stream = stream
        self._whole_wav = whole_wav
        self._mixer: _Mixer | None = None
        self.damaged = False

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield blocks of samples; what cannot be decoded is left out."""
        for frame in itertools.chain(self._frames(), (None,)):
            try:
                yield from self._mix(frame)
            except av.FFmpegError:
                self.damaged = True

    def _frames(self) -> Iterator[AudioFrame]:
        packets = self._container.demux(self._stream)
        for _ in range(MOST_PACKETS):
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                break
            if packet is None:
                return
            self.damaged |= packet.is_corrupt and not self._whole_wav  # ffmpeg says so of a WAV a byte short
            try:
                yield from packet.decode()
            except av.FFmpegError:
                self.damaged = True
        self.damaged = True

    def _mix(self, frame: AudioFrame | None) -> Iterator[NDArray[np.float32]]:
        if frame and (frame.sample_rate not in RATES_HZ or frame.layout.nb_channels > MOST_CHANNELS):
            self.damaged = True
            return
        if self._mixer and not (frame and self._mixer.takes(frame)):
            mixer, self._mixer = self._mixer, None
            yield from mixer.mix(None)
        if frame:
            self._mixer = self._mixer or _Mixer(frame)
            yield from self._mixer.mix(frame)


class _Mixer:
    """Mixes frames of one rate, format and layout down to 16 kHz mono.

    A graph of its own instead of PyAV's `AudioResampler`: that one starts a thread per core for every recording, and
    knows no way from channels without a name to mono. Averaging in numpy is no way round it: PyAV 18.1 reads past the
    end of a frame that has eight planes.
    """

    def __init__(self, first: AudioFrame) -> None:
        self._takes = _layout(first)
        graph = Graph()
        graph.threads = 1
        source = graph.add(
            "abuffer",
            sample_rate=str(first.sample_rate),
            sample_fmt=first.format.name,
            channel_layout=first.layout.name,
        )
        steps = (
            graph.add("aformat", sample_fmts="fltp"),
            graph.add("pan", _mono(first)),
            graph.add("aformat", sample_fmts="flt", sample_rates=str(SAMPLE_RATE_HZ)),
            graph.add("abuffersink"),
        )
        graph.link_nodes(source, *steps)
        graph.configure()
        self._graph = graph

    def takes(self, frame: AudioFrame) -> bool:
        """Say whether this frame is like the first."""
        return _layout(frame) == self._takes

    def mix(self, frame: AudioFrame | None) -> Iterator[NDArray[np.float32]]:
        """Yield what is ready after one more frame, or at the end after None."""
        if frame is not None:
            # Time stamps are of no use here, and those of a broken file are wrong.
            frame.pts = None
        self._graph.push(frame)
        while True:
            try:
                mixed = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield mixed.to_ndarray().reshape(-1).astype(np.float32, copy=False)


def _layout(frame: AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name


def _mono(frame: AudioFrame) -> str:
    """Return the arguments of `pan` that average the channels; the low-frequency one carries no voice."""
    names = [channel.name for channel in frame.layout.channels]
    heard = [i for i, name in enumerate(names) if not name.startswith("LFE")] or list(range(len(names)))
    return "mono|c0=" + "+".join(f"{1 / len(heard):.6f}*c{i}" for i in heard)


@functools.cache
def _bound_allocations() -> None:
    """Set ffmpeg's limit on one allocation, for the process.

    PyAV offers no way to it; the symbol is found among the libraries that its core module is linked with. Where the
    system's linker does not look there (Windows), the limit stays ffmpeg's own of 2 GiB.
    """
    set_limit = getattr(ctypes.CDLL(av._core.__file__), "av_max_alloc", None)
    if set_limit is not None:
        set_limit.argtypes = (ctypes.c_size_t,)
        set_limit.restype = None
        set_limit(MOST_ALLOCATION_BYTES)
