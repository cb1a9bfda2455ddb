"""A training recipe: a TOML file a person can read. Read by `emostream train`."""

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from emostream.model.errors import RecipeError
from emostream.model.features import Variant

RECIPES = Path(__file__).parent / "recipes"
SHIPPED_RECIPE = RECIPES / "emostream.toml"
"""The recipe of the shipped checkpoint; its card says what of it was made at another time."""

Positive = Annotated[int, Meta(gt=0)]
Rate = Annotated[float, Meta(gt=0)]


class DatasetChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One data set of a recipe.

    Attributes:
        name: Which reader (`datasets.readers`).
        folder: Its folder, relative to `--data`.
        class_weight_power: Classes weigh (1 / frequency) ** power in the loss; 0 is no weighting.
        judged: Whether its dev split judges the epochs, and fits the temperatures of paths; each head's own temperature
            is fitted in any case.
        emphasis: Multiplies how often its examples are drawn, beside those of the others.
    """

    name: str
    folder: str
    class_weight_power: float = 0.0
    judged: bool = True
    emphasis: Rate = 1.0


class Optimisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a stage descends: AdamW, rates that rise during warm-up and then fall linearly to 0.

    Attributes:
        epochs: Rounds; each is judged on development data, and the best is kept.
        batch_size: Examples per step (and per device, where there are several).
        learning_rate: Peak rate.
        warm_up_share: Share of all steps in which rates rise from 0.
        weight_decay: AdamW's decoupled L2 regularisation, on matrices only.
        label_smoothing: Probability mass spread over all labels.
        clip_norm: Gradients are scaled down to this norm.
    """

    epochs: Positive
    batch_size: Annotated[int, Meta(ge=3)]
    learning_rate: Rate
    warm_up_share: float = 0.1
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    clip_norm: float = 1.0


class VoiceOptimisation(Optimisation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How MobileNet descends, at `learning_rate`, and the head over it.

    Attributes:
        head_learning_rate: Peak rate of the head, which starts from nothing.
    """

    head_learning_rate: Rate


class TextOptimisation(Optimisation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the encoder descends, at `learning_rate` in its top layer, and the heads over it.

    Attributes:
        layer_decay: Factor on the rate per layer downwards; 1 trains all layers alike.
        head_learning_rate: Peak rate of the heads, which start from nothing.
    """

    layer_decay: float = 1.0
    head_learning_rate: Rate


class Teaching(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a run of the text stage learns from the answers of those before it: each head from every text.

    Source: Clark et al. 2019, arXiv:1907.04829, of whose students each head learns from its own data set alone.

    Attributes:
        share: At the head that a text is labelled for, the teachers' mean answer counts so much, the label the rest.
        others: Weight of their answer at each of the other heads.
    """

    share: Annotated[float, Meta(ge=0, le=1)]
    others: Annotated[float, Meta(ge=0)] = 0.0


class TextRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The text stage: an encoder and one head per question, all trained together.

    Attributes:
        encoder: RoBERTa- or BERT-family name on the hub, or folder (relative ones start at `--data`). It must bring
            safetensors and a fast tokenizer: vinai/bertweet-base, for one, does not.
        datasets: What it learns from; the dev split of each judges the epochs.
        emoji_to_words: For encoders whose vocabulary has no emoji.
        window_tokens: Longest row in tokens.
        head_width: Units of each head's dense layer.
        dropout: Dropout in the heads.
        examples_per_epoch: Texts drawn for one epoch; 0 draws as many as there are.
        sampling_power: A data set of n texts is drawn in proportion to n ** power; 1 is by size, 0 all alike.
        r_drop: Weight of the divergence between two passes with different dropout (Liang et al. 2021,
            arXiv:2106.14448); 0 makes one pass.
        runs: Trainings from the same first weights, each on texts in another order; the weights that they end with are
            averaged (Wortsman et al. 2022, arXiv:2203.05482), unless there is teaching.
        teaching: How those after the first learn from the ones before, and the last is what comes out; without it, all
            learn from labels alone.
    """

    encoder: str
    datasets: Annotated[tuple[DatasetChoice, ...], Meta(min_length=1)]
    optimisation: TextOptimisation
    emoji_to_words: bool = False
    window_tokens: Annotated[int, Meta(ge=16)] = 256
    head_width: Positive = 256
    dropout: float = 0.3
    examples_per_epoch: int = 0
    sampling_power: float = 1.0
    r_drop: float = 0.0
    runs: Positive = 1
    teaching: Teaching | None = None


class HeadRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The heads stage: some heads learn on, each by itself, on top of the finished encoder.

    Attributes:
        datasets: Names of data sets of the text stage whose heads do; each has one head.
        optimisation: How each descends.
        class_weight_power: As for a data set, in place of what the text stage did.
    """

    datasets: Annotated[tuple[str, ...], Meta(min_length=1)]
    optimisation: Optimisation
    class_weight_power: float = 0.0


class VoiceRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The voice stage: MobileNet over images of speech.

    Attributes:
        datasets: What it learns from.
        variant: `mel`, `chroma` or `both`, as in the paper.
        width_multiplier: MobileNet's.
        weights: What MobileNet starts from: YAMNet's AudioSet weights, a file relative to `--data`; or ImageNet weights
            by timm's name on the hub, such as `timm/mobilenetv1_100.ra4_e3600_r224_in1k`; empty starts from nothing.
        head_width: Units of the dense layer.
        dropout: Dropout in the head.
        examples_per_epoch: Recordings drawn for one epoch; 0 draws as many as there are.
        sampling_power: As in the text stage.
        crop_frames: Length of a training image in steps of 10 ms; a longer recording is cut at random.
        speeds: Factors of speed perturbation, drawn alike (Ko et al. 2015); (1.0,) is none.
        mixup: Alpha of mixup (Zhang et al. 2018, arXiv:1710.09412); 0 is none.
        mask_frames: Longest time mask of SpecAugment (Park et al. 2019, arXiv:1904.08779); 0 is none.
        mask_bands: Widest frequency mask.
        noise_db: White noise is added to half of the recordings, at a signal-to-noise ratio between these two.
    """

    datasets: Annotated[tuple[DatasetChoice, ...], Meta(min_length=1)]
    optimisation: VoiceOptimisation
    variant: Variant = "both"
    width_multiplier: float = 1.0
    weights: str = ""
    head_width: Positive = 256
    dropout: float = 0.3
    examples_per_epoch: int = 0
    sampling_power: float = 1.0
    crop_frames: Positive = 256
    speeds: Annotated[tuple[Rate, ...], Meta(min_length=1)] = (1.0,)
    mixup: float = 0.0
    mask_frames: int = 0
    mask_bands: int = 0
    noise_db: tuple[float, float] | None = None


class FusionRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fusion stage: the head over both branches, which stay as their stages left them.

    It learns from what the two stages learned from: texts alone, recordings alone, and pairs. A data set that has both
    gives its own pairs.

    Attributes:
        optimisation: How it descends.
        head_width: Units of the dense layer.
        dropout: The paper's 0.3.
        examples_per_epoch: Texts, recordings and pairs of an epoch.
        text_share: Share of texts alone; recordings alone and pairs share the rest alike. Where there are both a set's
            own pairs and matched ones, there are as many of each.
        sampling_power: As in the text stage, for texts alone and those of pairs.
        match_by_label: Pair texts and recordings of the same label where no data set has pairs of its own.
        voice_dropout: Share of a pair's voice vector that is dropped: the branch knows its own training speakers
            better than any it will meet, and the head must not trust it as much.
    """

    optimisation: Optimisation
    head_width: Positive = 256
    dropout: float = 0.3
    examples_per_epoch: Positive = 60_000
    text_share: Annotated[float, Meta(gt=0, lt=1)] = 1 / 3
    sampling_power: float = 1.0
    match_by_label: bool = True
    voice_dropout: float = 0.0


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides a training run, apart from where files lie.

    Attributes:
        name: Name of the model that comes out.
        version: Its version.
        text: The text stage.
        heads: The heads stage; without it, heads stay as the text stage left them.
        voice: The voice stage; without it, the model reads texts alone.
        fusion: The fusion stage.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` …; `--device` overrides it.
        precision: `auto`, `float32` or `bfloat16`.
        seed: Of everything random.
    """

    name: str
    version: str
    text: TextRecipe
    fusion: FusionRecipe
    heads: HeadRecipe | None = None
    voice: VoiceRecipe | None = None
    device: str = "auto"
    precision: str = "auto"
    seed: int = 7


def find_recipe(name: Path) -> Path:
    """Return the file of a recipe: the one that ships under this bare name, or else the one named."""
    shipped = RECIPES / f"{name}.toml"
    return shipped if name.name == str(name) and shipped.is_file() else name


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise RecipeError(f"recipe {file}: {error}") from error
