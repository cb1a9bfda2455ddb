"""The folder that holds a trained model. Written by training, read by the scorer and by evaluation.

    config.json         what the model is: labels, network, normalisation, token layout, temperature
    tokenizer.json      the tokenizer, as the tokenizers library writes it
    model.safetensors   the weights, as int8 rows (quantise.py)
    MODEL_CARD.md       what it was trained on, how, and how well it does; for people

Nothing in it is unpickled: loading a checkpoint runs no code from it.
"""

from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from emostream.model.encoder import build_encoder
from emostream.model.errors import CheckpointError
from emostream.model.network import TextEmotionModel
from emostream.model.normalise import Normalisation
from emostream.model.quantise import quantise_rows, widen_rows
from emostream.model.tokenise import TextTokenizer, TokenLayout

SHIPPED = Path(__file__).parent / "weights"
"""The checkpoint that comes with emostream."""

_FORMAT = 1
_CONFIG, _TOKENIZER, _WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"


class CheckpointConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `config.json` says.

    Attributes:
        name: The model's name, as it stands in every answer.
        version: Changes whenever the weights do.
        labels: The classes, in the order of the last layer.
        encoder: Settings of the encoder network.
        head_width: Units of the dense layer.
        dropout: Dropout in the head, used in training only.
        normalisation: Steps before tokenising.
        layout: Token ids and window sizes.
        temperature: What logits are divided by before softmax (Guo et al. 2017, arXiv:1706.04599).
        format: Version of this folder's layout.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    encoder: dict[str, Any]
    head_width: int
    dropout: float
    normalisation: Normalisation
    layout: TokenLayout
    temperature: float = 1.0
    format: int = _FORMAT


class Checkpoint(msgspec.Struct, frozen=True):
    """A trained model in memory: its configuration, its network in float32, its tokenizer."""

    config: CheckpointConfig
    network: TextEmotionModel
    tokenizer: TextTokenizer


def build_network(config: CheckpointConfig) -> TextEmotionModel:
    """Build the network of a configuration with fresh weights."""
    return TextEmotionModel(
        build_encoder(config.encoder),
        head_width=config.head_width,
        dropout=config.dropout,
        classes=len(config.labels),
    )


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint folder; its card, if it has one, stays."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.tokenizer.save(folder / _TOKENIZER)
    (folder / _CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(checkpoint.config), indent=2) + b"\n")
    save_file(quantise_rows(checkpoint.network.state_dict()), folder / _WEIGHTS)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; the network is in evaluation mode, in float32, on the CPU.

    Raises:
        CheckpointError: A file is missing or malformed, or the layout is of another version.
    """
    for name in (_CONFIG, _TOKENIZER, _WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no checkpoint: {name} is missing")
    try:
        config = msgspec.json.decode((folder / _CONFIG).read_bytes(), type=CheckpointConfig)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{folder / _CONFIG}: {error}") from error
    if config.format != _FORMAT:
        raise CheckpointError(f"{folder} has format {config.format}; this emostream reads format {_FORMAT}")
    network = build_network(config)
    try:
        network.load_state_dict(widen_rows(load_file(folder / _WEIGHTS)))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder / _WEIGHTS} does not fit its config.json: {error}") from error
    tokenizer = TextTokenizer.load(folder / _TOKENIZER, normalisation=config.normalisation, layout=config.layout)
    return Checkpoint(config=config, network=network.eval(), tokenizer=tokenizer)
