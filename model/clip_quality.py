"""A waveform -> what a reader should know about it. Called beside the model of voices, on what `audio` decoded.

The thresholds were measured on all 2,625 recordings of RAVDESS (actors 1 to 20), TESS and EmoDB. None of them is
flagged as of low quality. Seven are flagged as silent (0.3 %), all from RAVDESS (0.6 % of its 1,200), which holds
voices as quiet as room tone.
"""

import numpy as np
from numpy.typing import NDArray

from emostream.model.audio import SAMPLE_RATE_HZ
from emostream.model.samples import FLAG_LOW_QUALITY, FLAG_SILENCE

FRAME_SAMPLES = round(0.03 * SAMPLE_RATE_HZ)
"""30 ms: a few periods of any voice, and short beside a syllable."""

VOICE_FRAMES = 7
"""0.2 s, a syllable: fewer loud frames are clicks. A count, so that one word in a minute of silence is no
silence."""

SILENCE_DBFS = -55.0
"""A recording is silent where its `VOICE_FRAMES`-th loudest frame stays below it. The quietest of RAVDESS reaches
-56.4, of TESS -37. Brought to a peak of -60 dBFS, all are flagged; to a mean power of -60 dBFS, 72 % of TESS and
EmoDB and 1 % of RAVDESS, whose pauses are long. At -50, 3 % of RAVDESS would be flagged as it is."""

JUDGED_SECONDS = 0.5
"""A shorter clip may be one vowel, as steady as a hum, or one hiss: of quarters of a second 1 % look clipped."""

RAIL = 0.9
"""Share of the peak from which a sample counts as at the rail. Codecs bend a flat top by about a tenth."""

MOST_AT_RAIL = 0.01
"""Share of samples in runs of three or more at the rail. Speech: 0.005 at most. Clipped at a twentieth of its peak:
0.08 at least, all flagged; at a fifth 99.7 % are, and 92 % after MP3; at a third 85 %. Clipped clips that were
turned down again are found, too, since the rail is their own peak."""

MOST_FLATNESS = 0.3
"""Spectral flatness, the geometric over the arithmetic mean of the power, from 125 to 3800 Hz (the telephone has no
more): median of the frames within 12 dB of the loudest. Speech: 0.16 at most, its loudest second 0.27; pink noise
0.38 at least, white 0.56. Speech under white noise as loud is flagged in 82 %, under a third of it (5 dB) in 2 %.
Brown noise passes."""

LEAST_RANGE_DB = 3.0
"""From the level of the quiet tenth of the frames to that of the loud tenth. Speech: 11 at least, its loudest
second 2.5 (0.1 % below 3); white noise 0.8, pink 2.5 at most, a hum 0."""

_ACTIVE_DB = 12.0
_MOST_FRAMES = 512
_FFT = 512
_BAND = slice(round(125 / SAMPLE_RATE_HZ * _FFT), round(3800 / SAMPLE_RATE_HZ * _FFT))
_WINDOW = np.hanning(FRAME_SAMPLES).astype(np.float32)
_TINY = 1e-12


def quality_flags(waveform: NDArray[np.float32]) -> tuple[str, ...]:
    """Return `FLAG_SILENCE`, or `FLAG_LOW_QUALITY` where a clip is clipped or nothing but noise, or neither.

    Args:
        waveform: float32 of shape (samples,), 16 kHz mono, within -1 … 1.
    """
    short = max(0, FRAME_SAMPLES - waveform.size)
    framed = np.pad(waveform, (0, short)) if short else waveform[: waveform.size // FRAME_SAMPLES * FRAME_SAMPLES]
    frames = framed.reshape(-1, FRAME_SAMPLES)
    levels_db = 10 * np.log10(np.square(frames).mean(axis=1) + _TINY)
    if _voice_db(levels_db) < SILENCE_DBFS:
        return (FLAG_SILENCE,)
    if waveform.size < JUDGED_SECONDS * SAMPLE_RATE_HZ:
        return ()
    if _is_clipped(waveform) or _is_steady(levels_db) or _is_noise(frames[levels_db > levels_db.max() - _ACTIVE_DB]):
        return (FLAG_LOW_QUALITY,)
    return ()


def _voice_db(levels_db: NDArray[np.float32]) -> float:
    """Return the level that is reached for the length of a syllable, or for half of a clip that is shorter than two."""
    frames = min(VOICE_FRAMES, (levels_db.size + 1) // 2)
    return float(np.partition(levels_db, -frames)[-frames])


def _is_clipped(waveform: NDArray[np.float32]) -> bool:
    magnitude = np.abs(waveform)
    at_rail = magnitude >= RAIL * magnitude.max()
    return bool((at_rail[2:] & at_rail[1:-1] & at_rail[:-2]).mean() > MOST_AT_RAIL)


def _is_steady(levels_db: NDArray[np.float32]) -> bool:
    quiet_db, loud_db = np.quantile(levels_db, (0.1, 0.9))
    # One word in a minute of silence is louder than its loud tenth.
    return bool(max(loud_db, _voice_db(levels_db)) - quiet_db < LEAST_RANGE_DB)


def _is_noise(frames: NDArray[np.float32]) -> bool:
    # Of a long recording every so-manieth frame will do: the median hardly moves, and a minute takes half the time.
    frames = frames[:: 1 + len(frames) // _MOST_FRAMES]
    power = np.square(np.abs(np.fft.rfft(frames * _WINDOW, _FFT)[:, _BAND])) + _TINY
    flatness = np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)
    return bool(np.median(flatness) > MOST_FLATNESS)
