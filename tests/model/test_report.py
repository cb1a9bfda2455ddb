"""Reports: nothing too wide, nothing that Markdown swallows, files that can be read back."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from matplotlib.image import imread
from msgspec.structs import replace
from rich.console import Console

from emostream.model.calibration import CalibrationBin
from emostream.model.evaluation import ClassFigures, Evaluation, Official
from emostream.model.pictures import save_calibration_png, save_confusion_png, save_curve_png
from emostream.model.report import (
    calibration_by_path,
    confusion_csv,
    cross_validation_table,
    markdown_report,
    pooled_confusion,
    print_evaluation,
    write_cross_validation,
    write_reports,
)
from emostream.model.samples import LABELS, ModelInfo
from emostream.model.training_loop import EpochRecord, StageProgress

EMOJI = (*"❤😍😂💕🔥😊😎✨💙😘📷", "🇺🇸", *"☀💜😉💯😁🎄📸😜")
ODD = ("a|b", "_x_", "[red]y", "pleasant calm", "pleasant surprise", "a name that never ends " * 5, "Ω", "z")
IRONY = ("non_irony", "irony")
CLASSES = pytest.mark.parametrize("labels", [IRONY, LABELS, ODD, EMOJI], ids=["2", "7", "odd", "emoji"])

BIN = CalibrationBin(low=11 / 15, n=20, confidence=0.75, accuracy=0.65)


def evaluation(
    labels: tuple[str, ...] = LABELS,
    *,
    task: str = "meld",
    accuracy: float = 0.75,
    modalities: tuple[str, ...] = ("text",),
    confusion: list[list[int]] | None = None,
    is_fold: bool = False,
    model: ModelInfo | None = None,
) -> Evaluation:
    return Evaluation(
        task=task,
        split="dev",
        n=123_456,
        n_ambiguous=789,
        accuracy=accuracy,
        macro_f1=0.31,
        uar=0.32,
        wa=0.33,
        ece=0.34,
        official=Official("mean F1 of this | that", 0.35),
        per_class={label: ClassFigures(0.1, 0.2, 0.3, 12_345) for label in labels},
        confusion=confusion or [[12_345] * len(labels) for _ in labels],
        labels=labels,
        modalities=modalities,
        is_fold=is_fold,
        model=model,
    )


def printed(given: Evaluation) -> str:
    console = Console(file=io.StringIO(), width=80, legacy_windows=False)
    print_evaluation(console, given)
    return console.file.getvalue()


def tables(markdown: str) -> list[list[list[str]]]:
    """Return the cells of each table, as a reader of Markdown finds them."""
    blocks = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    return [[re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in block] for block in blocks]


@CLASSES
def test_a_terminal_of_80_columns_is_enough(labels: tuple[str, ...]) -> None:
    text = printed(evaluation(labels, modalities=("text", "voice")))
    assert "meld dev, from text and voice" in text
    assert "accuracy 0.7500   WA 0.3300   UAR 0.3200   macro-F1 0.3100   ECE 0.3400" in text
    assert "mean F1 of this | that 0.3500" in text
    class_rows = [line for line in text.splitlines() if "0.100    0.200   0.300" in line]
    assert len(class_rows) == len(labels)
    assert all(line.rstrip().endswith("12345") for line in class_rows)
    confusion_rows = [line for line in text.splitlines() if line.count("12345") == len(labels)]
    assert len(confusion_rows) == (0 if labels is EMOJI else len(labels))
    assert ("20 classes is too wide" in text) == (labels is EMOJI)


def test_columns_are_numbered_where_short_names_are_the_same() -> None:
    text = printed(evaluation(ODD))
    assert re.search(r"true \\ answer\s+1\s+2\s+3\s+4\s+5\s+6\s+7\s+8\s*\n", text)
    assert "3 [red]y" in text
    assert re.search(r"true \\ answer\s+anger\s+disgu\s+fear", printed(evaluation()))


def test_figures_stand_in_the_summary() -> None:
    markdown = markdown_report([evaluation(), evaluation(IRONY, modalities=("voice",))], title="All")
    assert markdown.startswith("# All\n\n")
    head, _, first, second = tables(markdown)[0]
    assert dict(zip(head, first, strict=True)) == {
        "data set": "meld", "split": "dev", "from": "text", "n": "123456", "accuracy": "0.7500", "WA": "0.3300",
        "UAR": "0.3200", "macro-F1": "0.3100", "official metric": r"mean F1 of this \| that", "value": "0.3500",
        "ECE": "0.3400",
    }  # fmt: skip
    assert second[2] == "voice"
    assert "789 examples have several labels" in markdown


@CLASSES
def test_markdown_tables_keep_their_shape(labels: tuple[str, ...]) -> None:
    _, classes, confusion = tables(markdown_report([evaluation(labels)], title="All"))
    assert {len(row) for row in classes} == {5}
    assert {len(row) for row in confusion} == {len(labels) + 1}
    assert len(classes) == len(confusion) == len(labels) + 2


def test_what_answered_is_named_once() -> None:
    model = ModelInfo(name="my|own", version="2.0", device="cpu", precision="float32")
    assert "answered by my|own 2.0 on cpu, float32\n" in printed(evaluation(model=model))
    markdown = markdown_report([evaluation(model=model), evaluation(IRONY, model=model)], title="All")
    assert markdown.count(r"Answered by my\|own 2.0 on cpu, float32.") == 1
    assert "nswered by" not in printed(evaluation()) + markdown_report([evaluation()], title="All")


def test_markdown_shows_names_as_they_are() -> None:
    markdown = markdown_report([evaluation(ODD)], title="All")
    assert r"| a\|b |" in markdown
    assert r"| \_x\_ |" in markdown
    assert "| non_irony |" in markdown_report([evaluation(IRONY)], title="All")


@CLASSES
def test_csv_is_read_back(labels: tuple[str, ...]) -> None:
    head, *rows = csv.reader(io.StringIO(confusion_csv(evaluation(labels))))
    assert tuple(head[1:]) == labels
    assert [row[0] for row in rows] == list(labels)
    assert {cell for row in rows for cell in row[1:]} == {"12345"}


@CLASSES
def test_confusion_is_drawn(labels: tuple[str, ...], tmp_path: Path) -> None:
    save_confusion_png(evaluation(labels), tmp_path / "confusion.png")
    height, width, _ = imread(tmp_path / "confusion.png").shape
    assert min(height, width) > 400


def test_a_class_without_examples_is_drawn(tmp_path: Path) -> None:
    save_confusion_png(evaluation(IRONY, confusion=[[0, 0], [3, 4]]), tmp_path / "confusion.png")
    assert imread(tmp_path / "confusion.png").size


@pytest.mark.parametrize("bins", [(), (BIN,), tuple(replace(BIN, low=low / 15) for low in range(15))])
def test_calibration_is_drawn(bins: tuple[CalibrationBin, ...], tmp_path: Path) -> None:
    save_calibration_png(replace(evaluation(), calibration=bins), tmp_path / "calibration.png")
    height, width, _ = imread(tmp_path / "calibration.png").shape
    assert min(height, width) > 400


def test_what_one_head_answers_is_judged_together() -> None:
    first, second = (
        replace(evaluation(task=task, accuracy=right), n=n, calibration=(replace(BIN, n=n, accuracy=right),))
        for task, n, right in (("goemotions", 30, 0.6), ("meld", 10, 0.8))
    )
    others = [evaluation(IRONY), evaluation(modalities=("voice",))]
    (sentence,) = calibration_by_path([first, others[0], second, others[1]])
    assert sentence.startswith("From text, goemotions and meld together: 40 examples, accuracy 0.6500, ECE 0.1000, by")
    assert sentence in markdown_report([first, second], title="All")
    assert calibration_by_path([first, *others]) == []
    made = [replace(first, task=task) for task in ("pairs", "pairs/goemotions+ravdess")]
    assert calibration_by_path([first, *made, second]) == [sentence], "pairs are made of examples counted already"


def test_reports_are_written_and_fit_together(tmp_path: Path) -> None:
    given = [
        evaluation(task="tweeteval/emoji", labels=EMOJI),
        evaluation(),
        evaluation(modalities=("text", "voice")),
        evaluation(accuracy=0.5),
    ]
    files = write_reports(given, tmp_path / "new" / "folder", title="Run 1")
    stems = ["tweeteval-emoji-dev", "meld-dev", "meld-dev-text-voice", "meld-dev-2"]
    assert [file.name for file in files] == [
        *(f"{stem}.{kind}" for stem in stems for kind in ("json", "csv", "png", "calibration.png")), "report.md"
    ]  # fmt: skip
    assert sorted(files) == sorted((tmp_path / "new" / "folder").iterdir())
    assert [msgspec.json.decode(file.read_bytes(), type=Evaluation) for file in files[:-1:4]] == given
    report = files[-1].read_text("utf-8")
    assert report.startswith("# Run 1\n")
    assert re.findall(r"!\[.*\]\((.*)\)", report) == [
        f"{stem}.{kind}" for stem in stems for kind in ("png", "calibration.png")
    ]


@pytest.mark.parametrize(("epochs", "lines"), [(1, 1), (2, 0), (3, 12), (25, 2)])
def test_curves_are_drawn(epochs: int, lines: int, tmp_path: Path) -> None:
    records = [
        EpochRecord(
            epoch,
            1 / epoch,
            -abs(epoch - 2),
            tuple(evaluation(task=f"set {n // 2}", modalities=(("text",), ("voice",))[n % 2]) for n in range(lines)),
        )
        for epoch in range(1, epochs + 1)
    ]
    save_curve_png(StageProgress(records), tmp_path / "curve.png")
    height, width, _ = imread(tmp_path / "curve.png").shape
    assert width > height > 700


def test_cross_validation_by_hand() -> None:
    folds = [
        evaluation(IRONY, accuracy=accuracy, confusion=confusion, is_fold=True)
        for accuracy, confusion in ((0.5, [[1, 1], [1, 1]]), (0.6, [[2, 1], [1, 1]]), (1.0, [[2, 0], [0, 2]]))
    ]
    markdown = cross_validation_table(folds)
    figures, classes, confusion = tables(markdown)
    assert markdown.startswith("## meld 3 folds, from text\n")
    assert classes[2:] == [["non_irony", "0.714", "0.714", "0.714", "7"], ["irony", "0.667", "0.667", "0.667", "6"]]
    assert figures[0] == ["fold", "n", "accuracy", "WA", "UAR", "macro-F1", "ECE", "official"]
    assert [row[:3] for row in figures[2:-1]] == [
        ["1", "123456", "0.5000"], ["2", "123456", "0.6000"], ["3", "123456", "1.0000"]
    ]  # fmt: skip
    # Mean 0.7; deviations -0.2, -0.1 and 0.3; their squares sum to 0.14, over 2 folds 0.07.
    assert figures[-1][:4] == ["mean ± SD", "13", "0.7000 ± 0.2646", "0.3300 ± 0.0000"]
    assert confusion[2:] == [["non_irony", "5", "2"], ["irony", "2", "4"]]
    assert "9 of 13 right (0.6923)" in markdown
    assert pooled_confusion(folds) == [[5, 2], [2, 4]]


def test_what_was_not_divided_counts_once(tmp_path: Path) -> None:
    undivided = [evaluation(accuracy=accuracy) for accuracy in (0.5, 0.7)]
    divided = [evaluation(IRONY, task="irony", confusion=[[1, 1], [0, 2]], is_fold=True) for _ in range(2)]
    markdown = write_cross_validation(list(zip(undivided, divided, strict=True)), tmp_path)
    assert tables(markdown)[0][-1][:3] == ["mean ± SD", "123456", "0.6000 ± 0.1414"]
    assert "Not divided: the same examples" in markdown
    assert markdown.count("All folds together") == 1
    of_meld, of_irony = json.loads((tmp_path / "cross-validation.json").read_text())
    assert (of_meld["divided"], of_meld["sd"]["accuracy"]) == (False, pytest.approx(0.1414, abs=1e-4))
    assert "confusion" not in of_meld
    assert (of_irony["split"], of_irony["confusion"]) == ("2 folds", [[2, 2], [0, 4]])
    assert of_irony["mean"]["official"] == 0.35
    written = {file.name for file in tmp_path.iterdir()} - {"cross-validation.md", "cross-validation.json"}
    assert written == {"irony-2-folds.csv", "irony-2-folds.png"}


def test_one_fold_has_no_deviation() -> None:
    assert tables(cross_validation_table([evaluation()]))[0][-1][2] == "0.7500"


def test_folds_have_the_same_classes() -> None:
    with pytest.raises(ValueError, match="same classes"):
        cross_validation_table([evaluation(), evaluation(IRONY)])
    with pytest.raises(ValueError, match="one or more"):
        pooled_confusion([])


def test_neither_matplotlib_nor_torch_comes_with_the_import() -> None:
    code = "import sys, emostream.model.report; sys.exit(bool({'matplotlib', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
