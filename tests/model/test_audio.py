"""Recordings of every format become the same waveform; anything else becomes an `AudioError`, cheaply."""

import functools
import io
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_recordings import Samples, encode

from emostream.model.audio import MOST_SECONDS, SAMPLE_RATE_HZ, Recording, decode_recording
from emostream.model.errors import AudioError

SECONDS = 2.0
FORMATS = {
    "wav": ("wav", "pcm_s16le", 16_000),
    "flac": ("flac", "flac", 44_100),
    "ogg_vorbis": ("ogg", "vorbis", 44_100),
    "ogg_opus": ("ogg", "libopus", 48_000),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "m4a": ("ipod", "aac", 44_100),
    "aac": ("adts", "aac", 44_100),
    "webm": ("webm", "libopus", 48_000),
    "mp4": ("mp4", "aac", 48_000),
}


def voice(seconds: float, rate_hz: int) -> Samples:
    """A gliding tone with overtones in four syllables a second: its shape is the same at every rate."""
    at_s = np.arange(round(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * (140 * at_s + 20 * np.sin(2 * np.pi * 0.4 * at_s))
    overtones = sum(np.sin(k * phase) / k for k in range(1, 16))
    syllables = (1 - np.cos(2 * np.pi * 4 * at_s)) / 2
    return np.asarray(0.2 * overtones * syllables, np.float32)


@functools.cache
def recording(name: str) -> bytes:
    container, codec, rate_hz = FORMATS[name]
    one = voice(SECONDS, rate_hz)
    if codec == "vorbis":
        return encode(np.stack([one, one]), rate_hz=rate_hz, container=container, codec=codec, layout="stereo")
    return encode(one[None], rate_hz=rate_hz, container=container, codec=codec, picture=name == "mp4")


def wav(
    samples: bytes,
    *,
    rate_hz: int = 16_000,
    channels: int = 1,
    bits: int = 16,
    kind: int = 1,
    claimed_bytes: int | None = None,
) -> bytes:
    """A WAV whose header says whatever a test wants."""
    claimed_bytes = len(samples) if claimed_bytes is None else claimed_bytes
    block_bytes = channels * bits // 8
    riff_bytes, rate_bytes = min(claimed_bytes + 36, 2**32 - 1), min(rate_hz * block_bytes, 2**32 - 1)
    form = struct.pack("<HHIIHH", kind, channels, rate_hz, rate_bytes, block_bytes % 2**16, bits)
    head = b"RIFF" + struct.pack("<I", riff_bytes) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", claimed_bytes) + samples


def pcm16(samples: Samples) -> bytes:
    return np.round(samples * 32767).astype("<i2").tobytes()


SOUND = pcm16(voice(SECONDS, 16_000))


def likeness(heard: Recording, *, seconds: float = SECONDS) -> float:
    """Correlation with the original, at the best shift within 30 ms: codecs delay by a few milliseconds."""
    original = voice(seconds, SAMPLE_RATE_HZ)
    most = 480
    middle = original[most:-most]
    windows = np.lib.stride_tricks.sliding_window_view(heard.waveform[: original.size], middle.size)[: 2 * most]
    return float((windows @ middle / (np.linalg.norm(windows, axis=1) * np.linalg.norm(middle))).max())


def reason_of(encoded: bytes | Path) -> str:
    with pytest.raises(AudioError) as caught:
        decode_recording(encoded)
    return caught.value.reason


def decode_or_reason(encoded: bytes) -> Recording | str:
    """Whatever the bytes are, one of the two, and nothing that a model would choke on."""
    try:
        heard = decode_recording(encoded)
    except AudioError as error:
        return error.reason
    assert heard.waveform.dtype == np.float32
    assert heard.waveform.ndim == 1
    assert heard.waveform.size <= MOST_SECONDS * SAMPLE_RATE_HZ
    assert np.abs(heard.waveform).max() <= 1, "NaN fails this, too"
    return heard


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_waveform(name: str, tmp_path: Path) -> None:
    heard = decode_recording(recording(name))
    assert heard.waveform.dtype == np.float32
    assert heard.seconds == heard.waveform.size / SAMPLE_RATE_HZ == pytest.approx(SECONDS, abs=0.05)
    assert likeness(heard) > 0.97
    assert 0.3 < np.abs(heard.waveform).max() < 0.7
    assert not heard.truncated
    assert not heard.damaged
    (tmp_path / "recording.m3u8").write_bytes(recording(name))
    from_file = decode_recording(tmp_path / "recording.m3u8")
    assert np.array_equal(from_file.waveform, heard.waveform), "a file's name says nothing"


@pytest.mark.parametrize(
    "codec", ["pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_mulaw", "pcm_alaw"]
)
@pytest.mark.parametrize("rate_hz", [8_000, 96_000])
def test_every_kind_of_wav_sample(codec: str, rate_hz: int) -> None:
    heard = decode_recording(encode(voice(SECONDS, rate_hz)[None], rate_hz=rate_hz, container="wav", codec=codec))
    assert likeness(heard) > 0.99
    assert heard.seconds == pytest.approx(SECONDS, abs=0.001)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_every_rate_and_layout(rate_hz: int, layout: str) -> None:
    one = voice(SECONDS, rate_hz)
    channels = np.repeat(one[None], av.AudioLayout(layout).nb_channels, axis=0)
    heard = decode_recording(encode(channels, rate_hz=rate_hz, container="flac", codec="flac", layout=layout))
    assert likeness(heard) > 0.99
    assert heard.seconds == pytest.approx(SECONDS, abs=0.001)
    assert np.abs(heard.waveform).max() == pytest.approx(np.abs(one).max(), rel=0.05), "mixing down keeps the level"


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("ipod", "aac"), ("ogg", "libopus")])
@pytest.mark.parametrize("layout", ["5.1", "7.1"])
def test_the_low_frequency_channel_is_not_heard(container: str, codec: str, layout: str) -> None:
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    channels = np.zeros((len(names), round(SECONDS * 48_000)), np.float32)
    channels[names.index("FC")] = voice(SECONDS, 48_000)
    channels[names.index("LFE")] = 0.5 * np.sin(2 * np.pi * 40 * np.arange(channels.shape[1]) / 48_000)
    heard = decode_recording(encode(channels, rate_hz=48_000, container=container, codec=codec, layout=layout))
    assert likeness(heard) > 0.97


@pytest.mark.parametrize("channels", [3, 6, 8, 64])
def test_channels_without_a_name_are_averaged(channels: int) -> None:
    together = np.repeat(voice(SECONDS, 16_000)[:, None], channels, axis=1)
    heard = decode_recording(wav(pcm16(together), channels=channels))
    assert likeness(heard) > 0.999
    assert np.abs(heard.waveform).max() == pytest.approx(np.abs(together).max(), rel=0.01)


def test_titles_in_any_encoding() -> None:
    title = b"LIST" + struct.pack("<I", 16) + b"INFOINAM" + struct.pack("<I", 4) + "Lüfe".encode("latin-1")
    whole = wav(SOUND)
    assert decode_recording(whole[:36] + title + whole[36:]).seconds == SECONDS


def test_what_is_louder_than_full_scale_is_clipped() -> None:
    heard = decode_recording(wav((50 * voice(SECONDS, 16_000)).astype("<f4").tobytes(), bits=32, kind=3))
    assert np.abs(heard.waveform).max() == 1


WITH_NAN = np.where(np.arange(32_000) == 20_000, np.nan, voice(SECONDS, 16_000)).astype("<f4").tobytes()
WITH_INFINITY = np.where(np.arange(32_000) == 20_000, np.inf, voice(SECONDS, 16_000)).astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("reason", "encoded"),
    [
        ("audio_empty", b""),
        ("audio_empty", wav(b"")),
        ("audio_undecodable", b"no recording at all, but a sentence"),
        ("audio_undecodable", wav(SOUND)[:30]),
        ("audio_undecodable", wav(SOUND, channels=0)),
        ("audio_undecodable", wav(SOUND, channels=65)),
        ("audio_undecodable", wav(SOUND, channels=65_535)),
        ("audio_undecodable", wav(SOUND, bits=0)),
        ("audio_undecodable", wav(SOUND, kind=0x55AA)),
        ("audio_rate", wav(SOUND, rate_hz=0)),
        ("audio_rate", wav(SOUND, rate_hz=1)),
        ("audio_rate", wav(SOUND, rate_hz=400_000)),
        ("audio_rate", wav(SOUND, rate_hz=2**32 - 1)),
        ("audio_too_short", wav(SOUND[:2])),
        ("audio_too_short", wav(SOUND[:3000])),
        ("audio_silent", wav(bytes(64_000))),
        ("audio_silent", wav(b"\x01\x00\xff\xff" * 16_000)),
        ("audio_not_finite", wav(WITH_NAN, bits=32, kind=3)),
        ("audio_not_finite", wav(WITH_NAN, bits=32, kind=3, rate_hz=44_100)),
        ("audio_not_finite", wav(WITH_INFINITY, bits=32, kind=3)),
        ("audio_not_finite", wav(WITH_INFINITY, bits=32, kind=3, rate_hz=44_100)),
    ],
)
def test_what_cannot_be_heard_has_a_reason(reason: str, encoded: bytes) -> None:
    assert reason_of(encoded) == reason


def test_a_picture_alone_is_no_recording() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        pictures = output.add_stream("mpeg4", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        output.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        output.mux(pictures.encode(None))
    assert reason_of(buffer.getvalue()) == "audio_no_stream"


@pytest.mark.parametrize(("container", "codec"), [("aiff", "pcm_s16be"), ("mp4", "ac3"), ("wav", "adpcm_ms")])
def test_formats_that_are_not_taken(container: str, codec: str) -> None:
    encoded = encode(voice(SECONDS, 48_000)[None], rate_hz=48_000, container=container, codec=codec)
    assert reason_of(encoded) == "audio_undecodable"


def test_a_missing_file_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode_recording(tmp_path / "none.wav")


def test_playlists_open_nothing(tmp_path: Path) -> None:
    (tmp_path / "inside.wav").write_bytes(wav(SOUND))
    inside = tmp_path / "inside.wav"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/inside.wav"
        for target in (str(inside), inside.as_uri(), url):
            hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.0,\n{target}\n#EXT-X-ENDLIST\n"
            concat = f"ffconcat version 1.0\nfile '{target}'\n"
            dash = f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{target}</BaseURL></MPD>'
            for name, text in (("a.m3u8", hls), ("a.ffconcat", concat), ("a.mpd", dash)):
                (tmp_path / name).write_text(text)
                assert reason_of(text.encode()) == "audio_undecodable"
                assert reason_of(tmp_path / name) == "audio_undecodable"
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("extra", "truncated"),
    [(0, False), (1, True), (16_000, True)],
)
def test_a_minute_is_read(extra: int, truncated: bool) -> None:
    second = pcm16(voice(1, 16_000))
    heard = decode_recording(wav(second * 60 + second[: 2 * extra]))
    assert heard.seconds == MOST_SECONDS
    assert heard.truncated == truncated
    assert not heard.damaged


def test_a_compressed_recording_is_cut_at_a_minute() -> None:
    heard = decode_recording(encode(voice(63, 16_000)[None], rate_hz=16_000, container="mp3", codec="libmp3lame"))
    assert heard.seconds == MOST_SECONDS
    assert heard.truncated
    assert not heard.damaged


@pytest.mark.parametrize("claimed_bytes", [0, 2**31 - 1, 2**32 - 1])
def test_a_wav_from_a_pipe_is_whole(claimed_bytes: int) -> None:
    heard = decode_recording(wav(SOUND, claimed_bytes=claimed_bytes))
    assert heard.seconds == SECONDS
    assert not heard.damaged


@pytest.mark.parametrize(("missing_bytes", "damaged"), [(2, False), (36, False), (20_000, True)])
def test_a_wav_may_count_a_few_bytes_too_many(missing_bytes: int, damaged: bool) -> None:
    heard = decode_recording(wav(SOUND, claimed_bytes=len(SOUND) + missing_bytes))
    assert heard.seconds == SECONDS
    assert heard.damaged == damaged


def test_a_wav_that_claims_ten_hours_is_damaged() -> None:
    heard = decode_recording(wav(SOUND, claimed_bytes=10 * 3600 * 32_000))
    assert heard.seconds == SECONDS
    assert heard.damaged


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_left_of_a_cut_file_is_heard(name: str) -> None:
    whole = recording(name)
    for share in (0.02, 0.1, 0.3, 0.6, 0.9, 0.99):
        heard = decode_or_reason(whole[: round(len(whole) * share)])
        if isinstance(heard, str):
            assert heard in ("audio_undecodable", "audio_too_short", "audio_no_stream")
            continue
        assert heard.seconds <= SECONDS * share + 0.2
        if heard.seconds < 1.7:
            assert heard.damaged or name in ("mp3", "aac")
    indexed_at_the_end = name in ("m4a", "mp4")
    assert isinstance(decode_or_reason(whole[: round(len(whole) * 0.9)]), str) == indexed_at_the_end


def test_a_cut_mp4_in_fragments_is_heard() -> None:
    sound = voice(SECONDS, 48_000)[None]
    muxer = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}
    whole = encode(sound, rate_hz=48_000, container="mp4", codec="aac", muxer=muxer)
    assert likeness(decode_recording(whole)) > 0.97
    heard = decode_recording(whole[: len(whole) // 2])
    assert 0.7 < heard.seconds < 1.3
    assert heard.damaged


def test_a_recording_may_change_its_rate_and_layout() -> None:
    """Two bare AACs, one behind the other, are one: radio does that between programmes."""
    first = encode(voice(1, 44_100)[None], rate_hz=44_100, container="adts", codec="aac")
    both = np.repeat(voice(1, 48_000)[None], 2, axis=0)
    second = encode(both, rate_hz=48_000, container="adts", codec="aac", layout="stereo")
    heard = decode_recording(first + second)
    assert heard.seconds == pytest.approx(decode_recording(first).seconds + decode_recording(second).seconds, abs=0.1)
    behind = heard.waveform[-decode_recording(second).waveform.size :]
    again = Recording(waveform=behind, seconds=1, truncated=False, damaged=False)
    assert likeness(again, seconds=1) > 0.97


@pytest.mark.parametrize("name", ["flac", "mp3", "aac", "webm"])
def test_what_stands_before_a_broken_tail_is_heard(name: str) -> None:
    whole = recording(name)
    broken = bytearray(whole)
    noise = np.random.default_rng(5).bytes(len(whole) // 3)
    broken[-len(noise) :] = noise
    heard = decode_recording(bytes(broken))
    assert 0.8 < heard.seconds <= SECONDS + 0.1
    assert heard.damaged


@given(st.binary(max_size=2000))
def test_random_bytes_are_survived(encoded: bytes) -> None:
    decode_or_reason(encoded)


STARTS = {"RIFF": b"RIFF\xff\xff\xff\xffWAVE", "ID3": b"ID3\x04\x00\x00\x00\x00\x00\x0a", "MP3": b"\xff\xfb\x90\x00"}
STARTS |= {"FLAC": b"fLaC", "Ogg": b"OggS\x00\x02", "MP4": b"\x00\x00\x00\x14ftypisom", "WebM": b"\x1a\x45\xdf\xa3"}


@given(st.sampled_from(sorted(STARTS)), st.binary(max_size=1000))
def test_random_bytes_behind_a_known_start_are_survived(start: str, encoded: bytes) -> None:
    decode_or_reason(STARTS[start] + encoded)


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=30),
    st.sampled_from([200, 1000, 1_000_000]),
)
@example("wav", [(0.12, 0)], 200)
def test_flipped_bits_are_survived(name: str, flips: list[tuple[float, int]], span: int) -> None:
    """A small span puts all the flips into the headers."""
    broken = bytearray(recording(name))
    for where, bit in flips:
        broken[int(where * min(span, len(broken)))] ^= 1 << bit
    decode_or_reason(bytes(broken))


def test_a_broken_recording_leaves_no_trace_in_the_next(capfd: pytest.CaptureFixture[str]) -> None:
    for name in FORMATS:
        whole = recording(name)
        for cut in range(10, len(whole), len(whole) // 10):
            decode_or_reason(whole[:cut] + b"\xff" * 100)
        assert likeness(decode_recording(whole)) > 0.97
    assert capfd.readouterr() == ("", ""), "ffmpeg's chatter stays inside"


def test_a_jump_behind_every_possible_end(tmp_path: Path) -> None:
    """Files refuse to seek that far, and PyAV would keep the OSError for the next recording."""
    far = struct.pack(">I4sQ", 1, b"free", 2**62)
    (tmp_path / "far.m4a").write_bytes(recording("m4a")[:28] + far + bytes(1000))
    assert reason_of(tmp_path / "far.m4a") == "audio_undecodable"
    assert likeness(decode_recording(recording("m4a"))) > 0.97


def test_threads_decode_side_by_side() -> None:
    alone = {name: decode_recording(recording(name)).waveform for name in FORMATS}
    names = [*FORMATS] * 8
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda name: decode_recording(recording(name)), names)
        for name, heard in zip(names, together, strict=True):
            assert np.array_equal(heard.waveform, alone[name])


def boxes(data: bytes, at: int, end: int, path: tuple[bytes, ...] = ()) -> list[tuple[tuple[bytes, ...], int, int]]:
    """Path, start and size of each box of an MP4."""
    found = []
    while at + 8 <= end:
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        found.append(((*path, kind), at, size))
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            found += boxes(data, at + 8, at + size, (*path, kind))
        at += size
    return found


def claim_samples(mp4: bytes, samples: int) -> bytes:
    """Have an M4A's index claim that many samples of a byte each, in one chunk."""
    patched = bytearray(mp4)
    claims = {b"stsz": (0, 1, samples), b"stsc": (0, 1, 1, samples, 1), b"stts": (0, 1, samples, 1024)}
    for path, at, _ in boxes(mp4, 0, len(mp4)):
        if path[-1] in claims:
            values = struct.pack(f">{len(claims[path[-1]])}I", *claims[path[-1]])
            patched[at + 8 : at + 8 + len(values)] = values
    return bytes(patched)


def test_reading_ends_after_so_many_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emostream.model.audio.MOST_PACKETS", 40)
    heard = decode_recording(recording("m4a"))
    assert 0.8 < heard.seconds < 1
    assert heard.damaged


MEASURE = """
import resource, sys
from pathlib import Path
from emostream.model.audio import decode_recording
from emostream.model.errors import AudioError

decode_recording(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[2:]:
    try:
        heard = decode_recording(Path(file))
        print(file, heard.seconds, heard.truncated, file=sys.stderr)
    except AudioError as error:
        print(file, error.reason, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


def test_memory_is_bounded_whatever_the_header_claims(tmp_path: Path) -> None:
    """Ten minutes of stereo are 115 MB; thirty million claimed samples, unbounded, an index of 1 GB."""
    stereo = pcm16(np.repeat(voice(1, 48_000)[:, None], 2, axis=1))
    wide = pcm16(np.repeat(voice(0.1, 192_000)[:, None], 64, axis=1))
    files = {
        "small.wav": wav(SOUND),
        "long.wav": wav(stereo * 600, rate_hz=48_000, channels=2),
        "huge.wav": wav(SOUND, claimed_bytes=2**32 - 1),
        "wide.wav": wav(wide, rate_hz=192_000, channels=64, claimed_bytes=2**32 - 1),
        "index.m4a": claim_samples(recording("m4a"), 30_000_000),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in files]
    measured = subprocess.run([sys.executable, "-c", MEASURE, *paths], check=True, capture_output=True, text=True)
    assert "long.wav 60.0 True" in measured.stderr
    assert int(measured.stdout) < 40 << 20
