"""Images of speech, beside librosa's slow way to the same numbers."""

import math
from collections.abc import Iterator

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emostream.model.audio import SAMPLE_RATE_HZ, Recording
from emostream.model.features import (
    _CPU_SAMPLES,
    CHROMA_HOP_SAMPLES,
    FRAME_STEP,
    HOP_SAMPLES,
    LEAST_FRAMES,
    MOST_FRAMES,
    OVERLAP_FRAMES,
    VARIANTS,
    SpeechImages,
    cut_windows,
    level,
)
from emostream.model.pooling import MOST_SAMPLES

MEL = {
    "n_fft": 512, "win_length": 400, "hop_length": HOP_SAMPLES, "n_mels": 64, "fmin": 125, "fmax": 7500, "htk": True,
    "norm": None, "power": 1.0,
}  # fmt: skip


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_mel_and_chroma_are_librosas(recordings: list[Recording]) -> None:
    images = SpeechImages("both")
    for recording in recordings:
        wave = recording.waveform
        mel = images.mel(torch.from_numpy(wave)[None])[0].numpy().T
        chroma = images.chroma(torch.from_numpy(wave)[None])[0].numpy().T
        expected_mel = librosa.feature.melspectrogram(y=wave, sr=SAMPLE_RATE_HZ, **MEL)
        expected_chroma = librosa.feature.chroma_stft(
            y=wave, sr=SAMPLE_RATE_HZ, tuning=0, n_fft=2048, hop_length=CHROMA_HOP_SAMPLES
        )
        assert relative_error(mel, expected_mel) < 1e-5
        np.testing.assert_allclose(mel, expected_mel, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(chroma, expected_chroma, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_has_a_channel_for_each_part_of_its_variant(variant: str) -> None:
    images = SpeechImages(variant)(torch.randn(3, 96 * HOP_SAMPLES) / 10)
    assert images.shape == (3, len(VARIANTS[variant]), 96, 64)
    assert torch.isfinite(images).all()


@pytest.fixture(params=[1, 3])
def cores(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("inference", [True, False])
def test_a_batch_has_the_images_of_its_recordings_on_any_number_of_cores(cores: int, inference: bool) -> None:
    waves = torch.randn(24 * cores + 1, 128 * HOP_SAMPLES) / 10
    images = SpeechImages("both")
    with torch.inference_mode(inference):
        for count in (1, 2, 17, len(waves)):  # by all cores together, and a few to each
            torch.testing.assert_close(images(waves[:count]), torch.cat([images(wave[None]) for wave in waves[:count]]))
    assert torch.get_num_threads() == cores


def test_the_scorer_asks_for_no_more_than_cores_draw_together() -> None:
    assert MOST_SAMPLES["cpu"] <= 2 * _CPU_SAMPLES


def test_a_tone_lights_its_pitch_class_and_its_band() -> None:
    seconds = torch.arange(2 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    mel, chroma = SpeechImages("both")(0.1 * torch.sin(2 * math.pi * 440 * seconds)[None])[0]
    bands = librosa.mel_frequencies(66, fmin=125, fmax=7500, htk=True)[1:-1]
    assert abs(bands[int(mel[100].argmax())] - 440) < 60
    pitch_class_a = 9  # librosa counts from C
    assert int(chroma[100].argmax()) * 12 // 64 == pitch_class_a


def test_silence_is_an_image_too() -> None:
    images = SpeechImages("both")(torch.zeros(1, 96 * HOP_SAMPLES))
    assert torch.isfinite(images).all()
    assert images[:, 1].abs().max() == 0


@given(st.integers(1_600, 60 * SAMPLE_RATE_HZ))
def test_windows_cover_a_recording_and_fit_the_network(samples: int) -> None:
    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    rows = cut_windows(wave).rows
    frames = [len(row) // HOP_SAMPLES for row in rows]
    assert all(len(row) % (FRAME_STEP * HOP_SAMPLES) == 0 for row in rows)
    assert all(LEAST_FRAMES <= count <= MOST_FRAMES for count in frames)
    covered = (len(rows) - 1) * (MOST_FRAMES - OVERLAP_FRAMES) + frames[-1]
    assert covered * HOP_SAMPLES >= len(level(wave))


def test_loudness_and_silent_ends_make_no_difference(recordings: list[Recording]) -> None:
    wave = recordings[0].waveform
    padded = np.pad(wave * 0.1, 8_000)
    (first,), (second,) = (cut_windows(each).rows[:1] for each in (wave, padded))
    # librosa trims by blocks of 256 samples: both begin within two blocks of each other.
    assert abs(np.sqrt(np.mean(first**2)) - np.sqrt(np.mean(second**2))) < 0.005
    assert len(first) == len(second)
    apart = max(range(-512, 513), key=lambda shift: float(np.dot(first, np.roll(second, shift))))
    assert np.corrcoef(first, np.roll(second, apart))[0, 1] > 0.999, "one is the other, moved"
