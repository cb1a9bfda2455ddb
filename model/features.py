"""A waveform -> the image that MobileNet sees: log Mel spectrogram and chromagram. Used by the scorer and by training.

Computed in torch, batched, on the device that the model is on; equal to `librosa.feature.melspectrogram` and
`librosa.feature.chroma_stft(tuning=0)` (tests compare). One Fourier transform per resolution: a short window every
10 ms for the Mel bands, a long one every 30 ms for pitch classes, each of whose frames stands under three of the other.

Legend: B recordings, S samples, F frames, M Mel bands (height of an image), P pitch classes, K channels, Q frequencies.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Literal

import msgspec
import numpy as np
import torch
from librosa.effects import trim
from librosa.filters import chroma, mel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from emostream.model.audio import SAMPLE_RATE_HZ

HOP_SAMPLES = 160
CHROMA_HOP_SAMPLES = 3 * HOP_SAMPLES
FRAME_STEP = 32
"""MobileNet halves an image five times: images are padded with silence to a multiple of this many frames."""

LEAST_FRAMES = 96
"""Shortest image, 0.96 s: what the AudioSet weights were trained on."""

MOST_FRAMES = 384
"""Longest image, 3.84 s. Longer recordings are cut into windows, whose pooled vectors are averaged."""

OVERLAP_FRAMES = 96
"""Frames that two neighbouring windows share."""

Variant = Literal["mel", "chroma", "both"]
VARIANTS: dict[Variant, tuple[str, ...]] = {"mel": ("mel",), "chroma": ("chroma",), "both": ("mel", "chroma")}
"""The paper's three variants, as the channels of the image."""

_MEL_BANDS = 64
_MEL_FFT, _MEL_WINDOW = 512, 400
_MEL_LOW_HZ, _MEL_HIGH_HZ = 125.0, 7500.0
_MEL_PARTS = 4
"""Most factors of a product with all bands are zero: with a quarter of them at a time it is a third of the work."""

_LOG_OFFSET = 0.001
_PITCH_CLASSES = 12
_CHROMA_FFT = 2048
_CHROMA_COLUMNS = 16
"""Pitch classes and four columns of nothing: products of whole vector registers take two thirds of the time."""

_CHROMA_FRAMES = CHROMA_HOP_SAMPLES // HOP_SAMPLES
"""Frames of the Mel image over each frame of the chromagram."""

_EDGE_SAMPLES = _CHROMA_FFT // 2
"""Silence before and behind a waveform, into which the longest windows of its first and last frames reach."""

_CPU_SAMPLES = 160_000
"""Most samples that a core transforms at once: their spectra stay in its cache. Up to twice as many, and the scorer
asks for no more (`pooling.MOST_SAMPLES`), cores take each step together; above, each takes recordings of its own."""

_SPEECH_RMS = 0.05
"""Level that recordings are brought to (-26 dBFS): how loud somebody was recorded says nothing of how they feel."""

_QUIET_DB = 40.0
"""Beginnings and ends this far below the loudest frame are cut away."""


class SpeechImages(nn.Module):
    """Waveforms of one length -> images, on the device that the module is on.

    Args:
        variant: Which channels.
    """

    _chroma_QP: Tensor
    _mel_window: Tensor
    _chroma_window: Tensor
    _stretch_PM: Tensor

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.channels = VARIANTS[variant]
        mel_MQ = mel(
            sr=SAMPLE_RATE_HZ, n_fft=_MEL_FFT, n_mels=_MEL_BANDS, fmin=_MEL_LOW_HZ, fmax=_MEL_HIGH_HZ,
            htk=True, norm=None,
        )  # fmt: skip
        chroma_PQ = chroma(sr=SAMPLE_RATE_HZ, n_fft=_CHROMA_FFT, tuning=0.0, n_chroma=_PITCH_CLASSES)
        around = (_MEL_FFT - _MEL_WINDOW) // 2
        self._mel_bins = []
        for part, part_MQ in enumerate(np.split(mel_MQ, _MEL_PARTS)):
            bins = _bins_of(part_MQ)
            self._mel_bins.append(bins)
            self._constant(f"_mel_QM_{part}", torch.from_numpy(part_MQ[:, bins]).T)
        nothing = (0, _CHROMA_COLUMNS - _PITCH_CLASSES)
        self._constant("_chroma_QP", functional.pad(torch.from_numpy(chroma_PQ).T, nothing))
        self._constant("_mel_window", functional.pad(torch.hann_window(_MEL_WINDOW), (around, around)))
        self._constant("_chroma_window", torch.hann_window(_CHROMA_FFT))
        pitch_class_M = torch.arange(_MEL_BANDS) * _PITCH_CLASSES // _MEL_BANDS
        self._constant("_stretch_PM", torch.eye(_CHROMA_COLUMNS)[:, pitch_class_M])

    def _constant(self, name: str, values: Tensor) -> None:
        """Keep values on the module's device, but out of the checkpoint: they are computed, not learned."""
        self.register_buffer(name, values.contiguous(), persistent=False)

    def mel(self, wave_BS: Tensor) -> Tensor:
        """Return the Mel spectrogram mel_BFM of magnitudes: 64 HTK bands, windows of 25 ms every 10 ms."""
        return self._mel(_padded(wave_BS))

    def chroma(self, wave_BS: Tensor) -> Tensor:
        """Return the chromagram chroma_BFP: energy per pitch class, each frame's largest 1, 128 ms every 30 ms."""
        return self._chroma(_padded(wave_BS))[:, :, :_PITCH_CLASSES]

    def _mel(self, padded_BS: Tensor) -> Tensor:
        magnitude_BFQ = _power(padded_BS, hop=HOP_SAMPLES, window=self._mel_window).sqrt_()
        parts = [
            magnitude_BFQ[:, :, bins] @ self.get_buffer(f"_mel_QM_{part}") for part, bins in enumerate(self._mel_bins)
        ]
        return torch.cat(parts, dim=2)

    def _chroma(self, padded_BS: Tensor) -> Tensor:
        """Return the chromagram with columns of nothing behind those of pitch classes."""
        chroma_BFP = _power(padded_BS, hop=CHROMA_HOP_SAMPLES, window=self._chroma_window) @ self._chroma_QP
        peak_BF1 = chroma_BFP.amax(2, keepdim=True)
        return chroma_BFP.div_(peak_BF1.masked_fill_(peak_BF1 < torch.finfo(torch.float32).tiny, 1.0))

    def forward(self, wave_BS: Tensor) -> Tensor:
        """Return images_BKFM for waveforms of one length, S a multiple of the hop; F = S / hop."""
        frames = wave_BS.shape[1] // HOP_SAMPLES
        images_BKFM = wave_BS.new_empty(len(wave_BS), len(self.channels), frames, _MEL_BANDS)
        if wave_BS.device.type != "cpu" or wave_BS.numel() <= 2 * _CPU_SAMPLES:
            self._draw(wave_BS, images_BKFM)
            return images_BKFM
        cores = torch.get_num_threads()
        inference = torch.is_inference_mode_enabled()  # every thread has a mode of its own
        rounds = math.ceil(wave_BS.numel() / (cores * _CPU_SAMPLES))
        parts = min(cores * rounds, len(wave_BS))
        # Threads take from one iterator: a zip of tuples is safe under Python's global lock.
        waiting = zip(wave_BS.tensor_split(parts), images_BKFM.tensor_split(parts), strict=True)

        def draw(waiting: Iterator[tuple[Tensor, Tensor]]) -> None:
            with torch.inference_mode(inference):
                for few in waiting:
                    self._draw(*few)

        list(_a_core_each(cores).map(draw, [waiting] * cores))
        return images_BKFM

    def _draw(self, wave_BS: Tensor, images_BKFM: Tensor) -> None:
        """Fill in images."""
        frames = images_BKFM.shape[2]
        padded_BS = _padded(wave_BS)
        for channel, name in enumerate(self.channels):
            if name == "mel":
                mel_BFM = self._mel(padded_BS)[:, :frames]
                torch.log(mel_BFM.add_(_LOG_OFFSET), out=images_BKFM[:, channel])
            else:
                chroma_BFM = self._chroma(padded_BS) @ self._stretch_PM
                for first in range(_CHROMA_FRAMES):
                    part_BFM = images_BKFM[:, channel, first::_CHROMA_FRAMES]
                    part_BFM.copy_(chroma_BFM[:, : part_BFM.shape[1]])


@cache
def _a_core_each(threads: int) -> ThreadPoolExecutor:
    """Return threads of one core each: shared among recordings, cores need not wait for each other at every step."""
    begun = Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # torch takes the number of all threads once, at a thread's first question, so ask now
        torch.set_num_threads(1)
        begun.wait()

    pool = ThreadPoolExecutor(threads, "images", initializer=begin)
    for _ in range(threads):
        pool.submit(int)
    begun.wait()
    torch.set_num_threads(threads)  # of threads that torch meets from now on
    return pool


def _bins_of(bands_MQ: NDArray[np.float32]) -> slice:
    """Return the frequencies that some Mel bands weigh, those of no weight before and behind them left out."""
    (bins,) = np.nonzero(bands_MQ.any(axis=0))
    return slice(int(bins[0]), int(bins[-1]) + 1)


def _padded(wave_BS: Tensor) -> Tensor:
    """Return waveforms with silence before and behind, for windows of all lengths."""
    return functional.pad(wave_BS, (_EDGE_SAMPLES, _EDGE_SAMPLES))


def _power(padded_BS: Tensor, *, hop: int, window: Tensor) -> Tensor:
    """Return power_BFQ: squared magnitudes of the short-time Fourier transform, frames centred as librosa's are.

    By hand, since `torch.stft` lays frequencies before frames, and all that follows wants it the other way.
    """
    fft = len(window)
    more = _EDGE_SAMPLES - fft // 2
    reached_BS = padded_BS[:, more : padded_BS.shape[1] - more]
    spectrum_BFQ: Tensor = torch.fft.rfft(reached_BS.unfold(1, fft, hop) * window)
    squares_BFQ2 = torch.view_as_real(spectrum_BFQ).square_()
    return squares_BFQ2[..., 0] + squares_BFQ2[..., 1]  # a tenth of the time that abs() takes, a seventh of sum()


class ClipWindows(msgspec.Struct, frozen=True):
    """One recording as the network reads it: waveforms of a whole number of frames, at one level."""

    rows: tuple[NDArray[np.float32], ...]


def cut_windows(waveform_S: NDArray[np.float32]) -> ClipWindows:
    """Trim a recording's silent ends, bring it to one level and cut it into overlapping windows.

    Args:
        waveform_S: Mono, 16 kHz, not silent.
    """
    speech_S = level(waveform_S)
    frames = math.ceil(len(speech_S) / HOP_SAMPLES)
    step = MOST_FRAMES - OVERLAP_FRAMES
    starts = range(0, max(frames - OVERLAP_FRAMES, 1), step)
    return ClipWindows(rows=tuple(_window(speech_S, start) for start in starts))


def level(waveform_S: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the recording without its silent ends, at the level that all recordings are brought to."""
    speech_S, _ = trim(waveform_S, top_db=_QUIET_DB, frame_length=1024, hop_length=256)
    rms = float(np.sqrt(np.mean(np.square(speech_S, dtype=np.float64))))
    return np.asarray(speech_S * (_SPEECH_RMS / max(rms, 1e-9)), dtype=np.float32)


def _window(speech_S: NDArray[np.float32], start_frame: int) -> NDArray[np.float32]:
    """Return one window, filled up with silence to a whole number of steps."""
    piece = speech_S[start_frame * HOP_SAMPLES : (start_frame + MOST_FRAMES) * HOP_SAMPLES]
    frames = max(LEAST_FRAMES, math.ceil(len(piece) / HOP_SAMPLES / FRAME_STEP) * FRAME_STEP)
    return np.pad(piece, (0, frames * HOP_SAMPLES - len(piece)))


def stack_windows(rows: Sequence[NDArray[np.float32]]) -> Tensor:
    """Return wave_BS of windows of one length."""
    return torch.from_numpy(np.stack(rows))
