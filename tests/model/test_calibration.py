"""Calibration, on cases small enough to work out by hand, and beside chance."""

import numpy as np
import pytest

from emostream.model.calibration import (
    BINS,
    CalibrationBin,
    calibration_bins,
    calibration_error,
    calibration_error_by_chance,
    merge_bins,
)


def bins(confidence: list[float], right: list[bool]) -> tuple[CalibrationBin, ...]:
    return calibration_bins(np.array(confidence, dtype=np.float32), np.array(right))


def test_bins_by_hand() -> None:
    low, high = bins([0.5, 0.9, 0.5, 0.91], [True, True, False, False])
    assert (low.low, low.n, low.accuracy) == (7 / BINS, 2, 0.5)
    assert (high.low, high.n, high.accuracy) == (13 / BINS, 2, 0.5)
    assert (low.confidence, high.confidence) == pytest.approx((0.5, 0.905))
    assert calibration_error((low, high)) == pytest.approx((2 * 0.0 + 2 * 0.405) / 4)


def test_full_confidence_falls_into_the_last_bin() -> None:
    (last,) = bins([1.0, 0.95], [True, True])
    assert last.low == pytest.approx(1 - 1 / BINS)
    assert calibration_error((last,)) == pytest.approx(0.025)


def test_no_answers_have_no_error() -> None:
    assert calibration_error(()) == calibration_error_by_chance(()) == 0


def test_sets_together_have_the_bins_of_all_their_answers() -> None:
    chance = np.random.default_rng(1)
    confidence = chance.uniform(0.3, 1.0, 500).tolist()
    right = (chance.random(500) < 0.7).tolist()
    together, at_once = (
        merge_bins([bins(confidence[:90], right[:90]), bins(confidence[90:], right[90:])]),
        bins(confidence, right),
    )
    assert [(each.low, each.n) for each in together] == [(each.low, each.n) for each in at_once]
    assert calibration_error(together) == pytest.approx(calibration_error(at_once))


def test_too_sure_in_one_set_and_too_little_in_another_is_right_on_the_whole() -> None:
    sure, unsure = bins([0.5] * 4, [False] * 4), bins([0.5] * 4, [True] * 4)
    assert calibration_error(sure) == calibration_error(unsure) == 0.5
    assert calibration_error(merge_bins([sure, unsure])) == 0


def test_chance_alone_makes_a_calibration_error() -> None:
    chance = np.random.default_rng(1)
    confidence_N = chance.uniform(0.3, 1.0, 20_000).astype(np.float32)
    right_N = chance.random(20_000) < confidence_N
    few, many = (calibration_bins(confidence_N[:n], right_N[:n]) for n in (200, 20_000))
    for some in (few, many):
        assert calibration_error(some) == pytest.approx(calibration_error_by_chance(some), rel=0.5)
    assert calibration_error_by_chance(few) > 5 * calibration_error_by_chance(many)
    assert calibration_error_by_chance(bins([1.0] * 50, [True] * 50)) == 0
