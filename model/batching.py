"""Rows of different lengths -> padded batches of bounded cost. Used by the scorer and by training."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_WIDTH_STEP = 4
"""Rows are padded to a multiple of this. The kernels for a matrix shape are prepared once per shape: fewer
shapes, fewer preparations; 1 would prepare for every length, 64 would compute mostly padding on tweets. Against 8,
posts are scored as fast, and training, whose batches hold rows of nearly one length, computes a tenth less."""


def cut_by_cost(lengths: Sequence[int], *, most_tokens: int) -> Iterator[list[int]]:
    """Yield groups of indices, shortest rows first, each of at most `most_tokens` after padding.

    A row longer than `most_tokens` makes a group of its own. Every index comes exactly once.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and padded_width(lengths[index]) * (len(group) + 1) > most_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def padded_width(length: int) -> int:
    """Return the width that a row of this length is padded to."""
    return -(-length // _WIDTH_STEP) * _WIDTH_STEP


def pad_rows(rows: Sequence[Sequence[int]], *, pad_id: int) -> Tensor:
    """Return ids_BT, int64, on the CPU: the rows, filled up with `pad_id`."""
    width = padded_width(max(len(row) for row in rows))
    return torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], dtype=torch.int64)
