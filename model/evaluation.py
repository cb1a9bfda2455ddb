"""Scores and a data set's labels -> figures. Called by training after each epoch and by `emostream evaluate`.

Accuracy is what the paper calls "UA". Its "WA" has no formula there; here it is what the field calls weighted accuracy,
each class's recall weighted by the class's share, which equals accuracy. The paper's two figures differ, so its WA is
something else: what its table of classes gives for the mean precision comes nearest.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from torch import Tensor
from torch.nn import functional

from emostream.model.calibration import (
    CalibrationBin,
    calibration_bins,
    calibration_error,
    calibration_error_by_chance,
)
from emostream.model.datasets import Dataset, Example
from emostream.model.errors import DatasetError
from emostream.model.samples import ModelInfo

MULTI_LABEL_THRESHOLD = 0.3
"""Score above which GoEmotions' authors count a label as given (arXiv:2005.00547, section 5.3)."""


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
        macro_f1: Mean F1 over the classes that have examples or are answered, as scikit-learn takes it.
        uar: Unweighted average recall, over the classes that have examples.
        wa: Weighted accuracy: recall of each class weighted by its share of the examples.
        ece: Expected calibration error of the highest score, 15 bins.
        ece_by_chance: What it would be on average if the scores were calibrated perfectly: bins of few examples are
            never even. Of 240 examples it is some 0.07, of 5,000 some 0.015.
        official: The metric of the data set's authors.
        per_class: Figures by label.
        confusion: Rows are true labels, columns answers, both in the order of `labels`.
        labels: The classes.
        modalities: What the answers rest on.
        n_unread: Examples left out because their recording cannot be read, or because they have no answer.
        is_fold: Whether the split is one of the folds that the data set was divided into.
        calibration: How often answers of about one confidence are right.
        model: What answered, and on what it ran; None for one that is still in training.
    """

    task: str
    split: str
    n: int
    n_ambiguous: int
    accuracy: float
    macro_f1: float
    uar: float
    wa: float
    ece: float
    official: Official
    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]
    labels: tuple[str, ...]
    modalities: tuple[str, ...] = ("text",)
    n_unread: int = 0
    ece_by_chance: float = 0.0
    is_fold: bool = False
    calibration: tuple[CalibrationBin, ...] = ()
    model: ModelInfo | None = None


def evaluate_scores(
    dataset: Dataset, scores_NC: NDArray[np.float32], *, modalities: tuple[str, ...] = ("text",)
) -> Evaluation:
    """Judge scores against a data set's labels.

    Args:
        dataset: The split, N examples, whose heads share one list of classes.
        scores_NC: Probabilities over those classes, one row per example, in order.
        modalities: What the scores rest on, for the report.

    Raises:
        DatasetError: No example has exactly one label.
    """
    labels = next(iter(dataset.classes.values()))
    single = single_label(dataset.examples)
    if not single.any():
        raise DatasetError(f"{dataset.name}: no example of split {dataset.split!r} has exactly one label")
    truth_N = first_labels(dataset.examples)[single]
    kept_NC = scores_NC[single]
    answer_N = kept_NC.argmax(1)
    classes = list(range(len(labels)))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth_N, answer_N, labels=classes, zero_division=0.0
    )
    present = support > 0
    calibration = calibration_bins(kept_NC.max(1), truth_N == answer_N)
    per_class = {
        label: ClassFigures(float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
        for i, label in enumerate(labels)
    }
    or_answered = present | (np.bincount(answer_N, minlength=len(labels)) > 0)  # what scikit-learn's macro mean is over
    macro_f1, uar = float(f1[or_answered].mean()), float(recall[present].mean())
    return Evaluation(
        task=dataset.name,
        split=dataset.split,
        n=len(truth_N),
        n_ambiguous=int((~single).sum()),
        accuracy=float((truth_N == answer_N).mean()),
        macro_f1=macro_f1,
        uar=uar,
        wa=float((recall * support).sum() / support.sum()),
        ece=calibration_error(calibration),
        ece_by_chance=calibration_error_by_chance(calibration),
        official=_official(dataset, scores_NC, per_class=per_class, macro_f1=macro_f1, uar=uar),
        per_class=per_class,
        confusion=confusion_matrix(truth_N, answer_N, labels=classes).tolist(),
        labels=labels,
        modalities=modalities,
        is_fold=dataset.is_fold,
        calibration=calibration,
    )


def single_label(examples: Sequence[Example]) -> NDArray[np.bool_]:
    """Return which examples have exactly one label."""
    return np.array([len(example.labels) == 1 for example in examples], dtype=np.bool_)


def first_labels(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Return each example's first label."""
    return np.array([example.labels[0] for example in examples], dtype=np.int64)


def fit_temperature(*sets: tuple[Tensor, Sequence[Example]]) -> float:
    """Return the temperature that makes the likelihood of development examples' labels highest.

    Args:
        sets: Raw logits, logits_NC, and their examples, of each development set; examples with several labels are left
            out. Sets count alike, however large they are. Where nothing is left, it is 1.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    kept = []
    for logits_NC, examples in sets:
        single = single_label(examples)
        if single.any():
            kept.append((logits_NC[torch.from_numpy(single)].float(), torch.from_numpy(first_labels(examples)[single])))
    if not kept:
        return 1.0
    log_temperature = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scale = log_temperature.exp()
        value = torch.stack(
            [functional.cross_entropy(logits_NC / scale, truth_N) for logits_NC, truth_N in kept]
        ).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach().exp())


_Figure = Callable[[dict[str, ClassFigures]], float]


def _weighted_f1(figures: dict[str, ClassFigures]) -> float:
    examples = sum(each.support for each in figures.values())
    return sum(each.f1 * each.support for each in figures.values()) / examples


_OFFICIAL: dict[str, tuple[str, _Figure]] = {
    "meld": ("weighted F1", _weighted_f1),
    "tweeteval/irony": ("F1 of irony", lambda figures: figures["irony"].f1),
    "tweeteval/stance": (
        "mean F1 of against and favor",
        lambda figures: (figures["against"].f1 + figures["favor"].f1) / 2,
    ),
}
"""Official metrics that are neither macro-F1 nor recall (Barbieri et al. 2020, arXiv:2010.12421, table 1; MELD: Poria
et al. 2019, arXiv:1810.02508)."""


def _official(
    dataset: Dataset,
    scores_NC: NDArray[np.float32],
    *,
    per_class: dict[str, ClassFigures],
    macro_f1: float,
    uar: float,
) -> Official:
    if dataset.name == "goemotions":
        return _goemotions_official(dataset, scores_NC)
    if dataset.name == "tweeteval/sentiment":
        return Official("macro-recall", uar)
    if dataset.name in _OFFICIAL:
        name, figure = _OFFICIAL[dataset.name]
        return Official(name, figure(per_class))
    if dataset.name == "semeval2018_ec":  # its authors judge all labels of a tweet; our head names one
        return Official("macro-F1 over tweets with one label", macro_f1)
    return Official("macro-F1", macro_f1)


def _goemotions_official(dataset: Dataset, scores_NC: NDArray[np.float32]) -> Official:
    truth_NC = np.zeros(scores_NC.shape, dtype=np.bool_)
    for row, example in enumerate(dataset.examples):
        truth_NC[row, list(example.labels)] = True
    given_NC = scores_NC > MULTI_LABEL_THRESHOLD
    value = f1_score(truth_NC, given_NC, average="macro", zero_division=0.0)
    return Official(f"multi-label macro-F1 at threshold {MULTI_LABEL_THRESHOLD}", float(value))
