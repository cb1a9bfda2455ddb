"""Training, for real but small: it learns, and an interrupted run ends as an uninterrupted one."""

import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from emostream.model.checkpoint import load_checkpoint
from emostream.model.errors import RecipeError
from emostream.model.recipe import SHIPPED_RECIPE, DatasetChoice, Recipe, read_recipe
from emostream.model.scorer import TextScorer
from emostream.model.training import shuffled_batches, train

CODES = {"anger": "a", "joy": "j", "neutral": "n"}


@pytest.fixture(scope="session")
def data(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in which one letter gives the emotion away."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(tiny_bert, folder / "encoder")
    rows = [f'"{"the " * (i % 5)}{letter} so",{emotion}' for i in range(40) for emotion, letter in CODES.items()]
    for split in ("train", "dev"):
        (folder / f"{split}_sent_emo.csv").write_text("\n".join(["Utterance,Emotion", *rows]) + "\n")
    return folder


RECIPE = Recipe(
    name="tiny",
    version="0",
    encoder="encoder",
    datasets=(DatasetChoice("meld", "."),),
    window_tokens=32,
    head_width=16,
    epochs=6,
    batch_size=8,
    encoder_learning_rate=2e-3,
    head_learning_rate=5e-3,
    precision="float32",
)


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    steps: list[tuple[int, int]] = []
    train(RECIPE, data=data, run=folder, device="cpu", on_step=lambda done, total, _: steps.append((done, total)))
    assert steps == [(done, 90) for done in range(1, 91)]
    return folder


def test_it_learns(run: Path) -> None:
    scorer = TextScorer.load(run / "best", device="cpu", precision="float32")
    outcomes = scorer.score(["the a so", "j so", "the the n so"]).outcomes
    answers = [max(range(7), key=outcome.scores.__getitem__) for outcome in outcomes]
    assert answers == [0, 3, 4]


def test_an_interrupted_run_ends_as_an_uninterrupted_one(run: Path, data: Path, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(done: int, _total: int, _loss: float) -> None:
        if done == 20:  # in the middle of the second epoch
            raise Interrupted

    with pytest.raises(Interrupted):
        train(RECIPE, data=data, run=tmp_path, device="cpu", on_step=interrupt)
    train(RECIPE, data=data, run=tmp_path, device="cpu")
    whole, resumed = load_checkpoint(run / "best"), load_checkpoint(tmp_path / "best")
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_folder_of_another_recipe_is_left_alone(run: Path, data: Path) -> None:
    with pytest.raises(RecipeError, match="another recipe"):
        train(msgspec.structs.replace(RECIPE, epochs=9), data=data, run=run)


def test_every_row_comes_once_an_epoch_in_another_order() -> None:
    rows = [msgspec.defstruct("Row", ["ids"])(ids=(0,) * (i % 9 + 1)) for i in range(1000)]
    first, second = ([id(row) for batch in shuffled_batches(rows, 32, seed=seed) for row in batch] for seed in (1, 2))
    assert sorted(first) == sorted(second) == sorted(map(id, rows))
    assert first != second


def test_shipped_recipe_is_readable() -> None:
    assert read_recipe(SHIPPED_RECIPE).datasets[0].name == "goemotions"


@pytest.mark.parametrize(
    ("content", "said"), [("epochs = ", "recipe"), ('name = "x"\nepoch = 3', "epoch"), ("name = 7", "str")]
)
def test_a_malformed_recipe_says_what_is_wrong(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "r.toml").write_text(content)
    with pytest.raises(RecipeError, match=said):
        read_recipe(tmp_path / "r.toml")
