"""`emostream train`, `evaluate` and `predict`. Mounted by `streams.cli`; torch is imported only inside the commands."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from emostream.model.evaluation import Evaluation
    from emostream.model.samples import Outcome

_SHORT_LABEL = 5
"""Characters of a label above a column of the confusion matrix: seven columns fit a terminal of 80."""

Device = Annotated[str, typer.Option(help="auto (CUDA when there is one), cpu, cuda, cuda:1 …")]
CheckpointFolder = Annotated[
    Path | None, typer.Option("--checkpoint", help="Checkpoint folder; the shipped model if not given.")
]


def train(
    data: Annotated[Path, typer.Option(help="Folder that the recipe's data sets and encoder lie under.")],
    out: Annotated[Path, typer.Option(help="Folder of this run; an interrupted run in it is gone on with.")],
    recipe: Annotated[
        Path | None, typer.Option(help="TOML recipe; the shipped model's own recipe if not given.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a model by a recipe. The best epoch's checkpoint is OUT/best."""
    from emostream.model.recipe import SHIPPED_RECIPE, read_recipe
    from emostream.model.training import train as run_training

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading data and encoder", total=None, loss=float("nan"))

        def on_step(done: int, total: int, loss: float) -> None:
            bar.update(task, description="training", completed=done, total=total, loss=loss)

        progress = run_training(
            read_recipe(recipe or SHIPPED_RECIPE), data=data, run=out, device=device, on_step=on_step
        )
    console = Console()
    for evaluation in progress.best.evaluations:
        _print_evaluation(console, evaluation)
    console.print(f"best epoch: {progress.best.epoch}; checkpoint: {out / 'best'}")


def evaluate(
    task: Annotated[str, typer.Option(help="goemotions or meld.")],
    data: Annotated[Path, typer.Option(help="Folder with the data set's published files.")],
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    checkpoint: CheckpointFolder = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Say how well a model does on a public data set.

    Prints accuracy, macro-F1, precision, recall and F1 per class, the confusion matrix and the expected
    calibration error.
    """
    from emostream.model.checkpoint import SHIPPED
    from emostream.model.datasets import read_dataset
    from emostream.model.evaluation import evaluate_scores
    from emostream.model.scorer import TextScorer

    dataset = read_dataset(task, data, split)
    scorer = TextScorer.load(checkpoint or SHIPPED, device=device, precision=precision)
    outcomes: list[Outcome] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        texts = [example.text for example in dataset.examples]
        for start in bar.track(range(0, len(texts), 512), description="scoring"):
            outcomes += scorer.score(texts[start : start + 512]).outcomes
    result = evaluate_scores(dataset, _score_matrix(outcomes))
    if as_json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        _print_evaluation(Console(), result)


def predict(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to score; - reads one per line.")] = None,
    checkpoint: CheckpointFolder = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per text.")] = False,
) -> None:
    """Score texts here and now, without Kafka."""
    from emostream.model.checkpoint import SHIPPED
    from emostream.model.samples import LABELS, Scored
    from emostream.model.scorer import TextScorer

    if texts in (None, [], ["-"]):
        texts = sys.stdin.buffer.read().decode(errors="replace").splitlines()
    # What the shell hands over may hold bytes that are no UTF-8; they come as lone surrogates.
    given = [text.encode(errors="replace").decode() for text in texts or () if text.strip()]
    if not given:
        raise typer.BadParameter("there is no text to score", param_hint="TEXTS")
    outcomes = TextScorer.load(checkpoint or SHIPPED, device=device).score(given).outcomes
    table = Table("text", "emotion", "confidence", "next")
    for text, outcome in zip(given, outcomes, strict=True):
        if not isinstance(outcome, Scored):
            Console(stderr=True).print(Text(f"{text}: {outcome.reason}: {outcome.error}"))
            continue
        ranked = sorted(zip(outcome.scores, LABELS, strict=True), reverse=True)
        if as_json:
            scores = {label: round(score, 6) for score, label in ranked}
            line = {"text": text, "emotion": ranked[0][1], "scores": scores, "flags": outcome.flags}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        else:
            table.add_row(Text(text), ranked[0][1], f"{ranked[0][0]:.2f}", f"{ranked[1][1]} {ranked[1][0]:.2f}")
    if not as_json:
        Console().print(table)


def _score_matrix(outcomes: "list[Outcome]") -> "NDArray[np.float32]":
    import numpy as np

    from emostream.model.samples import LABELS, Scored

    nothing = (0.0,) * len(LABELS)
    return np.array([o.scores if isinstance(o, Scored) else nothing for o in outcomes], dtype=np.float32)


def _print_evaluation(console: Console, result: "Evaluation") -> None:
    console.print(
        f"[bold]{result.task} {result.split}[/]: {result.n} texts with one label "
        f"({result.n_ambiguous} with several are left out)\n"
        f"accuracy {result.accuracy:.4f}   macro-F1 {result.macro_f1:.4f}   UAR {result.uar:.4f}   "
        f"ECE {result.ece:.4f}\n"
        f"{result.official.name} {result.official.value:.4f}"
    )
    classes = Table("class", "precision", "recall", "F1", "texts", box=SIMPLE)
    confusion = Table("true \\ answer", *(label[:_SHORT_LABEL] for label in result.labels), box=SIMPLE)
    for label, row in zip(result.labels, result.confusion, strict=True):
        figures = result.per_class[label]
        classes.add_row(
            label, f"{figures.precision:.3f}", f"{figures.recall:.3f}", f"{figures.f1:.3f}", str(figures.support)
        )
        confusion.add_row(label, *map(str, row))
    console.print(classes, confusion)
