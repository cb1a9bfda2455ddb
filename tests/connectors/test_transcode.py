"""What fits is sent as it is; what is too long or too large fits afterwards; what is no recording is named."""

import io
import struct
import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from tiny_recordings import write_wav

from emostream.connectors.errors import MalformedRecord
from emostream.connectors.messages import MOST_CLIP_BYTES, decode_clip
from emostream.connectors.transcode import FLAC, KEPT_SECONDS, MOST_CLIP_SECONDS, OPUS, best_encoder, fit_clip
from emostream.model.audio import MOST_SECONDS, SAMPLE_RATE_HZ, decode_recording

CLIPS = Path(__file__).parents[2] / "docs" / "examples" / "clips"


def heard_samples(audio: bytes) -> tuple[int, int, int]:
    """Decode without the worker's bounds; return samples, rate and channels."""
    with av.open(io.BytesIO(audio)) as container:
        (sound,) = container.streams.audio
        frames = list(container.decode(sound))
        return sum(frame.samples for frame in frames), sound.codec_context.sample_rate, sound.codec_context.channels


def test_bounds_are_those_of_the_worker() -> None:
    assert MOST_CLIP_SECONDS == MOST_SECONDS
    assert best_encoder() == OPUS


@pytest.mark.parametrize("file", sorted(CLIPS.iterdir()), ids=lambda file: file.name)
def test_what_fits_is_sent_as_it_is(file: Path) -> None:
    clip = fit_clip(file)
    assert (clip.audio, clip.content_type, clip.transcoded) == (file.read_bytes(), "audio/ogg", False)


@pytest.mark.parametrize(
    ("container", "codec", "content_type"),
    [
        ("flac", "flac", "audio/flac"),
        ("mp3", "libmp3lame", "audio/mpeg"),
        ("adts", "aac", "audio/aac"),
        ("ipod", "aac", "audio/mp4"),
        ("mp4", "aac", "audio/mp4"),
        ("webm", "libopus", "audio/webm"),
    ],
)
@pytest.mark.parametrize("seconds", [2, 70])
def test_every_format_is_taken(tmp_path: Path, container: str, codec: str, content_type: str, seconds: int) -> None:
    file = tmp_path / "recording"
    with av.open(str(file), "w", format=container) as output:
        sound = output.add_stream(codec, rate=48_000, layout="stereo")
        ramp = np.tile(np.arange(-4000, 4000, 100, np.int16), 1200)[None]
        for number in range(seconds):
            frame = av.AudioFrame.from_ndarray(ramp, format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, number * 48_000
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    clip = fit_clip(file)
    if seconds == 2:
        assert (clip.audio, clip.content_type) == (file.read_bytes(), content_type)
    else:
        assert clip.content_type == "audio/ogg"
        assert decode_recording(clip.audio).truncated


def test_the_content_type_is_that_of_the_bytes_not_of_the_name(tmp_path: Path) -> None:
    clip = fit_clip(write_wav(tmp_path / "called.mp3", 1))
    assert clip.content_type == "audio/wav"


@pytest.mark.parametrize("encoder", [OPUS, FLAC], ids=lambda encoder: encoder.codec)
def test_a_long_recording_keeps_a_second_more_than_is_heard(tmp_path: Path, encoder) -> None:
    clip = fit_clip(write_wav(tmp_path / "long.wav", 70), encoder=encoder)
    assert clip.transcoded
    assert len(clip.audio) < MOST_CLIP_BYTES
    samples, rate_hz, channels = heard_samples(clip.audio)
    assert samples / rate_hz == pytest.approx(KEPT_SECONDS, abs=0.05)
    assert channels == 1
    heard = decode_recording(clip.audio)
    assert (heard.truncated, heard.damaged) == (True, False)
    decode_clip(b"id", clip.audio, [("content-type", clip.content_type.encode())])


def test_a_large_recording_sounds_the_same_afterwards(tmp_path: Path) -> None:
    file = write_wav(tmp_path / "large.wav", 58, rate_hz=48_000, channels=2)
    assert file.stat().st_size > 11_000_000
    clip = fit_clip(file)
    assert clip.content_type == "audio/ogg"
    assert len(clip.audio) <= MOST_CLIP_BYTES
    before, after = decode_recording(file), decode_recording(clip.audio)
    assert after.seconds == pytest.approx(58, abs=0.05)
    assert not after.truncated
    second = slice(10 * SAMPLE_RATE_HZ, 11 * SAMPLE_RATE_HZ)
    assert np.corrcoef(before.waveform[second], after.waveform[second])[0, 1] > 0.99


def test_a_small_recording_of_many_minutes_is_cut(tmp_path: Path) -> None:
    """Opus at 6 kbit/s: two minutes in 90 kB."""
    file = tmp_path / "call.ogg"
    with av.open(str(file), "w") as output:
        sound = output.add_stream("libopus", rate=16_000, layout="mono")
        sound.codec_context.bit_rate = 6_000
        for number in range(2 * 60 * 50):
            frame = av.AudioFrame.from_ndarray(np.full((1, 320), number % 400, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, number * 320
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    assert file.stat().st_size < MOST_CLIP_BYTES
    clip = fit_clip(file)
    assert clip.transcoded
    assert decode_recording(clip.audio).truncated


@pytest.mark.parametrize("claimed_bytes", [0, 10 * 60 * 32_000, 2**32 - 1])
def test_a_wrong_header_is_left_to_the_worker(tmp_path: Path, claimed_bytes: int) -> None:
    file = write_wav(tmp_path / "piped.wav", 2)
    content = bytearray(file.read_bytes())
    content[40:44] = struct.pack("<I", claimed_bytes)
    file.write_bytes(content)
    clip = fit_clip(file)
    assert (clip.audio, clip.transcoded) == (bytes(content), False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no sound at all" * 100, "audio_undecodable"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.mp3\n", "audio_undecodable"),
        (b"noise" * 300_000, "audio_undecodable"),
        (b"RIFF", "audio_undecodable"),
    ],
)
def test_what_is_no_recording_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "broken.wav"
    file.write_bytes(content)
    with pytest.raises(MalformedRecord) as caught:
        fit_clip(file)
    assert caught.value.reason == reason


def test_a_film_without_sound_is_named(tmp_path: Path) -> None:
    file = tmp_path / "silent.mp4"
    with av.open(str(file), "w") as output:
        pictures = output.add_stream("mpeg4", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        output.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        output.mux(pictures.encode(None))
    with pytest.raises(MalformedRecord) as caught:
        fit_clip(file)
    assert caught.value.reason == "audio_no_stream"


def test_unchecked_sends_what_cannot_be_opened_if_it_is_small(tmp_path: Path) -> None:
    small, large = tmp_path / "small.wav", tmp_path / "large.wav"
    small.write_bytes(b"noise" * 100)
    large.write_bytes(b"noise" * 300_000)
    assert fit_clip(small, checked=False).audio == b"noise" * 100
    with pytest.raises(MalformedRecord):
        fit_clip(large, checked=False)


def test_what_stays_too_large_is_named(tmp_path: Path) -> None:
    """FLAC cannot shrink noise."""
    file = tmp_path / "noise.wav"
    with wave.open(str(file), "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(np.random.default_rng(0).bytes(62 * 32_000))
    with pytest.raises(MalformedRecord) as caught:
        fit_clip(file, encoder=FLAC)
    assert caught.value.reason == "too_large"
    assert len(fit_clip(file).audio) <= MOST_CLIP_BYTES


MEASURE = """
import resource, sys
from pathlib import Path
from emostream.connectors.transcode import fit_clip
small, large = map(Path, sys.argv[1:])
fit_clip(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit_clip(large)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


def test_an_hour_takes_no_more_memory_than_a_minute(tmp_path: Path) -> None:
    minute = write_wav(tmp_path / "minute.wav", 62)
    hour = tmp_path / "hour.wav"
    content = bytearray(minute.read_bytes())
    content[40:44] = struct.pack("<I", 3600 * 32_000)
    with hour.open("wb") as file:
        file.write(content)
        file.truncate(44 + 3600 * 32_000)  # the rest is a hole: silence that takes no disk
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(minute), str(hour)], check=True, capture_output=True, text=True
    )
    assert int(measured.stdout) < 16 << 20
