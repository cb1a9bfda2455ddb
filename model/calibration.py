"""How sure answers are beside how often they are right. Called by `evaluation`, and by `report` for data sets together.

The expected calibration error (Guo et al. 2017, arXiv:1706.04599): answers are put into bins by their confidence, the
highest score; the mean gap between confidence and accuracy of the bins, weighted by their counts.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Bins of equal width from 0 to 1, as in Guo et al."""


class CalibrationBin(msgspec.Struct, frozen=True):
    """Answers of about one confidence.

    Attributes:
        low: Where the bin begins; it ends where the next would begin.
        n: How many answers.
        confidence: Their mean confidence.
        accuracy: Share of them that is right.
    """

    low: float
    n: int
    confidence: float
    accuracy: float


def calibration_bins(confidence_N: NDArray[np.float32], right_N: NDArray[np.bool_]) -> tuple[CalibrationBin, ...]:
    """Return the bins that answers fall into, those without any left out."""
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    return tuple(
        CalibrationBin(
            low=int(number) / BINS,
            n=int(inside_N.sum()),
            confidence=float(confidence_N[inside_N].mean(dtype=np.float64)),
            accuracy=float(right_N[inside_N].mean()),
        )
        for number in np.unique(bin_N)
        for inside_N in [bin_N == number]
    )


def merge_bins(sets: Iterable[Sequence[CalibrationBin]]) -> tuple[CalibrationBin, ...]:
    """Return the bins of several sets of answers together."""
    by_low: dict[float, list[CalibrationBin]] = defaultdict(list)
    for bins in sets:
        for each in bins:
            by_low[each.low].append(each)
    return tuple(_merge(by_low[low]) for low in sorted(by_low))


def _merge(bins: Sequence[CalibrationBin]) -> CalibrationBin:
    n = sum(each.n for each in bins)
    return CalibrationBin(
        low=bins[0].low,
        n=n,
        confidence=sum(each.n * each.confidence for each in bins) / n,
        accuracy=sum(each.n * each.accuracy for each in bins) / n,
    )


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Return the expected calibration error; 0 of no answers."""
    total = sum(each.n for each in bins)
    return sum(each.n * abs(each.confidence - each.accuracy) for each in bins) / max(total, 1)


def calibration_error_by_chance(bins: Sequence[CalibrationBin], *, draws: int = 1000) -> float:
    """Return the mean calibration error of answers that are right exactly as often as their confidence says.

    Of bins with few answers it is not 0: they are never right exactly as often.
    """
    n_K = np.array([each.n for each in bins], dtype=np.int64)
    confidence_K = np.minimum(np.array([each.confidence for each in bins], dtype=np.float64), 1.0)
    right_DK = np.random.default_rng(0).binomial(n_K, confidence_K, size=(draws, len(bins)))
    return float(np.abs(right_DK - n_K * confidence_K).sum(1).mean() / max(n_K.sum(), 1))
