"""Figures, on cases small enough to work out by hand."""

import numpy as np
import pytest
import torch

from emostream.model.datasets import Example, TextDataset
from emostream.model.evaluation import evaluate_scores, expected_calibration_error, fit_temperature
from emostream.model.samples import LABELS

ANGER, DISGUST, FEAR, JOY = range(4)


def dataset(*labels: tuple[int, ...], name: str = "meld") -> TextDataset:
    return TextDataset(name, "dev", tuple(Example("x", given) for given in labels))


def scores(*answers: int) -> np.ndarray:
    rows = np.full((len(answers), len(LABELS)), 0.05, dtype=np.float32)
    rows[range(len(answers)), answers] = 0.7
    return rows


def test_figures_by_hand() -> None:
    result = evaluate_scores(dataset((JOY,), (JOY,), (JOY,), (FEAR,)), scores(JOY, JOY, FEAR, FEAR))
    assert result.accuracy == 0.75
    assert result.per_class["joy"].precision == 1
    assert result.per_class["joy"].recall == pytest.approx(2 / 3)
    assert result.per_class["fear"].precision == 0.5
    assert result.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert result.uar == pytest.approx((2 / 3 + 1) / 2)
    assert result.confusion[JOY] == [0, 0, 1, 2, 0, 0, 0]
    assert result.ece == pytest.approx(0.05, abs=1e-6)


def test_ambiguous_examples_count_only_in_the_official_figure() -> None:
    both = np.full((1, len(LABELS)), 0.02, dtype=np.float32)
    both[0, [JOY, FEAR]] = 0.45
    data = dataset((JOY,), (FEAR, JOY), name="goemotions")
    result = evaluate_scores(data, np.concatenate([scores(JOY), both]))
    assert (result.n, result.n_ambiguous, result.accuracy) == (1, 1, 1.0)
    assert result.official.value == pytest.approx(2 / len(LABELS))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.9, 0.9, 0.5, 0.5], dtype=np.float32)
    right = np.array([True, False, True, False])
    assert expected_calibration_error(confidence, right) == pytest.approx(0.2, abs=1e-6)


def test_temperature_undoes_overconfidence() -> None:
    torch.manual_seed(0)
    true_logits = torch.randn(4000, len(LABELS)) * 2
    drawn = torch.distributions.Categorical(logits=true_logits).sample().tolist()
    data = dataset(*((label,) for label in drawn))
    assert fit_temperature(true_logits * 3, data) == pytest.approx(3, rel=0.05)
