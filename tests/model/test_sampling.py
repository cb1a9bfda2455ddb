"""Which examples an epoch sees: all come equally often, and weights leave the mean loss where it was."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emostream.model.datasets import Dataset, Example
from emostream.model.recipe import DatasetChoice
from emostream.model.sampling import class_weights, draw, shares, shuffled_batches, soft_targets


@given(size=st.integers(1, 50), count=st.integers(1, 120), epochs=st.integers(1, 5), seed=st.integers(0, 9))
def test_over_the_epochs_all_come_equally_often(size: int, count: int, epochs: int, seed: int) -> None:
    drawn = Counter(index for epoch in range(epochs) for index in draw(size, count, epoch=epoch, seed=seed))
    assert sum(drawn.values()) == count * epochs
    assert max(drawn.values()) - min(drawn.get(index, 0) for index in range(size)) <= 1


def test_an_epoch_can_be_drawn_again() -> None:
    assert list(draw(10, 7, epoch=3, seed=1)) == list(draw(10, 7, epoch=3, seed=1))
    assert list(draw(10, 10, epoch=0, seed=1)) != list(draw(10, 10, epoch=1, seed=1))


def test_shares_follow_the_power() -> None:
    two = [DatasetChoice(name="a", folder="a"), DatasetChoice(name="b", folder="b")]
    assert shares([100, 400], two, total=0, power=1.0) == [100, 400]
    assert shares([100, 400], two, total=300, power=0.5) == [100, 200]
    assert shares([100, 400], two, total=300, power=0.0) == [150, 150]


def test_shares_follow_the_emphasis() -> None:
    stressed = [DatasetChoice(name="a", folder="a", emphasis=2.0), DatasetChoice(name="b", folder="b")]
    assert shares([100, 400], stressed, total=400, power=0.5) == [200, 200]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200))
def test_batches_cover_every_row_once(lengths: list[int]) -> None:
    batches = list(shuffled_batches(lengths, 8, seed=1))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) <= 8 for batch in batches)


def test_another_seed_is_another_order() -> None:
    assert list(shuffled_batches([5] * 100, 8, seed=1)) != list(shuffled_batches([5] * 100, 8, seed=2))


def test_soft_targets_share_and_smooth() -> None:
    targets = soft_targets([(0,), (1, 3)], 4, smoothing=0.2)
    torch.testing.assert_close(targets, torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.45, 0.05, 0.45]]))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_class_weights_have_a_mean_of_one(power: float) -> None:
    examples = tuple(Example(text="x", labels=(label,)) for label in [0] * 90 + [1] * 9 + [2])
    weights = class_weights(Dataset("d", "train", {"emotion": ("a", "b", "c")}, examples), power, torch.device("cpu"))
    weights_C = weights["emotion"]
    assert float((weights_C * torch.tensor([90.0, 9.0, 1.0])).sum() / 100) == pytest.approx(1)
    assert float(weights_C[2] / weights_C[0]) == pytest.approx(90**power)
