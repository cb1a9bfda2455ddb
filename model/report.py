"""Figures -> what a person reads: tables on a terminal, Markdown, CSV and pictures. Called by the command line.

"true" is always a row and "answer" a column. Pictures are drawn by `pictures`.
"""

import csv
import io
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emostream.model.calibration import calibration_error, calibration_error_by_chance, merge_bins
from emostream.model.datasets import PAIRS, TWEETEVAL_TASKS
from emostream.model.pictures import heading, modalities_of, save_calibration_png, save_confusion_png

if TYPE_CHECKING:
    from emostream.model.evaluation import Evaluation

TERMINAL_CLASSES = 8
"""Classes up to which the confusion matrix fits a terminal of 80 columns."""

_SHORT_LABEL = 5
"""Characters of a label above a column of that matrix; counts may have six digits."""

_CLASS_WIDTH = 36
"""Characters of a class's name in the terminal's table of classes."""

_CORNER = "true \\ answer"

_CLASS_HEAD = ("class", "precision", "recall", "F1", "examples")

_FIGURES: "dict[str, Callable[[Evaluation], float]]" = {
    "accuracy": lambda evaluation: evaluation.accuracy,
    "WA": lambda evaluation: evaluation.wa,
    "UAR": lambda evaluation: evaluation.uar,
    "macro-F1": lambda evaluation: evaluation.macro_f1,
    "ECE": lambda evaluation: evaluation.ece,
}
_FOLD_FIGURES: "dict[str, Callable[[Evaluation], float]]" = {
    **_FIGURES,
    "official": lambda evaluation: evaluation.official.value,
}

_CONFUSION, _CALIBRATION = "png", "calibration.png"
"""Endings of the pictures of an evaluation."""

_LEGEND = (
    "Accuracy is the share of right answers, which MM-EMOR calls UA. WA is each class's recall weighted by the class's "
    "share of the examples, which comes to the same. UAR is the unweighted mean of the recalls. ECE is the expected "
    "calibration error of the highest score; for it, lower is better, and what perfect calibration would show is "
    "called ECE by chance."
)

_CROSS_VALIDATED = (
    "What is held out also chose its fold's best epoch and fitted its temperature: expect a little less of unseen "
    "data, and take ECE for what it could be at best.\n"
)


def print_evaluation(console: Console, evaluation: "Evaluation") -> None:
    """Print an evaluation; it stays readable in 80 columns whatever the classes are called."""
    left_out = f"; {evaluation.n_ambiguous} with several are left out" if evaluation.n_ambiguous else ""
    left_out += f"; {evaluation.n_unread} CANNOT BE READ and are left out" if evaluation.n_unread else ""
    console.print(
        Text(heading(evaluation), style="bold"),
        *([Text(f"answered by {evaluation.model}")] if evaluation.model else []),
        Text(f"{evaluation.n} examples with one label{left_out}"),
        Text("   ".join(f"{name} {figure(evaluation):.4f}" for name, figure in _FIGURES.items())),
        Text(
            f"official metric: {evaluation.official.name} {evaluation.official.value:.4f}; "
            f"ECE by chance {evaluation.ece_by_chance:.4f}"
        ),
        sep="\n",
    )
    console.print(_class_table(evaluation))
    if len(evaluation.labels) <= TERMINAL_CLASSES:
        console.print(_confusion_table(evaluation))
    else:
        console.print(
            f"The confusion matrix of {len(evaluation.labels)} classes is too wide for here; it stands in the files "
            "of the report."
        )


def tweeteval_overall(evaluations: "Sequence[Evaluation]") -> str:
    """Return a sentence with TweetEval's overall score where all seven tasks are there, else nothing.

    It is the mean of the seven official metrics (Barbieri et al. 2020, arXiv:2010.12421).
    """
    by_task = {evaluation.task: evaluation.official.value for evaluation in evaluations}
    names = [f"tweeteval/{name}" for name in TWEETEVAL_TASKS]
    if not set(names) <= set(by_task):
        return ""
    return f"TweetEval, mean of the seven official metrics: {statistics.fmean(by_task[name] for name in names):.4f}"


def calibration_by_path(evaluations: "Sequence[Evaluation]") -> list[str]:
    """Return a sentence for each path whose one head answered several of the data sets: all their examples together.

    Made pairs are left out: each of their halves stands in a data set already.
    """
    by_path: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Evaluation]] = defaultdict(list)
    for evaluation in evaluations:
        if not evaluation.task.startswith(PAIRS):
            by_path[evaluation.modalities, evaluation.labels].append(evaluation)
    sentences = []
    for judged in by_path.values():
        if len(judged) > 1:
            bins = merge_bins(evaluation.calibration for evaluation in judged)
            n = sum(evaluation.n for evaluation in judged)
            accuracy = sum(evaluation.n * evaluation.accuracy for evaluation in judged) / n
            sentences.append(
                f"From {modalities_of(judged[0])}, {' and '.join(evaluation.task for evaluation in judged)} together: "
                f"{n} examples, accuracy {accuracy:.4f}, ECE {calibration_error(bins):.4f}, "
                f"by chance {calibration_error_by_chance(bins):.4f}."
            )
    return sentences


def markdown_report(
    evaluations: "Sequence[Evaluation]", *, title: str, pictures: Sequence[tuple[str, str]] = ()
) -> str:
    """Return a Markdown document: a summary of all evaluations, then each one's classes and confusion matrix.

    Args:
        evaluations: In the order they shall stand in.
        title: The heading.
        pictures: Links to pictures of the confusion matrix and of the calibration, per evaluation; none if not given.
    """
    head = ["data set", "split", "from", "n", *_FIGURES, "official metric", "value"]
    # The calibration error comes last, apart from what is better when it is higher.
    head.append(head.pop(head.index("ECE")))
    parts = [f"# {_escape(title)}", _markdown_table(head, map(_summary_row, evaluations), text_columns=(0, 1, 2, 8))]
    models = dict.fromkeys(f"Answered by {evaluation.model}." for evaluation in evaluations if evaluation.model)
    overall = [*map(_escape, models), tweeteval_overall(evaluations), *map(_escape, calibration_by_path(evaluations))]
    parts += [sentence for sentence in (*overall, _LEGEND) if sentence]
    for number, evaluation in enumerate(evaluations):
        parts.append(f"## {_escape(heading(evaluation))}")
        if evaluation.n_ambiguous:
            parts.append(
                f"{evaluation.n_ambiguous} examples have several labels; GoEmotions' official metric alone counts them."
            )
        parts.append(_markdown_classes(evaluation))
        if pictures:
            confusion, calibration = pictures[number]
            parts.append(f"![Confusion matrix of {_escape(heading(evaluation))}]({confusion})")
            parts.append(f"![Calibration of {_escape(heading(evaluation))}]({calibration})")
        parts.append(_markdown_confusion(evaluation.labels, evaluation.confusion))
    return "\n\n".join(parts) + "\n"


def write_cross_validation(folds: "Sequence[Sequence[Evaluation]]", folder: Path) -> str:
    """Write each task's folds beside each other and all together: `cross-validation.md` and `cross-validation.json`.

    The confusion matrix of all folds of a task is written as CSV and PNG, too, under a name as `write_reports` gives.

    Args:
        folds: The evaluations of each fold, in the same order of tasks.
        folder: Where to.

    Returns:
        The Markdown.

    Raises:
        ValueError: There is no fold, or the folds' tasks or classes differ.
    """
    by_task = [list(of_one_task) for of_one_task in zip(*folds, strict=True)]
    markdown = "\n".join([*map(cross_validation_table, by_task), _CROSS_VALIDATED])
    as_json = [_cross_validation_values(evaluations) for evaluations in by_task]
    together = [_all_folds(evaluations) for evaluations in by_task if evaluations[0].is_fold]
    for stem, evaluation in zip(_stems(together), together, strict=True):
        (folder / f"{stem}.csv").write_text(confusion_csv(evaluation), "utf-8")
        save_confusion_png(evaluation, folder / f"{stem}.png")
    (folder / "cross-validation.md").write_text(markdown, encoding="utf-8")
    (folder / "cross-validation.json").write_bytes(msgspec.json.format(msgspec.json.encode(as_json), indent=2) + b"\n")
    return markdown


def _cross_validation_values(evaluations: "Sequence[Evaluation]") -> dict[str, object]:
    together = _all_folds(evaluations)
    values = {
        "task": together.task,
        "split": together.split,
        "modalities": together.modalities,
        "labels": together.labels,
        "official": together.official.name,
        "divided": together.is_fold,
        "mean": {name: statistics.fmean(map(figure, evaluations)) for name, figure in _FOLD_FIGURES.items()},
        "sd": {name: _deviation(map(figure, evaluations)) for name, figure in _FOLD_FIGURES.items()},
        "folds": evaluations,
    }
    if together.is_fold:
        names = ("precision", "recall", "f1", "support")
        values["per_class"] = {
            label: dict(zip(names, row, strict=True))
            for label, row in zip(together.labels, _pooled_classes(together.confusion), strict=True)
        }
        values["confusion"] = together.confusion
    return values


def cross_validation_table(evaluations: "Sequence[Evaluation]") -> str:
    """Return Markdown for the folds of one task: a row per fold, mean ± sample standard deviation, all folds together.

    A data set that could not be divided judges each fold's model by the same examples, which are counted once.

    Raises:
        ValueError: There is no fold, or the folds' classes differ.
    """
    together = _all_folds(evaluations)
    rows = [
        [str(fold), str(evaluation.n), *(f"{figure(evaluation):.4f}" for figure in _FOLD_FIGURES.values())]
        for fold, evaluation in enumerate(evaluations, start=1)
    ]
    means = (_mean_and_deviation(map(figure, evaluations)) for figure in _FOLD_FIGURES.values())
    rows.append(["mean ± SD", str(together.n), *means])
    parts = [
        f"## {_escape(heading(together))}",
        _markdown_table(["fold", "n", *_FOLD_FIGURES], rows, text_columns=(0,)),
        f"Official metric: {_escape(together.official.name)}.",
    ]
    if not together.is_fold:
        return "\n\n".join((*parts, "Not divided: the same examples judge the model of each fold.\n"))
    classes = [
        [label, *(f"{value:.3f}" for value in figures), str(support)]
        for label, (*figures, support) in zip(together.labels, _pooled_classes(together.confusion), strict=True)
    ]
    right = sum(row[number] for number, row in enumerate(together.confusion))
    parts += [
        f"All folds together: {right} of {together.n} right ({together.accuracy:.4f}).",
        _markdown_table(_CLASS_HEAD, classes, text_columns=(0,)),
        _markdown_confusion(together.labels, together.confusion) + "\n",
    ]
    return "\n\n".join(parts)


def _all_folds(evaluations: "Sequence[Evaluation]") -> "Evaluation":
    """Return the first fold's evaluation with split, examples, accuracy and confusion of all, or as it is if undivided.

    Raises:
        ValueError: There is no fold, or the folds' classes differ.
    """
    confusion = pooled_confusion(evaluations)
    first = evaluations[0]
    if not first.is_fold:
        return first
    total = sum(map(sum, confusion))
    right = sum(row[number] for number, row in enumerate(confusion))
    return msgspec.structs.replace(
        first, split=f"{len(evaluations)} folds", n=total, accuracy=right / max(total, 1), confusion=confusion
    )


def _pooled_classes(confusion: Sequence[Sequence[int]]) -> list[tuple[float, float, float, int]]:
    """Return precision, recall, F1 and examples of each class."""
    rows = []
    for number, row in enumerate(confusion):
        hit, answered, examples = row[number], sum(each[number] for each in confusion), sum(row)
        rows.append((hit / max(answered, 1), hit / max(examples, 1), 2 * hit / max(answered + examples, 1), examples))
    return rows


def pooled_confusion(evaluations: "Sequence[Evaluation]") -> list[list[int]]:
    """Return the sum of the folds' confusion matrices.

    Raises:
        ValueError: There is no fold, or the folds' classes differ.
    """
    if len({evaluation.labels for evaluation in evaluations}) != 1:
        raise ValueError("expected one or more folds, all of the same classes")
    matrices = [evaluation.confusion for evaluation in evaluations]
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def confusion_csv(evaluation: "Evaluation") -> str:
    """Return the confusion matrix as CSV: a header with the answers, then a row per true class."""
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow([_CORNER, *evaluation.labels])
    table.writerows([label, *row] for label, row in zip(evaluation.labels, evaluation.confusion, strict=True))
    return lines.getvalue()


def write_reports(evaluations: "Sequence[Evaluation]", folder: Path, *, title: str = "Evaluation") -> list[Path]:
    """Write each evaluation as JSON, CSV and two PNG, and `report.md` over all of them.

    Args:
        evaluations: Files are called TASK-SPLIT, with the modalities behind unless it was text alone, and a number
            where the name would come twice; the second PNG, of the calibration, TASK-SPLIT.calibration.
        folder: Where to; created if missing.
        title: Heading of `report.md`.

    Returns:
        The files written, `report.md` last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    stems = list(_stems(evaluations))
    for stem, evaluation in zip(stems, evaluations, strict=True):
        as_json, as_csv, confusion, calibration = (
            folder / f"{stem}.{kind}" for kind in ("json", "csv", _CONFUSION, _CALIBRATION)
        )
        as_json.write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=2) + b"\n")
        as_csv.write_text(confusion_csv(evaluation), "utf-8")
        save_confusion_png(evaluation, confusion)
        save_calibration_png(evaluation, calibration)
        files += [as_json, as_csv, confusion, calibration]
    report = folder / "report.md"
    pictures = [(f"{stem}.{_CONFUSION}", f"{stem}.{_CALIBRATION}") for stem in stems]
    report.write_text(markdown_report(evaluations, title=title, pictures=pictures), "utf-8")
    return [*files, report]


def _stems(evaluations: "Sequence[Evaluation]") -> Iterator[str]:
    """Yield a file name without ending for each evaluation, none twice."""
    seen: Counter[str] = Counter()
    for evaluation in evaluations:
        modalities = () if evaluation.modalities == ("text",) else evaluation.modalities
        stem = re.sub(r"[^\w.-]", "-", "-".join((evaluation.task, evaluation.split, *modalities)))
        seen[stem] += 1
        yield stem if seen[stem] == 1 else f"{stem}-{seen[stem]}"


def _class_table(evaluation: "Evaluation") -> Table:
    table = Table(box=SIMPLE)
    table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=_CLASS_WIDTH)
    for name in _CLASS_HEAD[1:]:
        table.add_column(name, justify="right")
    for label in evaluation.labels:
        table.add_row(Text(label), *_class_cells(evaluation, label))
    return table


def _class_cells(evaluation: "Evaluation", label: str) -> list[str]:
    figures = evaluation.per_class[label]
    return [f"{value:.3f}" for value in (figures.precision, figures.recall, figures.f1)] + [str(figures.support)]


def _confusion_table(evaluation: "Evaluation") -> Table:
    names, heads = list(evaluation.labels), [label[:_SHORT_LABEL] for label in evaluation.labels]
    if len(set(heads)) < len(heads):
        heads = [str(number) for number in range(1, len(names) + 1)]
        names = [f"{head} {name}" for head, name in zip(heads, names, strict=True)]
    table = Table(box=SIMPLE, padding=(0, 0, 0, 1))
    table.add_column(_CORNER, no_wrap=True, overflow="ellipsis", max_width=len(_CORNER))
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for name, row in zip(names, evaluation.confusion, strict=True):
        table.add_row(Text(name), *map(str, row))
    return table


def _summary_row(evaluation: "Evaluation") -> list[str]:
    figures = [f"{figure(evaluation):.4f}" for figure in _FIGURES.values()]
    official = evaluation.official
    return [
        evaluation.task, evaluation.split, modalities_of(evaluation), str(evaluation.n), *figures[:-1], official.name,
        f"{official.value:.4f}", figures[-1],
    ]  # fmt: skip


def _markdown_classes(evaluation: "Evaluation") -> str:
    rows = ([label, *_class_cells(evaluation, label)] for label in evaluation.labels)
    return _markdown_table(_CLASS_HEAD, rows, text_columns=(0,))


def _markdown_confusion(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    rows = ([label, *map(str, row)] for label, row in zip(labels, confusion, strict=True))
    return _markdown_table([_CORNER, *labels], rows, text_columns=(0,))


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: Sequence[int]) -> str:
    """Return a table whose columns are numbers, right-aligned, but for those named."""
    rule = ["---" if column in text_columns else "---:" for column in range(len(head))]
    lines = [list(map(_escape, head)), rule, *(list(map(_escape, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line; underscores inside words mean nothing there."""
    return re.sub(r"([\\|`*<\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _mean_and_deviation(values: Iterable[float]) -> str:
    figures = list(values)
    mean = f"{statistics.fmean(figures):.4f}"
    return f"{mean} ± {_deviation(figures):.4f}" if len(figures) > 1 else mean


def _deviation(values: Iterable[float]) -> float:
    """Return the sample standard deviation; 0 of one value."""
    figures = list(values)
    return statistics.stdev(figures) if len(figures) > 1 else 0.0
