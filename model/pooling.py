"""Many inputs of different lengths -> one pooled vector each, in batches that fit the device.

Used by the scorer, by training to judge an epoch, and by the fusion stage, so that all three read alike.

Legend: N items, W windows, S samples, D width of a pooled text, V of a pooled recording.
"""

import time
from collections.abc import Generator, Mapping, Sequence

import msgspec
import torch
from torch import Tensor

from emostream.model.batching import cut_by_cost, pad_rows
from emostream.model.device import autocast
from emostream.model.features import HOP_SAMPLES, MOST_FRAMES, ClipWindows, stack_windows
from emostream.model.network import TextBranch, VoiceBranch
from emostream.model.steps import exhaust
from emostream.model.tokenise import Windows

MOST_PADDED_TOKENS = {"cpu": 1024, "cuda": 65_536}
"""Padded tokens of one forward pass. On two CPU cores, posts of 35 tokens on average, batches of 256: 512 to 1024
tokens score within 5 % of each other, 2048 some 15 % slower, 4096 some 30 % (a third is padding then, and activations
leave the cache). A GPU wants tens of thousands to be busy at all; that figure is not measured yet."""


MOST_SAMPLES = {"cpu": 4 * MOST_FRAMES * HOP_SAMPLES, "cuda": 512 * MOST_FRAMES * HOP_SAMPLES}
"""Samples of one forward pass of the voice branch. On a CPU four of the longest windows, 13 ms on two cores in
bfloat16: texts that come meanwhile wait for no more than these. Two at once take a quarter longer a window, eight a
twentieth less."""


class Compute(msgspec.Struct, frozen=True):
    """Where and in which precision the branches run, and how much at once.

    Attributes:
        device: Where.
        precision: The type of matrix products.
        share: Of the usual size of a forward pass: less than 1 where the device ran out of memory.
    """

    device: torch.device
    precision: torch.dtype
    share: float = 1.0

    def most(self, usual: Mapping[str, int]) -> int:
        """Return the most that one forward pass takes, of a bound that each kind of device has; at least 1."""
        return max(1, int(usual[self.device.type] * self.share))


@torch.no_grad()
def pool_texts(branch: TextBranch, texts: Sequence[Windows], *, pad_id: int, compute: Compute) -> tuple[Tensor, int]:
    """Run the text branch.

    Returns:
        pooled_ND, float32, on the CPU: the mean over each text's windows; and the tokens computed, padding included.
    """
    rows = [row for text in texts for row in text.rows]
    owners_W = torch.tensor([n for n, text in enumerate(texts) for _ in text.rows], dtype=torch.int64)
    pooled_WD = torch.empty(len(rows), branch.width)
    padded_tokens = 0
    for group in cut_by_cost([len(row) for row in rows], most_tokens=compute.most(MOST_PADDED_TOKENS)):
        ids_WT = pad_rows([rows[index] for index in group], pad_id=pad_id)
        padded_tokens += ids_WT.numel()
        with autocast(compute.device, compute.precision):
            pooled_WD[group] = branch(ids_WT.to(compute.device)).float().cpu()
    return mean_over_windows(pooled_WD, owners_W, len(texts)), padded_tokens


def pool_clips(branch: VoiceBranch, clips: Sequence[ClipWindows], *, compute: Compute) -> Tensor:
    """Run the voice branch.

    Returns:
        pooled_NV, float32, on the CPU: the mean over each recording's windows. A recording's windows are padded by
        themselves, never to the length of a neighbour: its vector does not depend on its batch.
    """
    return exhaust(pool_clips_in_steps(branch, clips, compute=compute))[0]


@torch.no_grad()
def pool_clips_in_steps(
    branch: VoiceBranch, clips: Sequence[ClipWindows], *, compute: Compute
) -> Generator[None, None, tuple[Tensor, float]]:
    """Run the voice branch as `pool_clips` does, pausing after each forward pass.

    Returns:
        What `pool_clips` returns, and the seconds spent on it, pauses not counted.
    """
    rows = [row for clip in clips for row in clip.rows]
    owners_W = torch.tensor([n for n, clip in enumerate(clips) for _ in clip.rows], dtype=torch.int64)
    pooled_WV = torch.empty(len(rows), branch.width)
    most_samples = compute.most(MOST_SAMPLES)
    seconds = 0.0
    for length in sorted({len(row) for row in rows}):
        same = [index for index, row in enumerate(rows) if len(row) == length]
        size = max(1, most_samples // length)
        for group in (same[start : start + size] for start in range(0, len(same), size)):
            started = time.perf_counter()
            wave_WS = stack_windows([rows[index] for index in group]).to(compute.device)
            with autocast(compute.device, compute.precision):
                pooled_WV[group] = branch(wave_WS).float().cpu()
            seconds += time.perf_counter() - started
            yield
    return mean_over_windows(pooled_WV, owners_W, len(clips)), seconds


def mean_over_windows(pooled_WD: Tensor, owners_W: Tensor, items: int) -> Tensor:
    """Return pooled_ND: the mean of each item's windows."""
    sums_ND = torch.zeros(items, pooled_WD.shape[1]).index_add_(0, owners_W, pooled_WD)
    counts_N = torch.bincount(owners_W, minlength=items)
    return sums_ND / counts_N.unsqueeze(1)
