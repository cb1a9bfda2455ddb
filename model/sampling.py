"""Which examples a step of training sees, and how much they weigh. Used by the training stages.

Legend: B examples of a batch, C classes.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from emostream.model.datasets import Dataset, read_splits
from emostream.model.errors import RecipeError
from emostream.model.recipe import DatasetChoice

_CHUNK_BATCHES = 50
"""Batches whose rows are sorted by length together: little padding, and still a fresh shuffle every epoch."""

_TEXTS_PER_RECORDING = 5


def read_choices(
    choices: Sequence[DatasetChoice], *, data: Path, fold: tuple[int, int] | None
) -> tuple[list[Dataset], list[Dataset], list[Dataset]]:
    """Read a recipe's data sets: of each what is learned from and what is held out, and of the latter what judges.

    Args:
        choices: The data sets.
        data: Folder that theirs are relative to.
        fold: As for `read_splits`; a set that does not judge keeps its published splits.

    Raises:
        RecipeError: None of them judges.
        DatasetError: One is missing or malformed.
    """
    if not any(choice.judged for choice in choices):
        names = ", ".join(choice.name for choice in choices)
        raise RecipeError(f"none of {names} is judged: nothing to choose the best epoch by")
    splits = [
        read_splits(choice.name, data / choice.folder, fold=fold if choice.judged else None) for choice in choices
    ]
    learned, held = ([pair[side] for pair in splits] for side in (0, 1))
    return learned, held, [dataset for dataset, choice in zip(held, choices, strict=True) if choice.judged]


def shares(sizes: Sequence[int], choices: Sequence[DatasetChoice], *, total: int, power: float) -> list[int]:
    """Return how many examples of each data set an epoch draws.

    Args:
        sizes: Examples that each data set has.
        choices: What the recipe says of each.
        total: Examples of an epoch; 0 takes as many as there are.
        power: A data set of n examples is drawn in proportion to n ** power times its emphasis.
    """
    weights = [choice.emphasis * size**power for size, choice in zip(sizes, choices, strict=True)]
    return [round((total or sum(sizes)) * weight / sum(weights)) for weight in weights]


def draw(size: int, count: int, *, epoch: int, seed: int) -> Iterator[int]:
    """Yield `count` of `size` indices for an epoch; over the epochs, all come equally often.

    The epochs read one endless row of shuffles of all indices, each from where the last one stopped.
    """
    order: list[int] = []
    for position in range(epoch * count, (epoch + 1) * count):
        if position % size == 0 or not order:
            order = random.Random(f"{seed} {position // size}").sample(range(size), size)
        yield order[position % size]


def shuffled_batches(lengths: Sequence[int], batch_size: int, *, seed: int) -> Iterator[list[int]]:
    """Yield every index once, in batches of rows of similar length, in an order that the seed decides."""
    shuffler = random.Random(seed)
    order = shuffler.sample(range(len(lengths)), len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * _CHUNK_BATCHES):
        chunk = sorted(order[start : start + batch_size * _CHUNK_BATCHES], key=lengths.__getitem__)
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    shuffler.shuffle(batches)
    yield from batches


def pair_by_label(
    texts: Sequence[tuple[int, ...]], recordings: Sequence[tuple[int, ...]], *, seed: int
) -> list[tuple[int, int]]:
    """Return rows of a text and a recording that share a label: five texts, drawn by chance, for each recording.

    Args:
        texts: Labels of the texts; those with several are left out.
        recordings: Label of each recording; those that no text shares are left out.
        seed: Of the draw.
    """
    chance = random.Random(seed)
    partners = rows_by_label(texts)
    return [
        (chance.choice(partners[named[0]]), row)
        for row, named in enumerate(recordings)
        if named[0] in partners
        for _ in range(_TEXTS_PER_RECORDING)
    ]


def rows_by_label(labels: Sequence[tuple[int, ...]], among: Iterable[int] | None = None) -> dict[int, list[int]]:
    """Return the rows that have exactly one label, by that label; `among` some of them, if given."""
    rows: dict[int, list[int]] = {}
    for row in range(len(labels)) if among is None else among:
        if len(labels[row]) == 1:
            rows.setdefault(labels[row][0], []).append(row)
    return rows


def soft_targets(labels: Sequence[tuple[int, ...]], classes: int, *, smoothing: float) -> Tensor:
    """Return targets_BC: probability shared equally by the labels that raters named, a part of it spread over all."""
    targets_BC = torch.full((len(labels), classes), smoothing / classes)
    for row, named in enumerate(labels):
        targets_BC[row, list(named)] += (1 - smoothing) / len(named)
    return targets_BC


def class_weights(dataset: Dataset, power: float, device: torch.device) -> dict[str, Tensor]:
    """Return weights_C per head, (1 / frequency) ** power, with a mean of 1 over the data set's examples."""
    weights: dict[str, Tensor] = {}
    for head, labels in dataset.classes.items():
        counts_C = torch.zeros(len(labels))
        for example in dataset.examples:
            if example.head == head:
                counts_C[list(example.labels)] += 1 / len(example.labels)
        counts_C = counts_C.clamp(min=1)
        weights_C = (counts_C.sum() / counts_C) ** power
        weights[head] = (weights_C * counts_C.sum() / (weights_C * counts_C).sum()).to(device)
    return weights
