"""How the voice does on speakers it never heard: the recipe's voice stage, cross-validated over all speakers.

    make voice-folds DATA=… OUT=…      five folds of the shipped recipe; 2.5 hours on two cores

In each fold a fifth of the speakers is held out. The voice stage learns from the others, and over it and the text
branch of a checkpoint the fusion head; both are taken as their last epoch left them, so that who is held out chooses
nothing. All that a fold's held-out speakers do is fit a temperature; the calibration error is that of each fold at the
geometric mean of the *other* folds' temperatures, which were fitted on other speakers' recordings.

Every speaker under DATA takes part: leave those of a test split out of it, if that is to judge the temperatures.

State is kept under --out: a run that was interrupted goes on when the same command is given again.
"""

import argparse
import logging
from pathlib import Path
from statistics import fmean, geometric_mean, stdev

import msgspec
import numpy as np
import torch
from ablate import descending, finished_text
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor

from emostream.model.checkpoint import SHIPPED, load_checkpoint
from emostream.model.datasets import PAIRS, Dataset, require_folds
from emostream.model.device import choose_device, choose_precision
from emostream.model.errors import ModelError
from emostream.model.evaluation import Evaluation, evaluate_scores
from emostream.model.fusion_training import FusionStage
from emostream.model.pooling import Compute
from emostream.model.recipe import SHIPPED_RECIPE, Recipe, read_recipe
from emostream.model.samples import FUSED, MODALITIES, VOICE
from emostream.model.text_training import TextStage
from emostream.model.training import claim_run, make_small
from emostream.model.training_loop import Progress as ProgressOfStage
from emostream.model.training_loop import Stage, run_stage
from emostream.model.voice_training import VoiceStage


class Fold(msgspec.Struct):
    """What one fold's held-out speakers, and pairs with their recordings, were answered: by path.

    Attributes:
        answers: The examples, and logits_NC before any temperature.
        temperatures: What these examples ask for.
    """

    answers: dict[str, tuple[Dataset, Tensor]]
    temperatures: dict[str, float]

    @property
    def speakers(self) -> list[str]:
        """Return who is held out."""
        return sorted({example.group for example in self.answers[VOICE][0].examples})


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that the recipe's data sets are relative to")
    parser.add_argument("--out", type=Path, required=True, help="where the folds' state is kept, 50 MB each")
    parser.add_argument("--folds", type=int, default=5, help="how many (5)")
    parser.add_argument("--epochs", type=int, help="of the voice stage (the recipe's)")
    parser.add_argument("--recipe", type=Path, default=SHIPPED_RECIPE, help="whose voice stage (the shipped recipe)")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="whose text branch (the shipped model)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    recipe = read_recipe(options.recipe)
    if recipe.voice is None:
        raise SystemExit(f"{options.recipe} has no voice stage")
    if options.epochs:
        recipe = msgspec.structs.replace(recipe, voice=descending(recipe.voice, epochs=options.epochs))
    device = choose_device("auto")
    compute = Compute(device, choose_precision("auto", device))
    checkpoint = load_checkpoint(options.checkpoint)
    console = Console(stderr=True)
    text = finished_text(recipe, checkpoint, only=(), data=options.data, compute=compute)
    folds = []
    with Progress(console=console, transient=True) as bar:
        for number in range(options.folds):
            task = bar.add_task(f"fold {number + 1} of {options.folds}")

            def on_step(stage: str, done: int, total: int, _loss: float, task=task, number=number) -> None:
                bar.update(task, description=f"fold {number + 1}, {stage}", completed=done, total=total)

            run = options.out / f"fold-{number + 1}"
            fold = number, options.folds
            folds.append(held_out(recipe, text, fold, data=options.data, run=run, compute=compute, on_step=on_step))
    print_folds(folds)


def held_out(
    recipe: Recipe,
    text: TextStage,
    fold: tuple[int, int],
    *,
    data: Path,
    run: Path,
    compute: Compute,
    on_step: ProgressOfStage,
) -> Fold:
    """Train one fold, and return what is answered about the speakers whom it holds out."""

    def to_the_end(stage: Stage, name: str, **more) -> None:
        run_stage(stage, folder=run / name, compute=compute, seed=recipe.seed, on_step=on_step, **more)
        stage.load_state_dict(load_file(run / name / f"epoch-{stage.optimisation.epochs}.safetensors"))
        stage.eval()

    claim_run(run, recipe, fold).write(run)
    torch.manual_seed(recipe.seed)
    voice = VoiceStage(recipe.voice, data=data, compute=compute, seed=recipe.seed, fold=fold)
    require_folds(voice.sets("dev"))
    to_the_end(voice, "voice")
    make_small(voice.branch)
    torch.manual_seed(recipe.seed)
    fusion = FusionStage(recipe.fusion, text=text, voice=voice, compute=compute, seed=recipe.seed)
    to_the_end(fusion, "fusion", built_on=[text.branch, voice.branch])
    answers: dict[str, tuple[Dataset, Tensor]] = {}
    for dataset, path, logits_NC in fusion.answers():
        if dataset.is_fold and (path == FUSED or dataset.name != PAIRS):  # pairs are answered by their halves, too
            answers[path] = dataset, logits_NC
    return Fold(answers, fusion.temperatures())


def print_folds(folds: list[Fold]) -> None:
    """Print a table of folds, and what they come to."""
    print("| speakers held out | n | recall | temperature: voice | fused | ECE, others' temperature | by chance |")
    print("|---|---|---|---|---|---|---|")
    recalls = []
    for fold in folds:
        voice = judge(folds, VOICE, only=fold)
        recalls.append(voice.uar)
        print(
            f"| {', '.join(fold.speakers)} | {voice.n} | {voice.uar:.3f} | {fold.temperatures[VOICE]:.2f} | "
            f"{fold.temperatures[FUSED]:.2f} | {voice.ece:.3f} | {voice.ece_by_chance:.3f} |"
        )
    voice, pairs = judge(folds, VOICE), judge(folds, FUSED)
    means = [geometric_mean(fold.temperatures[path] for fold in folds) for path in (VOICE, FUSED)]
    print(
        f"| all | {voice.n} | {fmean(recalls):.3f} ± {stdev(recalls):.3f} | {means[0]:.3f} | {means[1]:.3f} | "
        f"{voice.ece:.3f} | {voice.ece_by_chance:.3f} |"
    )
    print(f"accuracy {voice.accuracy:.3f}, macro-F1 {voice.macro_f1:.3f}; recall by label: "
          + ", ".join(f"{label} {figures.recall:.2f}" for label, figures in voice.per_class.items()))  # fmt: skip
    print("right by speaker: " + ", ".join(f"{name} {right:.2f}" for name, right in by_speaker(folds).items()))
    print(f"{pairs.n} pairs of both: accuracy {pairs.accuracy:.3f}, ECE {pairs.ece:.3f}")


def judge(folds: list[Fold], path: str, *, only: Fold | None = None) -> Evaluation:
    """Judge all folds together, or one of them, each at the geometric mean of the other folds' temperatures."""
    scores, examples = [], []
    for fold in folds:
        if only is None or fold is only:
            others = geometric_mean(other.temperatures[path] for other in folds if other is not fold)
            dataset, logits_NC = fold.answers[path]
            scores.append(torch.softmax(logits_NC / others, -1).numpy())
            examples += dataset.examples
    together = msgspec.structs.replace(dataset, examples=tuple(examples))
    return evaluate_scores(together, np.concatenate(scores), modalities=MODALITIES[path])


def by_speaker(folds: list[Fold]) -> dict[str, float]:
    """Return the share of each speaker's recordings that are answered right."""
    right: dict[str, list[bool]] = {}
    for fold in folds:
        dataset, logits_NC = fold.answers[VOICE]
        for example, answer in zip(dataset.examples, logits_NC.argmax(1).tolist(), strict=True):
            right.setdefault(example.group, []).append(example.labels == (answer,))
    return {speaker: fmean(right[speaker]) for speaker in sorted(right)}


if __name__ == "__main__":
    try:
        main()
    except ModelError as error:
        raise SystemExit(str(error)) from error
