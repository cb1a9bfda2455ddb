"""A training recipe: a TOML file a person can read. Read by `emostream train`."""

import tomllib
from pathlib import Path

import msgspec

from emostream.model.errors import RecipeError

SHIPPED_RECIPE = Path(__file__).parent / "recipes" / "text.toml"
"""The recipe that the shipped checkpoint was trained with."""


class DatasetChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One data set of a recipe: which reader, and its folder relative to `--data`."""

    name: str
    folder: str


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides a training run, apart from where files lie.

    Attributes:
        name: Name of the model that comes out.
        version: Its version.
        encoder: RoBERTa- or BERT-family name on the hub, or folder (relative ones start at `--data`).
        datasets: What it learns from; the dev split of each judges the epochs.
        emoji_to_words: For encoders whose vocabulary has no emoji.
        window_tokens: Longest row in tokens.
        head_width: Units of the dense layer.
        dropout: Dropout in the head.
        epochs: Passes over the training data.
        batch_size: Texts per step.
        encoder_learning_rate: Peak rate of the encoder's top layer.
        layer_decay: Factor on the rate per layer downwards; 1 trains all layers alike.
        head_learning_rate: Peak rate of the head.
        warm_up_share: Share of all steps in which rates rise from 0; afterwards they fall linearly to 0.
        weight_decay: AdamW's decoupled L2 regularisation, on matrices only.
        label_smoothing: Probability mass spread over all labels.
        class_weight_power: Classes weigh (1 / frequency) ** power in the loss; 0 is no weighting.
        clip_norm: Gradients are scaled down to this norm.
        precision: `auto`, `float32` or `bfloat16`.
        seed: Of everything random.
    """

    name: str
    version: str
    encoder: str
    datasets: tuple[DatasetChoice, ...]
    emoji_to_words: bool = False
    window_tokens: int = 256
    head_width: int = 256
    dropout: float = 0.3
    epochs: int = 4
    batch_size: int = 32
    encoder_learning_rate: float = 5e-5
    layer_decay: float = 1.0
    head_learning_rate: float = 5e-4
    warm_up_share: float = 0.1
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    class_weight_power: float = 0.5
    clip_norm: float = 1.0
    precision: str = "auto"
    seed: int = 7


def read_recipe(file: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: The file is missing, not TOML, or has an unknown key or a value of the wrong type.
    """
    try:
        with file.open("rb") as source:
            return msgspec.convert(tomllib.load(source), Recipe)
    except OSError as error:
        raise RecipeError(f"recipe {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RecipeError(f"recipe {file}: {error}") from error
