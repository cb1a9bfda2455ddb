"""The heads stage: some heads learn on, alone, from texts that the finished encoder pooled once. Run by `training`.

A head of many classes learns longer than the encoder it shares with the others: TweetEval's 20 emoji gain from epochs
that would spoil the smaller data sets, and on pooled vectors an epoch takes seconds.

Legend: B texts of a batch, N texts, D width of a pooled text, C classes.
"""

import math
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from emostream.model.errors import RecipeError
from emostream.model.evaluation import Evaluation
from emostream.model.pooling import Compute
from emostream.model.recipe import HeadRecipe
from emostream.model.sampling import class_weights, soft_targets
from emostream.model.text_training import TextStage
from emostream.model.training_loop import Stage


class HeadStage(Stage):
    """Which heads learn on, from what, and how they are judged. The text stage's own heads are changed in place.

    Args:
        recipe: The stage's part of the recipe.
        text: The finished text stage.
        compute: Device and precision.
        seed: Of the order of texts.
    """

    name = "heads"

    def __init__(self, recipe: HeadRecipe, *, text: TextStage, compute: Compute, seed: int) -> None:
        super().__init__()
        self.optimisation = recipe.optimisation
        self._compute, self._seed = compute, seed
        # Not the stage itself: as a module it would be learned, and saved, along with its heads.
        self._judge_pooled, self._figure = text.judge_pooled, text.figure
        known = {dataset.name: dataset for dataset in text.sets("train")}
        chosen = [known[name] for name in recipe.datasets]
        self._names = [next(iter(dataset.classes)) for dataset in chosen]
        self._dev_sets = [dataset for dataset in text.sets("dev") if dataset.name in recipe.datasets]
        self._dev_pooled = [text.pool(dataset) for dataset in self._dev_sets]
        self._pooled_ND = [text.pool(dataset) for dataset in chosen]
        self._targets_NC = [
            soft_targets(
                [example.labels for example in dataset.examples],
                len(dataset.classes[name]),
                smoothing=self.optimisation.label_smoothing,
            )
            * class_weights(dataset, recipe.class_weight_power, torch.device("cpu"))[name]
            for dataset, name in zip(chosen, self._names, strict=True)
        ]
        self.heads = nn.ModuleDict({name: text.heads[name] for name in self._names})

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, on one device."""
        return sum(math.ceil(len(rows) / self.optimisation.batch_size) for rows in self._pooled_ND)

    def batches(self, epoch: int) -> Iterator[tuple[int, list[int]]]:
        """Yield batches of one data set's rows, with its number; every row once."""
        chance = random.Random(self._seed + epoch)
        size = self.optimisation.batch_size
        batches = []
        for number, rows in enumerate(self._pooled_ND):
            order = chance.sample(range(len(rows)), len(rows))
            batches += [(number, order[start : start + size]) for start in range(0, len(order), size)]
        chance.shuffle(batches)
        yield from batches

    def forward(self, batch: tuple[int, list[int]]) -> Tensor:
        """Return the batch's mean loss."""
        number, rows = batch
        device = self._compute.device
        logits_BC = self.heads[self._names[number]](self._pooled_ND[number][rows].to(device))
        targets_BC = self._targets_NC[number][rows].to(device)
        return -(targets_BC * functional.log_softmax(logits_BC, -1)).sum() / len(rows)

    def peak_rate(self, parameter: str) -> float:  # noqa: ARG002 - there is nothing but heads
        """Return the one rate."""
        return self.optimisation.learning_rate

    def judge(self) -> tuple[Evaluation, ...]:
        """Evaluate the development splits of these heads' data sets."""
        return self._judge_pooled(self._dev_sets, self._dev_pooled)

    def figure(self, evaluations: Sequence[Evaluation]) -> float:
        """Return the mean of the official metrics."""
        return self._figure(evaluations)


def check_heads(recipe: HeadRecipe, *, text: TextStage) -> None:
    """Find out early whether the heads stage can do what it is to.

    Raises:
        RecipeError: A data set named is none of the text stage's, has several heads, or is not judged.
    """
    fit = {dataset.name for dataset in text.sets("train") if len(dataset.classes) == 1}
    judged = {dataset.name for dataset in text.sets("dev")}
    for name in recipe.datasets:
        if name not in fit:
            raise RecipeError(f"heads: {name!r} is none of the text stage's data sets with one head each")
        if name not in judged:
            raise RecipeError(f"heads: {name!r} is not judged: nothing to choose the best epoch by")
