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
from sklearn.metrics import recall_score

from emostream.model.checkpoint import SHIPPED, load_checkpoint
from emostream.model.datasets import require_folds
from emostream.model.device import choose_device, choose_precision
from emostream.model.evaluation import chance_calibration_error, expected_calibration_error, first_labels
from emostream.model.fusion_training import FusionStage
from emostream.model.pooling import Compute
from emostream.model.recipe import SHIPPED_RECIPE, Recipe, read_recipe
from emostream.model.samples import FUSED, VOICE
from emostream.model.text_training import TextStage
from emostream.model.training import make_small
from emostream.model.training_loop import Progress as ProgressOfStage
from emostream.model.training_loop import Stage, run_stage
from emostream.model.voice_training import VoiceStage


class Fold(msgspec.Struct):
    """What a fold's held-out speakers were answered, N recordings of C labels."""

    speakers: np.ndarray
    truth_N: np.ndarray
    logits_NC: torch.Tensor
    temperatures: dict[str, float]
    """By path, as this fold's held-out recordings, and pairs with these, would have them."""

    @property
    def right_N(self) -> np.ndarray:
        """Return which answers are right."""
        return self.logits_NC.argmax(1).numpy() == self.truth_N

    @property
    def recall(self) -> float:
        """Return the unweighted average recall."""
        return float(recall_score(self.truth_N, self.logits_NC.argmax(1), average="macro"))

    def confidence_N(self, temperature: float) -> np.ndarray:
        """Return the highest score of each answer."""
        return torch.softmax(self.logits_NC / temperature, 1).amax(1).numpy()


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
    claim(options.out, recipe, options.folds)
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


def claim(out: Path, recipe: Recipe, folds: int) -> None:
    """Write down what a folder is for, and refuse one that is for something else: its voices heard other speakers."""
    out.mkdir(parents=True, exist_ok=True)
    file, what = out / "recipe.json", msgspec.json.encode({"recipe": recipe, "folds": folds})
    if file.exists() and file.read_bytes() != what:
        raise SystemExit(f"{out} holds folds of another recipe, or another number of them; choose another folder")
    file.write_bytes(what)


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

    torch.manual_seed(recipe.seed)
    voice = VoiceStage(recipe.voice, data=data, compute=compute, seed=recipe.seed, fold=fold)
    require_folds(voice.sets("dev"))
    to_the_end(voice, "voice")
    make_small(voice.branch)
    torch.manual_seed(recipe.seed)
    fusion = FusionStage(recipe.fusion, text=text, voice=voice, compute=compute, seed=recipe.seed)
    to_the_end(fusion, "fusion", built_on=[text.branch, voice.branch])
    dataset, pooled_NV = next(pair for pair in voice.pooled("dev") if pair[0].is_fold)
    with torch.no_grad():
        logits_NC = fusion.fusion(None, pooled_NV.to(compute.device)).float().cpu()
    speakers = np.array([example.group for example in dataset.examples])
    return Fold(speakers, first_labels(dataset.examples), logits_NC, fusion.temperatures())


def print_folds(folds: list[Fold]) -> None:
    """Print a table of folds, and what they come to."""
    print("| speakers held out | n | recall | temperature: voice | fused | ECE, others' temperature | by chance |")
    print("|---|---|---|---|---|---|---|")
    confidences = []
    for fold in folds:
        others = geometric_mean(other.temperatures[VOICE] for other in folds if other is not fold)
        confidence_N = fold.confidence_N(others)
        confidences.append(confidence_N)
        error, chance = expected_calibration_error(confidence_N, fold.right_N), chance_calibration_error(confidence_N)
        print(
            f"| {', '.join(sorted(set(fold.speakers)))} | {len(fold.truth_N)} | {fold.recall:.3f} | "
            f"{fold.temperatures[VOICE]:.2f} | {fold.temperatures[FUSED]:.2f} | {error:.3f} | {chance:.3f} |"
        )
    every_N, right_N = np.concatenate(confidences), np.concatenate([fold.right_N for fold in folds])
    recalls = [fold.recall for fold in folds]
    voice, fused = (geometric_mean(fold.temperatures[path] for fold in folds) for path in (VOICE, FUSED))
    print(
        f"| all | {len(every_N)} | {fmean(recalls):.3f} ± {stdev(recalls):.3f} | {voice:.3f} | {fused:.3f} | "
        f"{expected_calibration_error(every_N, right_N):.3f} | {chance_calibration_error(every_N):.3f} |"
    )
    speakers = np.concatenate([fold.speakers for fold in folds])
    print(
        "right by speaker: "
        + ", ".join(f"{speaker} {right_N[speakers == speaker].mean():.2f}" for speaker in np.unique(speakers))
    )


if __name__ == "__main__":
    main()
