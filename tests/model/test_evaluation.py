"""Figures, on cases small enough to work out by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from emostream.model.datasets import Dataset, Example
from emostream.model.evaluation import (
    Evaluation,
    evaluate_scores,
    first_labels,
    fit_temperature,
    single_label,
)
from emostream.model.samples import EMOTION, LABELS

ANGER, DISGUST, FEAR, JOY = range(4)

STANCE = ("none", "against", "favor")
SENTIMENT = ("negative", "neutral", "positive")
TRUTH = (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
ANSWERS = (0, 0, 0, 1, 1, 1, 2, 0, 2, 2)
"""Of three classes.

    true\\answer  0  1  2   precision  recall   F1
    0            3  1  0   3/4        3/4      3/4
    1            0  2  1   2/3        2/3      2/3
    2            1  0  2   2/3        2/3      2/3
"""


def examples(*labels: tuple[int, ...]) -> tuple[Example, ...]:
    return tuple(Example(text="x", labels=given) for given in labels)


def dataset(*labels: tuple[int, ...], name: str = "meld", classes: tuple[str, ...] = LABELS) -> Dataset:
    return Dataset(name=name, split="dev", classes={EMOTION: classes}, examples=examples(*labels))


def scores(*answers: int, classes: int = len(LABELS)) -> np.ndarray:
    rows = np.full((len(answers), classes), 0.3 / (classes - 1), dtype=np.float32)
    rows[range(len(answers)), answers] = 0.7
    return rows


def judged(name: str, classes: tuple[str, ...], truth: tuple[int, ...], answers: tuple[int, ...]) -> Evaluation:
    data = dataset(*((label,) for label in truth), name=name, classes=classes)
    return evaluate_scores(data, scores(*answers, classes=len(classes)))


def test_figures_by_hand() -> None:
    result = evaluate_scores(dataset((JOY,), (JOY,), (JOY,), (FEAR,)), scores(JOY, JOY, FEAR, FEAR))
    assert result.accuracy == 0.75
    assert result.per_class["joy"].precision == 1
    assert result.per_class["joy"].recall == pytest.approx(2 / 3)
    assert result.per_class["joy"].support == 3
    assert result.per_class["fear"].precision == 0.5
    assert result.per_class["anger"].support == 0
    assert result.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert result.uar == pytest.approx((2 / 3 + 1) / 2)
    assert result.wa == pytest.approx(2 / 3 * 3 / 4 + 1 * 1 / 4)
    assert result.confusion[JOY] == [0, 0, 1, 2, 0, 0, 0]
    assert result.ece == pytest.approx(0.05, abs=1e-6)
    assert [each.n for each in result.calibration] == [4]


def test_a_class_that_is_answered_and_never_right_counts_in_macro_f1() -> None:
    result = evaluate_scores(dataset((JOY,), (JOY,)), scores(JOY, FEAR))
    assert result.macro_f1 == pytest.approx(f1_score([JOY, JOY], [JOY, FEAR], average="macro", zero_division=0))
    assert result.uar == 0.5


def test_weighted_accuracy_equals_accuracy_where_unweighted_recall_does_not() -> None:
    result = judged("meld", SENTIMENT, (0,) * 8 + (1, 2), (0,) * 8 + (0, 2))
    assert result.wa == pytest.approx(1 * 8 / 10 + 0 * 1 / 10 + 1 * 1 / 10)
    assert result.wa == pytest.approx(result.accuracy)
    assert result.uar == pytest.approx((1 + 0 + 1) / 3)


def test_classes_and_modalities_are_the_ones_given() -> None:
    data = dataset((0,), (1,), name="tweeteval/irony", classes=("non_irony", "irony"))
    result = evaluate_scores(data, scores(0, 1, classes=2), modalities=("text", "voice"))
    assert (result.task, result.split, result.n) == ("tweeteval/irony", "dev", 2)
    assert result.labels == tuple(result.per_class) == ("non_irony", "irony")
    assert result.modalities == ("text", "voice")
    assert evaluate_scores(data, scores(0, 1, classes=2)).modalities == ("text",)


def test_heads_with_the_same_classes_are_judged_together() -> None:
    data = Dataset(
        name="tweeteval/stance",
        split="dev",
        classes={"stance/climate": STANCE, "stance/abortion": STANCE},
        examples=(
            Example(text="x", labels=(1,), head="stance/climate"),
            Example(text="x", labels=(2,), head="stance/abortion"),
        ),
    )
    result = evaluate_scores(data, scores(1, 1, classes=3))
    assert (result.n, result.accuracy, result.labels) == (2, 0.5, STANCE)


def test_irony_is_judged_by_the_ironic_class() -> None:
    # Ironic: 2 of 4 found, 1 more said to be: precision 2/3, recall 1/2. Not ironic: precision 3/5, recall 3/4.
    result = judged("tweeteval/irony", ("non_irony", "irony"), (0, 0, 0, 0, 1, 1, 1, 1), (0, 0, 0, 1, 1, 1, 0, 0))
    assert result.official.name == "F1 of irony"
    assert result.official.value == pytest.approx(4 / 7)
    assert result.macro_f1 == pytest.approx((4 / 7 + 2 / 3) / 2)


def test_stance_is_judged_by_against_and_favor() -> None:
    result = judged("tweeteval/stance", STANCE, TRUTH, ANSWERS)
    assert result.official.name == "mean F1 of against and favor"
    assert result.official.value == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert result.official.value < result.macro_f1


def test_sentiment_is_judged_by_recall() -> None:
    # All neutral: recalls 0, 1 and 0, while the mean F1 is (0 + 2 * 0.3 / 1.3 + 0) / 3.
    result = judged("tweeteval/sentiment", SENTIMENT, TRUTH, (1,) * len(TRUTH))
    assert result.official.name == "macro-recall"
    assert result.official.value == pytest.approx(1 / 3)
    assert result.macro_f1 == pytest.approx(0.6 / 1.3 / 3)


def test_meld_is_judged_by_weighted_f1() -> None:
    official = judged("meld", ("a", "b", "c"), TRUTH, ANSWERS).official
    assert official.name == "weighted F1"
    support = [TRUTH.count(number) for number in range(3)]
    assert official.value == pytest.approx(np.dot([3 / 4, 2 / 3, 2 / 3], support) / sum(support))


@pytest.mark.parametrize("name", ["tweeteval/emotion", "tweeteval/emoji", "tweeteval/hate", "pairs"])
def test_the_others_are_judged_by_macro_f1(name: str) -> None:
    official = judged(name, ("a", "b", "c"), TRUTH, ANSWERS).official
    assert official.name == "macro-F1"
    assert official.value == pytest.approx((3 / 4 + 2 / 3 + 2 / 3) / 3)


def test_ambiguous_examples_count_only_in_the_official_figure() -> None:
    both = np.full((1, len(LABELS)), 0.02, dtype=np.float32)
    both[0, [JOY, FEAR]] = 0.45
    data = dataset((JOY,), (FEAR, JOY), name="goemotions")
    result = evaluate_scores(data, np.concatenate([scores(JOY), both]))
    assert (result.n, result.n_ambiguous, result.accuracy) == (1, 1, 1.0)
    assert result.official.value == pytest.approx(2 / len(LABELS))


def test_labels_of_examples() -> None:
    given = examples((JOY,), (FEAR, JOY))
    assert single_label(given).tolist() == [True, False]
    assert first_labels(given).tolist() == [JOY, FEAR]


def test_temperature_undoes_overconfidence() -> None:
    torch.manual_seed(0)
    true_logits = torch.randn(4000, len(LABELS)) * 2
    drawn = torch.distributions.Categorical(logits=true_logits).sample().tolist()
    given = examples(*((label,) for label in drawn))
    assert fit_temperature((true_logits * 3, given)) == pytest.approx(3, rel=0.05)


def test_temperature_leaves_ambiguous_examples_out() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 9.0]])
    # Of the first three, one is wrong: best where the softmax says 2/3, at a difference of ln 2.
    given = examples((0,), (0,), (1,), (0, 1))
    assert fit_temperature((logits, given)) == pytest.approx(2 / np.log(2), rel=1e-3)


def test_a_large_set_has_no_more_say_in_the_temperature_than_a_small_one() -> None:
    sure = (torch.tensor([[2.0, 0.0]] * 4), examples((0,), (0,), (0,), (1,)))
    unsure = (torch.tensor([[2.0, 0.0]] * 2), examples((0,), (1,)))
    many = (sure[0].repeat(50, 1), sure[1] * 50)
    assert fit_temperature(many, unsure) == pytest.approx(fit_temperature(sure, unsure), rel=1e-3)
    assert fit_temperature(sure) < fit_temperature(sure, unsure)
