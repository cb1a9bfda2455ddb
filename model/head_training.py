"""The heads stage: some heads learn on, alone, from texts that the finished encoder pooled once. Run by `training`.

A head of many classes learns longer than the encoder it shares with the others: TweetEval's 20 emoji gain from epochs
that would spoil the smaller data sets, and on pooled vectors an epoch takes seconds. Each head ends with its own best
epoch: with one for emotion and emoji together, emoji lost what it had gained.

Legend: B texts of a batch, N texts, D width of a pooled text, C classes.
"""

import math
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from emostream.model.errors import RecipeError
from emostream.model.evaluation import Evaluation
from emostream.model.pooling import Compute
from emostream.model.recipe import HeadRecipe
from emostream.model.sampling import class_weights, soft_targets
from emostream.model.text_training import TextStage
from emostream.model.training_loop import Stage


class HeadStage(Stage):
    """One head that learns on, from what, and how it is judged. The text stage's own head is changed in place.

    Args:
        recipe: The stage's part of the recipe.
        dataset: Whose head: a data set of the text stage.
        text: The finished text stage.
        compute: Device and precision.
        seed: Of the order of texts.
    """

    def __init__(self, recipe: HeadRecipe, dataset: str, *, text: TextStage, compute: Compute, seed: int) -> None:
        super().__init__()
        self.name = f"heads, {dataset}"
        self.optimisation = recipe.optimisation
        self._compute, self._seed = compute, seed
        self._judge_pooled = text.judge_pooled  # not the stage itself: as a module it would be learned, and saved, too
        chosen, self._dev_set = (
            next(each for each in text.sets(split) if each.name == dataset) for split in ("train", "dev")
        )
        self._pooled_ND, self._dev_pooled_ND = text.pool(chosen), text.pool(self._dev_set)
        ((name, labels),) = chosen.classes.items()
        smoothing = self.optimisation.label_smoothing
        weights_C = class_weights(chosen, recipe.class_weight_power, torch.device("cpu"))[name]
        self._targets_NC = weights_C * soft_targets(
            [example.labels for example in chosen.examples], len(labels), smoothing=smoothing
        )
        self.head = text.heads[name]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, on one device."""
        return math.ceil(len(self._pooled_ND) / self.optimisation.batch_size)

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Yield batches of rows; every row once."""
        chance = random.Random(self._seed + epoch)
        size, rows = self.optimisation.batch_size, len(self._pooled_ND)
        order = chance.sample(range(rows), rows)
        batches = [order[start : start + size] for start in range(0, rows, size)]
        chance.shuffle(batches)
        yield from batches

    def forward(self, batch: list[int]) -> Tensor:
        """Return the batch's mean loss."""
        device = self._compute.device
        logits_BC = self.head(self._pooled_ND[batch].to(device))
        return -(self._targets_NC[batch].to(device) * functional.log_softmax(logits_BC, -1)).sum() / len(batch)

    def peak_rate(self, parameter: str) -> float:  # noqa: ARG002 - there is nothing but the head
        """Return the one rate."""
        return self.optimisation.learning_rate

    def judge(self) -> tuple[Evaluation, ...]:
        """Evaluate the development split of the head's data set."""
        return self._judge_pooled([self._dev_set], [self._dev_pooled_ND])

    def figure(self, evaluations: Sequence[Evaluation]) -> float:
        """Return the official metric."""
        (own,) = evaluations
        return own.official.value


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
