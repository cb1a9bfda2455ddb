"""`emostream train`, `evaluate` and `predict`. Mounted by `streams.cli`; torch is imported only inside the commands."""

import io
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from emostream.model.evaluation import Evaluation
    from emostream.model.samples import Scored
    from emostream.model.scorer import Item

Device = Annotated[str, typer.Option(help="auto (CUDA when there is one), cpu, cuda, cuda:1 …")]
CheckpointFolder = Annotated[
    Path | None, typer.Option("--checkpoint", help="Checkpoint folder; the shipped model if not given.")
]


def train(
    data: Annotated[Path, typer.Option(help="Folder that the recipe's data sets, encoder and weights lie under.")],
    out: Annotated[Path, typer.Option(help="Folder of this run; an interrupted run in it is gone on with.")],
    recipe: Annotated[
        Path,
        typer.Option(help="TOML recipe, or the name of one that comes with emostream: emostream, permissive, iemocap."),
    ] = Path("emostream"),
    device: Annotated[str | None, typer.Option(help="In place of the recipe's: auto, cpu, cuda, cuda:1 …")] = None,
    folds: Annotated[
        int, typer.Option(min=0, help="Cross-validate: divide speakers or sessions into so many folds, train each.")
    ] = 0,
) -> None:
    """Train a model by a recipe: text, then heads over it, then voice, then both together.

    The checkpoint is OUT/best, its figures are in OUT/figures, each stage's log, curve and state in a folder of its
    own. With several GPUs: torchrun --nproc-per-node N --no-python emostream train …
    """
    from emostream.model.recipe import find_recipe, read_recipe
    from emostream.model.report import calibration_by_path, print_evaluation, write_cross_validation
    from emostream.model.training import train as run_training
    from emostream.model.training_loop import processes

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )  # fmt: skip
    settings = read_recipe(find_recipe(recipe))
    results: list[tuple[Evaluation, ...]] = []
    with Progress(*columns, console=Console(stderr=True), disable=processes()[0] != 0) as bar:
        task = bar.add_task("reading data and encoder", total=None, loss=float("nan"))
        for fold in range(folds) if folds else (None,):

            def on_step(stage: str, done: int, total: int, loss: float, fold: int | None = fold) -> None:
                name = stage if fold is None else f"fold {fold + 1} of {folds}, {stage}"
                bar.update(task, description=name, completed=done, total=total, loss=loss)

            results.append(
                run_training(
                    settings,
                    data=data,
                    run=out if fold is None else out / f"fold-{fold + 1}",
                    device=device,
                    fold=None if fold is None else (fold, folds),
                    on_step=on_step,
                )
            )
    if processes()[0] != 0:
        return
    console = Console()
    if not folds:
        for evaluation in results[0]:
            print_evaluation(console, evaluation)
        for together in calibration_by_path(results[0]):
            console.print(together, soft_wrap=True)
        console.print(f"checkpoint: {out / 'best'}, figures: {out / 'figures'}", soft_wrap=True)
        return
    sys.stdout.write(write_cross_validation(results, out))


def evaluate(
    task: Annotated[
        str,
        typer.Option(
            help="goemotions, meld, ravdess, tess, emodb, iemocap, iemocap-merged, semeval2018_ec, tweeteval/TASK, "
            "or tweeteval for all seven of its tasks."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder with the data set's published files.")],
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=FOLDER",
            help="Judge this data set as well; may come several times. What one head answers is judged together.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    fold: Annotated[
        str,
        typer.Option(
            metavar="K/N",
            help="In place of a split: the K-th of N folds, which OUT/fold-K of `emostream train --folds N` has not "
            "learned from.",
        ),
    ] = "",
    path: Annotated[str, typer.Option(help="text, voice, fused, or auto: whatever an example has.")] = "auto",
    voices: Annotated[
        str,
        typer.Option(
            metavar="TASK=FOLDER",
            help="Pair each recording of this data set with five texts of --task that have its label, and judge the "
            "texts of these pairs, the recordings, and both together.",
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write JSON, CSV, PNG and a Markdown report into this folder.")
    ] = None,
    checkpoint: CheckpointFolder = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say how well a model does on a public data set.

    Prints accuracy (which MM-EMOR calls UA), weighted accuracy, unweighted average recall, macro-F1, the metric of the
    data set's authors, the expected calibration error, figures per class and the confusion matrix.
    """
    from emostream.model.checkpoint import SHIPPED
    from emostream.model.datasets import TWEETEVAL_TASKS, read_dataset, read_fold
    from emostream.model.judging import check_path, judge, match_by_label
    from emostream.model.report import calibration_by_path, print_evaluation, tweeteval_overall, write_reports
    from emostream.model.samples import FUSED, TEXT, VOICE
    from emostream.model.scorer import EmotionScorer
    from emostream.model.training import check_fold

    if path not in ("auto", "text", "voice", "fused"):
        raise typer.BadParameter(f"{path!r}; there are auto, text, voice and fused", param_hint="--path")
    if out is not None:
        _make_folder(out)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if voices and (fold or path != "auto" or task == "tweeteval" or also):
        raise typer.BadParameter(
            "TASK=FOLDER is needed, one --task, no --also, no --fold and no --path", param_hint="--voices"
        )
    spoken, folder = _task_and_folder(voices, "--voices") if voices else ("", Path())
    several = {"tweeteval": [f"tweeteval/{name}" for name in TWEETEVAL_TASKS]}
    sources = [(task, data), *(_task_and_folder(each, "--also") for each in also or ())]
    named = [(name, source) for asked_for, source in sources for name in several.get(asked_for, [asked_for])]
    names = [name for name, _ in named]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise typer.BadParameter(f"{twice[0]} would be judged twice", param_hint="--also")
    if not fold:
        asked = [(read_dataset(name, source, split), path) for name, source in named]
    elif (numbers := re.fullmatch(r"([1-9]\d*)/(\d+)", fold)) and int(numbers[1]) <= int(numbers[2]):
        if checkpoint is None:
            raise typer.BadParameter(
                "the shipped model was not trained by folds; name a --checkpoint", param_hint="--fold"
            )
        number, folds = map(int, numbers.groups())
        held = (number - 1, folds)
        for name in names:
            check_fold(checkpoint, name, held)
        asked = [(read_fold(name, source, fold=held), path) for name, source in named]
    else:
        raise typer.BadParameter(f"{fold!r}; K/N is needed, from 1/N to N/N", param_hint="--fold")
    if voices:
        recordings = read_dataset(spoken, folder, split)
        pairs = match_by_label(asked[0][0], recordings)
        asked = [(pairs, TEXT), (recordings, VOICE), (pairs, FUSED)]
    for dataset, each in asked:
        check_path(dataset, each)
    if split == "test" and not fold and "tess" in (spoken, *names):
        logging.warning("TESS has no test split: this is all of it, and a model that learned from it knows most of it")
    scorer = EmotionScorer.load(checkpoint or SHIPPED, device=device, precision=precision)
    if voices and not scorer.voice_width:
        raise typer.BadParameter("this model reads texts alone", param_hint="--voices")
    results: list[Evaluation] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for dataset, each in asked:
            row = bar.add_task(dataset.name, total=len(dataset.examples))

            def on_progress(done: int, _total: int, row: Any = row) -> None:
                bar.update(row, completed=done)

            results.append(judge(scorer, dataset, path=each, on_progress=on_progress))
    if as_json:
        sys.stdout.write(msgspec.json.encode(results if len(results) > 1 else results[0]).decode() + "\n")
    else:
        console = Console()
        for result in results:
            print_evaluation(console, result)
    for overall in filter(None, (tweeteval_overall(results), *calibration_by_path(results))):
        (sys.stderr if as_json else sys.stdout).write(f"{overall}\n")
    if out is not None:
        write_reports(results, out)


def _task_and_folder(option: str, hint: str) -> tuple[str, Path]:
    """Read TASK=FOLDER."""
    task, _, folder = option.partition("=")
    if not folder:
        raise typer.BadParameter(f"{option!r}; TASK=FOLDER is needed", param_hint=hint)
    return task, Path(folder)


def _make_folder(folder: Path) -> None:
    """Make the folder of the reports now: that it cannot be made should not be found out when all is judged."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{folder} cannot be a folder: {error.strerror}", param_hint="--out") from error


def predict(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to score; - reads one per line, blank ones left out.")
    ] = None,
    clip: Annotated[
        list[Path] | None, typer.Option(help="Recording to score (WAV, FLAC, Ogg, MP3, M4A, WebM).")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="The first text and the first recording belong together, and so on.")
    ] = False,
    attributes: Annotated[
        str, typer.Option(help="Further answers, separated by commas; sentiment,irony,offensive,hate if not given.")
    ] = "",
    checkpoint: CheckpointFolder = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per answer.")] = False,
) -> None:
    """Score texts and recordings here and now, without Kafka."""
    from emostream.model.checkpoint import SHIPPED
    from emostream.model.samples import Scored, attribute_names
    from emostream.model.scorer import RECORDINGS_AT_ONCE, TEXTS_AT_ONCE, EmotionScorer

    clips = clip or []
    if texts == ["-"] or not (texts or clips):
        lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="replace")
        texts = [line.rstrip("\n") for line in lines]
    # What the shell hands over may hold bytes that are no UTF-8; they come as lone surrogates.
    given = [text.encode(errors="replace").decode() for text in texts or () if text.strip()]
    if not given and not clips:
        raise typer.BadParameter("there is no text to score", param_hint="TEXTS")
    if together and not len(given) == len(texts or ()) == len(clips):
        raise typer.BadParameter(
            f"{len(given)} texts that say something and {len(clips)} recordings make no pairs", param_hint="--together"
        )
    scorer = EmotionScorer.load(checkpoint or SHIPPED, device=device, attributes=attribute_names(attributes))
    asked = (
        list(zip(given, clips, strict=True))
        if together
        else [*((text, None) for text in given), *((None, file) for file in clips)]
    )
    failed: list[str] = []
    table = Table("what", "emotion", "confidence", "next", "further", "flags")
    at_once = RECORDINGS_AT_ONCE if clips else TEXTS_AT_ONCE
    for start in range(0, len(asked), at_once):
        readable, unread = _items(asked[start : start + at_once])
        failed += unread
        outcomes = scorer.score([item for _, item in readable]).outcomes
        for (text, file), outcome in zip((question for question, _ in readable), outcomes, strict=True):
            if not isinstance(outcome, Scored):
                failed.append(f"{text or _shown(file)}: {outcome.reason}: {outcome.error}")
            elif as_json:
                sys.stdout.write(_json_line(text, file, outcome) + "\n")
            else:
                table.add_row(*_table_row(text, file, outcome))
    if table.rows:
        Console().print(table)
    for line in failed:
        Console(stderr=True).print(Text(line), soft_wrap=True)
    if failed:
        raise typer.Exit(1)


_Question = tuple[str | None, Path | None]


def _items(questions: Sequence[_Question]) -> "tuple[list[tuple[_Question, Item]], list[str]]":
    """Return what can be scored, and a line about each recording that cannot be read."""
    from emostream.model.audio import decode_recording
    from emostream.model.errors import AudioError
    from emostream.model.scorer import Item

    items: list[tuple[_Question, Item]] = []
    failed: list[str] = []
    for text, file in questions:
        try:
            items.append(((text, file), Item(text=text, recording=decode_recording(file) if file else None)))
        except AudioError as error:
            failed.append(f"{_shown(file)}: {error.reason}: {error}")
        except OSError as error:
            failed.append(f"{_shown(file)}: {error.strerror}")
    return items, failed


def _ranked(outcome: "Scored") -> list[tuple[float, str]]:
    from emostream.model.samples import LABELS

    return sorted(zip(outcome.scores, LABELS, strict=True), reverse=True)


def _json_line(text: str | None, file: Path | None, outcome: "Scored") -> str:
    ranked = _ranked(outcome)
    line = {
        **({"text": text} if text is not None else {}),
        **({"clip": _shown(file)} if file is not None else {}),
        "emotion": ranked[0][1],
        "scores": {label: round(score, 6) for score, label in ranked},
        "modalities": outcome.modalities,
        "attributes": outcome.attributes,
        "flags": outcome.flags,
    }
    return msgspec.json.encode(line).decode()


def _shown(file: Path | None) -> str:
    """Return a file's name as text; bytes that are no UTF-8 come as lone surrogates, which nothing can print."""
    return os.fsencode(file).decode(errors="replace") if file is not None else ""


def _table_row(text: str | None, file: Path | None, outcome: "Scored") -> list[RenderableType]:
    ranked = _ranked(outcome)
    # What is not there goes without saying; --json says it, with confidences.
    labels = (answer.label for answer in outcome.attributes.values())
    further = ", ".join(label for label in labels if not label.startswith(("not-", "non_", "none")))
    what = " + ".join(filter(None, (text, Path(_shown(file)).name)))
    return [
        Text(what), ranked[0][1], f"{ranked[0][0]:.2f}", f"{ranked[1][1]} {ranked[1][0]:.2f}", further,
        ", ".join(outcome.flags),
    ]  # fmt: skip
