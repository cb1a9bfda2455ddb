"""What each choice of the shipped recipe is worth: short trainings, each with one choice undone, on development data.

    make ablation DATA=…      every variant of all stages; more of them, longer: see --help

Every variant starts from the same seed; those that do not change how data sets are drawn see the same examples in the
same order. Each is judged by the best of its epochs, as training chooses. Runs of the text and the voice stage are far
shorter than the shipped one's: read differences, not figures, and mind the spread between seeds that the first rows
show. The heads and the fusion stage learn from nothing, at full length, over the branches of a checkpoint, which read
the data once before.
"""

import argparse
import functools
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from emostream.model.checkpoint import SHIPPED, Checkpoint, load_checkpoint
from emostream.model.datasets import Dataset
from emostream.model.device import choose_device, choose_precision
from emostream.model.evaluation import Evaluation
from emostream.model.fusion_training import FusionStage
from emostream.model.head_training import HeadStage
from emostream.model.pooling import Compute
from emostream.model.recipe import (
    SHIPPED_RECIPE,
    FusionRecipe,
    HeadRecipe,
    Recipe,
    TextRecipe,
    VoiceRecipe,
    read_recipe,
)
from emostream.model.text_training import TextStage
from emostream.model.training_loop import Stage, run_stage
from emostream.model.voice_training import VoiceStage

replace = msgspec.structs.replace


def descending(base: Any, **changes: Any) -> Any:
    """Return a stage's recipe with something of its optimisation changed."""
    return replace(base, optimisation=replace(base.optimisation, **changes))


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
        "no label smoothing": descending(base, label_smoothing=0.0),
        "one rate for all layers": descending(base, layer_decay=1.0),
        "half the rate": descending(base, learning_rate=settings.learning_rate / 2),
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


def head_variants(base: HeadRecipe) -> dict[str, HeadRecipe]:
    """Return recipes of the heads stage, each with one choice changed."""
    settings = base.optimisation
    return {
        "as shipped": base,
        "no class weights": replace(base, class_weight_power=0.0),
        "class weights to the power 0.5": replace(base, class_weight_power=0.5),
        "class weights to the power 0.75": replace(base, class_weight_power=0.75),
        "a third of the epochs": descending(base, epochs=max(1, settings.epochs // 3)),
        "no label smoothing": descending(base, label_smoothing=0.0),
        "label smoothing 0.1": descending(base, label_smoothing=0.1),
        "weight decay 0.1": descending(base, weight_decay=0.1),
    }


def fusion_variants(base: FusionRecipe) -> dict[str, FusionRecipe]:
    """Return recipes of the fusion stage, each with one choice changed."""
    settings = base.optimisation
    return {
        "as shipped": base,
        "data sets by size": replace(base, sampling_power=1.0),
        "data sets by the root of their size": replace(base, sampling_power=0.5),
        "a third texts alone": replace(base, text_share=1 / 3),
        "nothing of the voice dropped": replace(base, voice_dropout=0.0),
        "dropout 0.1": replace(base, dropout=0.1),
        "dropout 0.5": replace(base, dropout=0.5),
        "label smoothing 0.05": descending(base, label_smoothing=0.05),
        "half the epochs": descending(base, epochs=max(1, settings.epochs // 2)),
        "twice the epochs": descending(base, epochs=2 * settings.epochs),
        "twice the rate": descending(base, learning_rate=2 * settings.learning_rate),
    }


Build = Callable[[Any, int], Stage]
"""A stage by a recipe of its own, and a seed."""


def from_nothing(stage: type[TextStage] | type[VoiceStage], *, data: Path, compute: Compute) -> Build:
    """Return what builds the text or the voice stage, as `emostream train` begins it."""

    def build(changed: Any, seed: int) -> Stage:
        torch.manual_seed(seed)
        return stage(changed, data=data, compute=compute, seed=seed)

    return build


def over_text(recipe: Recipe, checkpoint: Checkpoint, dataset: str, *, data: Path, compute: Compute) -> Build:
    """Return what builds the heads stage over a checkpoint's encoder, the head without what it learned."""
    text = finished_text(recipe, checkpoint, only=(dataset,), data=data, compute=compute)

    def build(changed: Any, seed: int) -> Stage:
        torch.manual_seed(seed)
        for module in text.heads.modules():
            if isinstance(module, torch.nn.Linear):
                module.reset_parameters()
        return HeadStage(changed, dataset, text=text, compute=compute, seed=seed)

    return build


def over_both(recipe: Recipe, checkpoint: Checkpoint, *, data: Path, compute: Compute) -> Build:
    """Return what builds the fusion stage over a checkpoint's branches."""
    text = finished_text(recipe, checkpoint, only=(), data=data, compute=compute)
    voice = None
    if recipe.voice is not None and checkpoint.network.voice is not None:
        voice = VoiceStage(recipe.voice, data=data, compute=compute, seed=recipe.seed)
        voice.branch.load_state_dict(checkpoint.network.voice.state_dict())
        voice.eval()
        voice.pooled = functools.cache(voice.pooled)  # type: ignore[method-assign]

    def build(changed: Any, seed: int) -> Stage:
        torch.manual_seed(seed)
        return FusionStage(changed, text=text, voice=voice, compute=compute, seed=seed)

    return build


def finished_text(
    recipe: Recipe, checkpoint: Checkpoint, *, only: tuple[str, ...], data: Path, compute: Compute
) -> TextStage:
    """Return a text stage with a checkpoint's encoder, which reads each data set once; `only` some sets, if named."""
    chosen = tuple(choice for choice in recipe.text.datasets if choice.name in only or not only)
    stage = TextStage(replace(recipe.text, datasets=chosen), data=data, compute=compute, seed=recipe.seed)
    stage.branch.load_state_dict(checkpoint.network.text.state_dict())
    stage.tokenizer = checkpoint.tokenizer
    stage.eval()
    pool, pooled = stage.pool, dict[tuple[str, ...], Tensor]()

    def pool_once(dataset: Dataset) -> Tensor:
        key = dataset.name, dataset.split, *dataset.texts
        if key not in pooled:
            pooled[key] = pool(dataset)
        return pooled[key]

    stage.pool = pool_once  # type: ignore[method-assign]
    return stage


def measure(stage: Stage, compute: Compute, *, seed: int, on_step: Callable[..., None]) -> list[tuple[str, float]]:
    """Train a stage, and return the figure that chose its epoch and the official metric of each data set."""
    with tempfile.TemporaryDirectory() as folder:
        best = run_stage(stage, folder=Path(folder), compute=compute, seed=seed, on_step=on_step).best
    return [("chosen by", best.figure), *(column for each in best.evaluations for column in columns(each, stage.name))]


def columns(evaluation: Evaluation, stage: str) -> list[tuple[str, float]]:
    """Return the official metric of a data set, and accuracy as well where few data sets are judged."""
    name = evaluation.task.removeprefix("tweeteval/")
    if evaluation.modalities != ("text",):
        name += f", {' + '.join(evaluation.modalities)}"
    accuracy = [] if stage == "text" else [(f"{name}: accuracy", evaluation.accuracy)]
    return [(name, evaluation.official.value), *accuracy]


def taken_apart(
    stage: str, recipe: Recipe, options: argparse.Namespace, compute: Compute
) -> tuple[Any, Mapping[str, Any], Build]:
    """Return the stage's own recipe, at the length asked for; its variants; and what builds it."""
    base: Any = getattr(recipe, stage)
    if base is None:
        raise SystemExit(f"{options.recipe} has no stage {stage}")
    short = {"text": (1, 32_000), "voice": (6, 1_600)}.get(stage, (None, None))
    if epochs := options.epochs or short[0]:
        base = descending(base, epochs=epochs)
    if (examples := options.examples or short[1]) and not isinstance(base, HeadRecipe):
        base = replace(base, examples_per_epoch=examples)
    if isinstance(base, TextRecipe):
        return base, text_variants(base), from_nothing(TextStage, data=options.data, compute=compute)
    if isinstance(base, VoiceRecipe):
        return base, voice_variants(base), from_nothing(VoiceStage, data=options.data, compute=compute)
    checkpoint = load_checkpoint(options.checkpoint)
    if isinstance(base, HeadRecipe):
        dataset = options.head or base.datasets[-1]
        if dataset not in base.datasets:
            raise SystemExit(f"the heads that learn on by {options.recipe} are those of {', '.join(base.datasets)}")
        head = over_text(recipe, checkpoint, dataset, data=options.data, compute=compute)
        return base, head_variants(base), head
    return base, fusion_variants(base), over_both(recipe, checkpoint, data=options.data, compute=compute)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that the recipe's data sets are relative to")
    parser.add_argument("--stage", choices=["text", "heads", "voice", "fusion"], required=True)
    parser.add_argument("--recipe", type=Path, default=SHIPPED_RECIPE, help="what is taken apart (the shipped recipe)")
    parser.add_argument("--epochs", type=int, help="of each run (1 for text, 6 for voice, the recipe's else)")
    parser.add_argument("--examples", type=int, help="of an epoch (32,000 texts, 1,600 recordings, else the recipe's)")
    parser.add_argument("--head", help="data set whose head is taken apart, by --stage heads (the recipe's last)")
    parser.add_argument("--seeds", type=int, default=2, help="how often the unchanged recipe is trained (2)")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="whose branches heads and fusion learn over")
    parser.add_argument("--only", nargs="*", help="names of variants")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    device = choose_device("auto")
    compute = Compute(device, choose_precision("auto", device))
    recipe = read_recipe(options.recipe)
    base, variants, build = taken_apart(options.stage, recipe, options, compute)
    epochs, examples = base.optimisation.epochs, getattr(base, "examples_per_epoch", "all")
    runs = [(name, changed, recipe.seed) for name, changed in variants.items()]
    runs[1:1] = [(f"as shipped, seed {recipe.seed + n}", base, recipe.seed + n) for n in range(1, options.seeds)]
    console, rows = Console(stderr=True), []
    for name, changed, seed in runs:
        if options.only and name not in options.only:
            continue
        with console.status(f"{name}: reading data, and what the branches make of it"):
            stage = build(changed, seed)
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
