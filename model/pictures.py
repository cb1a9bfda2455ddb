"""Figures as pictures: confusions, calibration and learning curves. Called by `report` and by the training loop.

They are drawn without pyplot, so that no window system is asked for; matplotlib is imported by the functions that draw.
"""

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import emoji

from emostream.model.calibration import BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from emostream.model.evaluation import Evaluation
    from emostream.model.training_loop import StageProgress

_LABEL_LINE = 18
"""Characters after which a class's name is broken in a picture; it may take two lines."""

_CELL_INCHES, _CHARACTER_INCHES = 0.62, 0.08
"""Side of a cell in a picture, and width of a character of its labels, set in 9 points."""

_DOTS_PER_INCH = 150


def save_confusion_png(evaluation: "Evaluation", file: Path) -> None:
    """Draw the confusion matrix: counts as numbers, each row's shares as shades."""
    from matplotlib.figure import Figure

    classes = len(evaluation.labels)
    side = _CELL_INCHES * max(classes, 4)
    figure = Figure(figsize=(side + 3.3, side + 2.4), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    shares = [[count / max(sum(row), 1) for count in row] for row in evaluation.confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, counts in enumerate(evaluation.confusion):
        for column, count in enumerate(counts):
            # White on the darker half of the scale; a zero is there, but does not ask to be read.
            colour = "white" if shares[row][column] > 0.5 else "#222222" if count else "#b0b0b0"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    _label_classes(axes, evaluation.labels, upright_characters=round(side / classes / _CHARACTER_INCHES))
    axes.set_title(f"{heading(evaluation)}\nn = {evaluation.n:,}, accuracy {evaluation.accuracy:.4f}", fontsize=11)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    bar.outline.set_visible(False)
    _save(figure, file)


def save_calibration_png(evaluation: "Evaluation", file: Path) -> None:
    """Draw how often answers of about one confidence are right and, below, how many there are of each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6.5), dpi=_DOTS_PER_INCH, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins, width = evaluation.calibration, 1 / BINS
    lows = [each.low for each in bins]
    upper.bar(lows, [each.accuracy for each in bins], width, align="edge", color="#9ecae1", edgecolor="white")
    upper.plot([0, 1], [0, 1], color="#888888", linestyle=":", label="as often right as sure")
    upper.plot(
        [each.confidence for each in bins], [each.accuracy for each in bins],
        color="#08519c", marker="o", markersize=5, linestyle="none", label="mean confidence of the bin",
    )  # fmt: skip
    lower.bar(lows, [each.n for each in bins], width, align="edge", color="#bdbdbd", edgecolor="white")
    upper.set_ylabel("share of right answers")
    lower.set_ylabel("answers")
    lower.set_xlabel("confidence")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.legend(loc="upper left", frameon=False, fontsize=9)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    upper.set_title(
        f"{heading(evaluation)}\nn = {evaluation.n:,}, ECE {evaluation.ece:.4f}, "
        f"by chance {evaluation.ece_by_chance:.4f}", fontsize=11,
    )  # fmt: skip
    _save(figure, file)


def save_curve_png(progress: "StageProgress", file: Path) -> None:
    """Draw accuracy per epoch for each data set and, below, the loss; the best epoch is marked.

    Args:
        progress: At least one finished epoch.
        file: The PNG to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 6), dpi=_DOTS_PER_INCH, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    _draw_accuracies(upper, progress)
    lower.plot([r.epoch for r in progress.epochs], [r.loss for r in progress.epochs], color="#444444", marker="o", ms=4)
    upper.set_ylabel("accuracy")
    lower.set_ylabel("training loss")
    lower.set_xlabel("epoch")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lower.set_xlim(progress.epochs[0].epoch - 0.5, progress.epochs[-1].epoch + 0.5)
    for axes in (upper, lower):
        axes.axvline(progress.best.epoch, color="#888888", linestyle=":", zorder=0)
        axes.grid(axis="y", color="#e4e4e4", zorder=-1)
        axes.spines[["top", "right"]].set_visible(False)
    upper.text(
        progress.best.epoch, 1.01, "best epoch", transform=upper.get_xaxis_transform(), ha="center", fontsize=9
    )  # fmt: skip
    handles, labels = upper.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    _save(figure, file)


def modalities_of(evaluation: "Evaluation") -> str:
    """Return what the answers rest on, in words."""
    return " and ".join(evaluation.modalities)


def heading(evaluation: "Evaluation") -> str:
    """Return which figures these are."""
    return f"{evaluation.task} {evaluation.split}, from {modalities_of(evaluation)}"


def _label_classes(axes: "Axes", labels: Sequence[str], *, upright_characters: int) -> None:
    """Write the classes along both axes, slanted below the columns if a line has too many characters for a cell."""
    names = [textwrap.fill(_spelled(label), _LABEL_LINE, max_lines=2, placeholder=" …") for label in labels]
    slanted = max(len(line) for name in names for line in name.split("\n")) > upright_characters
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    if slanted:
        axes.tick_params(axis="x", rotation=45)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    axes.set_ylabel("true")
    axes.set_xlabel("answer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _spelled(label: str) -> str:
    """Return a label with emoji as words: the font that matplotlib brings along has no emoji."""
    words = emoji.demojize(label, delimiters=(" ", " "))
    return label if words == label else " ".join(words.replace("_", " ").split())


def _draw_accuracies(axes: "Axes", progress: "StageProgress") -> None:
    """Draw a line per data set, named in the order in which the lines end, from the top."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for record in progress.epochs:
        for evaluation in record.evaluations:
            key = evaluation.task, modalities_of(evaluation)
            lines.setdefault(key, []).append((record.epoch, evaluation.accuracy))
    tasks = Counter(task for task, _ in lines)
    by_end = sorted(lines.items(), key=lambda item: -item[1][-1][1])
    for number, ((task, modalities), points) in enumerate(by_end):
        axes.plot(
            [epoch for epoch, _ in points], [accuracy for _, accuracy in points], color=f"C{number % 10}",
            linestyle="-" if number < 10 else "--", marker="o", markersize=4,
            label=task if tasks[task] == 1 else f"{task}, from {modalities}",
        )  # fmt: skip


def _save(figure: "Figure", file: Path) -> None:
    figure.savefig(file, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.15)
