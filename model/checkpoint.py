"""The folder that holds a trained model. Written by training, read by the scorer and by evaluation.

    config.json         what the model is: labels, network, normalisation, token layout, temperatures
    tokenizer.json      the tokenizer, as the tokenizers library writes it
    model.safetensors   the weights, as int8 rows (quantise.py)
    MODEL_CARD.md       what it was trained on, how, and how well it does; for people

Nothing in it is unpickled: loading a checkpoint runs no code from it.
"""

from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from emostream.model.encoder import build_encoder
from emostream.model.errors import CheckpointError
from emostream.model.features import Variant
from emostream.model.network import FusedEmotionModel, FusionHead, TextBranch, VoiceBranch, build_heads
from emostream.model.normalise import Normalisation
from emostream.model.quantise import quantise_rows, widen_rows
from emostream.model.samples import FUSED, TEXT, VOICE
from emostream.model.tokenise import TextTokenizer, TokenLayout

SHIPPED = Path(__file__).parent / "weights"
"""The checkpoint that comes with emostream."""

_FORMAT = 2
_CONFIG, _TOKENIZER, _WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"


class VoiceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the voice branch is built from."""

    variant: Variant
    width_multiplier: float


class CheckpointConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `config.json` says.

    Attributes:
        name: The model's name, as it stands in every answer.
        version: Changes whenever the weights do.
        labels: The classes, in the order of the fusion head's last layer.
        attributes: Classes of each further head over the text.
        encoder: Settings of the text encoder.
        voice: Settings of the voice branch; None for a model that reads texts alone.
        fusion_width: Units of the fusion head's dense layer.
        attribute_width: Units of the other heads' dense layers.
        normalisation: Steps before tokenising.
        layout: Token ids and window sizes.
        temperatures: What logits are divided by before softmax, by path and by attribute
            (Guo et al. 2017, arXiv:1706.04599).
        format: Version of this folder's layout.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    encoder: dict[str, Any]
    voice: VoiceSettings | None
    fusion_width: int
    attribute_width: int
    normalisation: Normalisation
    layout: TokenLayout
    temperatures: dict[str, float]
    format: int = _FORMAT


class _Format(msgspec.Struct):
    """The one thing that every version of `config.json` says."""

    format: int


class Checkpoint(msgspec.Struct, frozen=True):
    """A trained model in memory: its configuration, its network in float32, its tokenizer."""

    config: CheckpointConfig
    network: FusedEmotionModel
    tokenizer: TextTokenizer


def build_network(config: CheckpointConfig) -> FusedEmotionModel:
    """Build the network of a configuration with fresh weights, for use: without dropout."""
    text = TextBranch(build_encoder(config.encoder))
    voice = None
    if config.voice is not None:
        voice = VoiceBranch(variant=config.voice.variant, width_multiplier=config.voice.width_multiplier)
    fusion = FusionHead(
        text_width=text.width,
        voice_width=voice.width if voice else 0,
        width=config.fusion_width,
        dropout=0.0,
        classes=len(config.labels),
    )
    attributes = build_heads(config.attributes, width_in=text.width, width=config.attribute_width, dropout=0.0)
    return FusedEmotionModel(text=text, voice=voice, fusion=fusion, attributes=attributes)


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint folder; its card, if it has one, stays."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.tokenizer.save(folder / _TOKENIZER)
    (folder / _CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(checkpoint.config), indent=2) + b"\n")
    weights = save(quantise_rows(checkpoint.network.state_dict()))
    (folder / _WEIGHTS).write_bytes(weights)  # a file of safetensors' own `save_file` is for its owner alone


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; the network is in evaluation mode, in float32, on the CPU.

    Raises:
        CheckpointError: A file is missing or malformed, or the layout is of another version.
    """
    for name in (_CONFIG, _TOKENIZER, _WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no checkpoint: {name} is missing")
    text = (folder / _CONFIG).read_bytes()
    try:
        version = msgspec.json.decode(text, type=_Format).format
        if version != _FORMAT:
            raise CheckpointError(f"{folder} has format {version}; this emostream reads format {_FORMAT}")
        config = msgspec.json.decode(text, type=CheckpointConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / _CONFIG}: {error}") from error
    asked = {*config.attributes, *((TEXT,) if config.voice is None else (TEXT, VOICE, FUSED))}
    if unfitted := sorted(asked - config.temperatures.keys()):
        raise CheckpointError(f"{folder / _CONFIG} has no temperature for {', '.join(unfitted)}")
    network = build_network(config)
    try:
        network.load_state_dict(widen_rows(load_file(folder / _WEIGHTS)))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder / _WEIGHTS} does not fit its config.json: {error}") from error
    try:
        tokenizer = TextTokenizer.load(folder / _TOKENIZER, normalisation=config.normalisation, layout=config.layout)
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise CheckpointError(f"{folder / _TOKENIZER}: {error}") from error
    return Checkpoint(config=config, network=network.eval(), tokenizer=tokenizer)
