"""A checkpoint and a data set -> figures. Called by training after each epoch and by `emostream evaluate`.

Accuracy is what the paper calls "UA".
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from torch import Tensor

from emostream.model.datasets import TextDataset
from emostream.model.samples import LABELS

ECE_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017 (arXiv:1706.04599)."""

MULTI_LABEL_THRESHOLD = 0.3
"""Score from which GoEmotions' authors count a label as given (arXiv:2005.00547, section 5.3)."""


class ClassFigures(msgspec.Struct, frozen=True):
    """Figures of one class, as fractions; `support` counts its examples."""

    precision: float
    recall: float
    f1: float
    support: int


class Official(msgspec.Struct, frozen=True):
    """The metric that a data set's authors report."""

    name: str
    value: float


class Evaluation(msgspec.Struct, frozen=True):
    """How well a checkpoint does on one split; every figure a fraction.

    Attributes:
        task: Name of the data set.
        split: Which split.
        n: Examples that the figures rest on: those with exactly one label.
        n_ambiguous: Examples whose raters named several labels; they count in `official` only.
        accuracy: Share of right answers.
        macro_f1: Mean F1 over the classes.
        uar: Unweighted average recall.
        ece: Expected calibration error of the highest score, 15 bins.
        official: The metric of the data set's authors.
        per_class: Figures by label.
        confusion: Rows are true labels, columns answers, both in the order of `labels`.
        labels: The classes.
    """

    task: str
    split: str
    n: int
    n_ambiguous: int
    accuracy: float
    macro_f1: float
    uar: float
    ece: float
    official: Official
    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]
    labels: tuple[str, ...] = LABELS


def evaluate_scores(dataset: TextDataset, scores_NC: NDArray[np.float32]) -> Evaluation:
    """Judge scores against a data set's labels.

    Args:
        dataset: The split, N examples.
        scores_NC: Probabilities over `LABELS`, one row per example, in order.
    """
    single = np.array([len(example.labels) == 1 for example in dataset.examples])
    truth_N = np.array([example.labels[0] for example in dataset.examples])[single]
    kept_NC = scores_NC[single]
    answer_N = kept_NC.argmax(1)
    classes = list(range(len(LABELS)))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth_N, answer_N, labels=classes, zero_division=0.0
    )
    present = support > 0
    return Evaluation(
        task=dataset.name,
        split=dataset.split,
        n=len(truth_N),
        n_ambiguous=int((~single).sum()),
        accuracy=float((truth_N == answer_N).mean()),
        macro_f1=float(f1[present].mean()),
        uar=float(recall[present].mean()),
        ece=expected_calibration_error(kept_NC.max(1), truth_N == answer_N),
        official=_official(dataset, scores_NC, macro_f1=float(f1[present].mean())),
        per_class={
            label: ClassFigures(float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, label in enumerate(LABELS)
        },
        confusion=confusion_matrix(truth_N, answer_N, labels=classes).tolist(),
    )


def expected_calibration_error(confidence_N: NDArray[np.float32], right_N: NDArray[np.bool_]) -> float:
    """Return the mean gap between confidence and accuracy over equal-width bins, weighted by their counts."""
    bins_N = np.minimum((confidence_N * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [
        abs(float(confidence_N[bins_N == b].mean()) - float(right_N[bins_N == b].mean())) * (bins_N == b).sum()
        for b in np.unique(bins_N)
    ]
    return float(sum(gaps) / len(confidence_N))


def fit_temperature(logits_NC: Tensor, dataset: TextDataset) -> float:
    """Return the temperature that makes the likelihood of a development split's labels highest.

    Args:
        logits_NC: Raw logits, one row per example of `dataset`.
        dataset: A development split; examples with several labels are left out.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    single = torch.tensor([len(example.labels) == 1 for example in dataset.examples])
    truth_N = torch.tensor([example.labels[0] for example in dataset.examples])[single]
    kept_NC = logits_NC[single].float()
    log_temperature = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(kept_NC / log_temperature.exp(), truth_N)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach().exp())


def _official(dataset: TextDataset, scores_NC: NDArray[np.float32], *, macro_f1: float) -> Official:
    if dataset.name != "goemotions":
        return Official("macro-F1", macro_f1)
    truth_NC = _indicator(dataset)
    given_NC = scores_NC >= MULTI_LABEL_THRESHOLD
    value = f1_score(truth_NC, given_NC, average="macro", zero_division=0.0)
    return Official(f"multi-label macro-F1 at threshold {MULTI_LABEL_THRESHOLD}", float(value))


def _indicator(dataset: TextDataset) -> NDArray[np.bool_]:
    truth_NC = np.zeros((len(dataset.examples), len(LABELS)), dtype=np.bool_)
    for row, example in enumerate(dataset.examples):
        truth_NC[row, list(example.labels)] = True
    return truth_NC


def mean_macro_f1(evaluations: Sequence[Evaluation]) -> float:
    """Return the mean over several splits, each counting alike: what the best epoch is chosen by."""
    return sum(evaluation.macro_f1 for evaluation in evaluations) / len(evaluations)
