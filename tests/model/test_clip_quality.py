"""Flags say what is wrong with a clip; voices of any level have none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from emostream.model.audio import SAMPLE_RATE_HZ
from emostream.model.clip_quality import quality_flags
from emostream.model.samples import FLAG_LOW_QUALITY, FLAG_SILENCE

Samples = NDArray[np.float32]


def voice(seconds: float, *, peak: float = 0.5) -> Samples:
    """A gliding tone with overtones, four syllables a second."""
    at_s = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * (140 * at_s + 20 * np.sin(2 * np.pi * 0.4 * at_s))
    overtones = sum(np.sin(k * phase) / k for k in range(1, 16))
    return scale(overtones * (1 - np.cos(2 * np.pi * 4 * at_s)), peak)


def noise(seconds: float, *, slope: float, peak: float = 0.5) -> Samples:
    """Noise whose power falls with frequency to the power of `slope`: 0 is white, 1 pink."""
    samples = round(seconds * SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(np.random.default_rng(7).standard_normal(samples))
    spectrum /= np.maximum(np.arange(spectrum.size), 20 * seconds) ** (slope / 2)
    return scale(np.fft.irfft(spectrum, samples), peak)


def scale(samples: NDArray[np.float64], peak: float) -> Samples:
    return np.asarray(samples * (peak / np.abs(samples).max()), np.float32)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1, 3, 60])
@pytest.mark.parametrize("peak", [0.03, 0.5, 1])
def test_a_voice_has_no_flag(seconds: float, peak: float) -> None:
    assert quality_flags(voice(seconds, peak=peak)) == ()


def test_a_word_in_a_minute_of_silence_is_no_silence() -> None:
    minute = np.zeros(60 * SAMPLE_RATE_HZ, np.float32)
    minute[400_000:408_000] = voice(0.5)
    assert quality_flags(minute) == ()


@pytest.mark.parametrize("seconds", [0, 0.001, 0.1, 1, 60])
def test_next_to_nothing_is_silence(seconds: float) -> None:
    nothing = np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)
    assert quality_flags(nothing) == (FLAG_SILENCE,)
    if seconds >= 0.1:
        assert quality_flags(voice(seconds, peak=1e-3)) == (FLAG_SILENCE,)
        assert quality_flags(noise(seconds, slope=0, peak=1e-3)) == (FLAG_SILENCE,)


def test_a_click_is_silence() -> None:
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[5000:5200] = 0.9
    assert quality_flags(click) == (FLAG_SILENCE,)


@pytest.mark.parametrize("seconds", [0.5, 3, 60])
@pytest.mark.parametrize("slope", [0, 1])
@pytest.mark.parametrize("peak", [0.05, 1])
def test_noise_is_of_low_quality(seconds: float, slope: float, peak: float) -> None:
    assert quality_flags(noise(seconds, slope=slope, peak=peak)) == (FLAG_LOW_QUALITY,)


def test_a_hum_is_of_low_quality() -> None:
    hum = np.sin(2 * np.pi * 50 * np.arange(2 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
    assert quality_flags(scale(hum, 0.3)) == (FLAG_LOW_QUALITY,)


@pytest.mark.parametrize("turned_down", [1, 0.1])
def test_a_clipped_voice_is_of_low_quality(turned_down: float) -> None:
    clipped = np.clip(20 * voice(3), -1, 1) * np.float32(turned_down)
    assert quality_flags(clipped) == (FLAG_LOW_QUALITY,)


@settings(max_examples=50)
@given(arrays.arrays(np.float32, st.integers(0, 9000), elements=st.floats(-1, 1, width=32), fill=st.nothing()))
def test_any_waveform_has_an_answer(waveform: Samples) -> None:
    assert quality_flags(waveform) in ((), (FLAG_SILENCE,), (FLAG_LOW_QUALITY,))
