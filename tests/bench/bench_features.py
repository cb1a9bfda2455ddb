"""Images of speech: ours, batched in torch, beside librosa called clip by clip, on the same cores in one run.

Both draw the same images, a logarithm of a Mel spectrogram over a chromagram (compared before anything is timed); ours
all windows of one length at once, and as few as a pass of the scorer takes. Run with `make bench-features`; the
recordings are the project's spoken examples, or those in a folder: `--clips FOLDER`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from emostream.model.audio import SAMPLE_RATE_HZ, decode_recording
from emostream.model.device import keep_freed_memory
from emostream.model.features import (
    CHROMA_HOP_SAMPLES,
    HOP_SAMPLES,
    SpeechImages,
    cut_windows,
    stack_windows,
)
from emostream.model.pooling import MOST_SAMPLES

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "clips"


def windows(folder: Path, count: int) -> list[np.ndarray]:
    """Return `count` windows as the network reads them, those of the folder's recordings in turn."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".ogg", ".flac", ".wav"))[:count]
    rows = [row for file in files for row in cut_windows(decode_recording(file).waveform).rows]
    return [rows[i % len(rows)] for i in range(count)]


def image_of_librosa(row: np.ndarray) -> np.ndarray:
    """Return image_KFM of one window."""
    mel_MF = librosa.feature.melspectrogram(
        y=row, sr=SAMPLE_RATE_HZ, n_fft=512, win_length=400, hop_length=HOP_SAMPLES, n_mels=64, fmin=125, fmax=7500,
        htk=True, norm=None, power=1.0,
    )  # fmt: skip
    chroma_PF = librosa.feature.chroma_stft(
        y=row, sr=SAMPLE_RATE_HZ, tuning=0, n_fft=2048, hop_length=CHROMA_HOP_SAMPLES
    )
    frames = len(row) // HOP_SAMPLES
    bands = len(mel_MF)
    stretched_MF = np.repeat(chroma_PF[np.arange(bands) * len(chroma_PF) // bands], 3, axis=1)
    return np.stack([np.log(mel_MF[:, :frames] + 0.001).T, stretched_MF[:, :frames].T])


def seconds(work: Callable[[], object]) -> float:
    time.sleep(0.1)  # threads of what ran before spin for a while before they sleep (decision 7)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, default=EXAMPLES)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--passes", type=int, default=8, help="passes of ours in a round: both run about equally long")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    rows = windows(arguments.clips, arguments.count)
    lengths = sorted({len(row) for row in rows})
    batches = [stack_windows([row for row in rows if len(row) == length]) for length in lengths]
    passes = [few for wave_BS in batches for few in wave_BS.split(MOST_SAMPLES["cpu"] // wave_BS.shape[1])]
    images = SpeechImages("both")
    keep_freed_memory()

    @torch.inference_mode()
    def ours(batches: list[torch.Tensor]) -> None:
        for _ in range(arguments.passes):
            for wave_BS in batches:
                images(wave_BS)

    def theirs() -> None:
        for row in rows:
            image_of_librosa(row)

    with torch.inference_mode():
        for wave_BS in (*batches, *passes):
            drawn_KFM = images(wave_BS)[-1]
            np.testing.assert_allclose(drawn_KFM, image_of_librosa(wave_BS[-1].numpy()), atol=1e-3)
    ways = (theirs, lambda: ours(batches), lambda: ours(passes))
    rounds = [[seconds(way) for way in ways] for _ in range(arguments.rounds + 1)][1:]
    theirs_s, *ours_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    total_s = sum(len(row) for row in rows) / SAMPLE_RATE_HZ
    table = Table("", "ms a window", "audio seconds a second", "ratio")
    table.add_row("librosa", f"{1000 * theirs_s / len(rows):.2f}", f"{total_s / theirs_s:,.0f}", "1")
    for name, all_s in zip(("emostream", "emostream, in the scorer's passes"), ours_s, strict=True):
        took_s = all_s / arguments.passes
        table.add_row(name, f"{1000 * took_s / len(rows):.2f}", f"{total_s / took_s:,.0f}", f"{theirs_s / took_s:.1f}")
    console = Console()
    console.print(
        f"{len(rows)} windows of {total_s / len(rows):.2f} s on average, {torch.get_num_threads()} threads, "
        f"median of {arguments.rounds} rounds"
    )
    console.print(table)


if __name__ == "__main__":
    main()
