"""What each choice of the shipped recipe is worth: short trainings, each with one choice undone, on development data.

    make ablation DATA=…      every variant of both stages; more of them, longer: see --help

Every variant starts from the same seed; those that do not change how data sets are drawn see the same examples in the
same order. Each is judged by the best of its epochs, as training chooses. Runs are far shorter than the shipped one's:
read differences, not figures, and mind the spread between seeds that the first rows show.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from rich.progress import Progress

from emostream.model.device import choose_device, choose_precision
from emostream.model.pooling import Compute
from emostream.model.recipe import SHIPPED_RECIPE, TextRecipe, VoiceRecipe, read_recipe
from emostream.model.text_training import TextStage
from emostream.model.training_loop import Stage, run_stage
from emostream.model.voice_training import VoiceStage

replace = msgspec.structs.replace


def text_variants(base: TextRecipe) -> dict[str, TextRecipe]:
    """Return recipes of the text stage, each with one choice changed."""
    settings = base.optimisation
    unweighted = tuple(replace(choice, class_weight_power=0.0) for choice in base.datasets)
    even = tuple(replace(choice, emphasis=1.0) for choice in base.datasets)
    return {
        "as shipped": base,
        "emoji as they are": replace(base, emoji_to_words=False),
        "no class weights": replace(base, datasets=unweighted),
        "no emphasis": replace(base, datasets=even),
        "data sets by size": replace(base, sampling_power=1.0),
        "data sets alike": replace(base, sampling_power=0.0),
        "no label smoothing": replace(base, optimisation=replace(settings, label_smoothing=0.0)),
        "one rate for all layers": replace(base, optimisation=replace(settings, layer_decay=1.0)),
        "half the rate": replace(base, optimisation=replace(settings, learning_rate=settings.learning_rate / 2)),
        "R-Drop 1 (twice the work)": replace(base, r_drop=1.0),
    }


def voice_variants(base: VoiceRecipe) -> dict[str, VoiceRecipe]:
    """Return recipes of the voice stage, each with one choice changed."""
    return {
        "as shipped": base,
        "Mel alone": replace(base, variant="mel"),
        "chroma alone": replace(base, variant="chroma"),
        "from nothing": replace(base, weights=""),
        "no mixup": replace(base, mixup=0.0),
        "no SpecAugment": replace(base, mask_frames=0, mask_bands=0),
        "no speed perturbation": replace(base, speeds=(1.0,)),
        "no noise": replace(base, noise_db=None),
    }


def measure(stage: Stage, compute: Compute, *, seed: int, on_step: Callable[..., None]) -> list[tuple[str, float]]:
    """Train a stage, and return the figure that chose its epoch and the official metric of each data set."""
    with tempfile.TemporaryDirectory() as folder:
        best = run_stage(stage, folder=Path(folder), compute=compute, seed=seed, on_step=on_step).best
    each = [(evaluation.task.removeprefix("tweeteval/"), evaluation.official.value) for evaluation in best.evaluations]
    return [("chosen by", best.figure), *each]


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that the recipe's data sets are relative to")
    parser.add_argument("--stage", choices=["text", "voice"], required=True)
    parser.add_argument("--recipe", type=Path, default=SHIPPED_RECIPE, help="what is taken apart (the shipped recipe)")
    parser.add_argument("--epochs", type=int, help="of each run (2 for text, 6 for voice)")
    parser.add_argument("--examples", type=int, help="examples of an epoch (12,000 texts, 1,600 recordings)")
    parser.add_argument("--seeds", type=int, default=2, help="how often the unchanged recipe is trained (2)")
    parser.add_argument("--only", nargs="*", help="names of variants")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    device = choose_device("auto")
    compute = Compute(device, choose_precision("auto", device))
    recipe = read_recipe(options.recipe)
    base = recipe.text if options.stage == "text" else recipe.voice
    if base is None:
        raise SystemExit(f"{options.recipe} has no stage {options.stage}")
    examples = options.examples or (12_000 if options.stage == "text" else 1_600)
    epochs = options.epochs or (2 if options.stage == "text" else 6)
    base = replace(base, examples_per_epoch=examples, optimisation=replace(base.optimisation, epochs=epochs))
    variants = text_variants(base) if isinstance(base, TextRecipe) else voice_variants(base)
    runs = [(name, changed, recipe.seed) for name, changed in variants.items()]
    runs[1:1] = [(f"as shipped, seed {recipe.seed + n}", base, recipe.seed + n) for n in range(1, options.seeds)]
    console, rows = Console(stderr=True), []
    for name, changed, seed in runs:
        if options.only and name not in options.only:
            continue
        torch.manual_seed(seed)
        build = TextStage if isinstance(changed, TextRecipe) else VoiceStage
        stage = build(changed, data=options.data, compute=compute, seed=seed)  # type: ignore[arg-type]
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(name)

            def on_step(_stage: str, done: int, total: int, _loss: float, bar=bar, task=task) -> None:
                bar.update(task, completed=done, total=total)

            figures = measure(stage, compute, seed=seed, on_step=on_step)
        if not rows:
            print(f"{epochs} epochs of {examples} examples")
            print("| variant | " + " | ".join(column for column, _ in figures) + " |")
            print("|---|" + "---|" * len(figures))
        rows.append(figures)
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for _, value in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
