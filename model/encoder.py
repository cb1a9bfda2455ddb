"""A BERT or RoBERTa checkpoint, by name or folder -> `RobertaModel`. Called by training and by `checkpoint`.

BERT's encoder and RoBERTa's are the same network; they differ in where positions start to count and in BERT's
token types. So BERT weights fit `RobertaModel` exactly: position row p goes to row p + pad_token_id + 1, and
the embedding of token type 0, the only one a single text has, stays the only row of that table.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

from emostream.model.errors import RecipeError
from emostream.model.normalise import Normalisation
from emostream.model.tokenise import TextTokenizer, TokenLayout

_ROBERTAS = ("roberta", "xlm-roberta", "camembert")
"""Families whose network is RoBERTa's, under three names."""

_SHARED_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)

_OVERLAP_PARTS = 8
"""Neighbouring windows share an eighth of their tokens: a sentence or two, at little extra work."""


def find_encoder(name: str, data: Path) -> str:
    """Return the folder of an encoder, where there is one under `data`, or its name, for the hub.

    Args:
        name: A folder, relative to `data`, or a name on the hub, `OWNER/NAME`.
        data: Where `name` or `encoders/NAME` may lie: a copy of what the hub has.
    """
    places = (data / name, data / "encoders" / name.rpartition("/")[2])
    return next((str(place) for place in places if place.is_dir()), name)


def load_pretrained_encoder(name_or_folder: str) -> RobertaModel:
    """Load a RoBERTa- or BERT-family encoder in float32, without its pooler; its weights must be safetensors.

    Args:
        name_or_folder: A folder in the layout of transformers, or a name on the Hugging Face hub.

    Raises:
        RecipeError: Nothing of that name is to be had, or it is of another family.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_folder)
        family = config.model_type
        if family not in ("bert", *_ROBERTAS):
            raise RecipeError(
                f"encoder {name_or_folder!r} is of the family {family!r}; BERT and RoBERTa encoders fit here"
            )
        pretrained = AutoModel.from_pretrained(
            name_or_folder, dtype=torch.float32, add_pooling_layer=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"encoder {name_or_folder!r} cannot be loaded: {error}") from error
    if family == "bert":
        return _as_roberta(pretrained)
    encoder = build_encoder({**config.to_dict(), "type_vocab_size": 1})
    encoder.load_state_dict(pretrained.state_dict())
    return encoder


def load_pretrained_tokenizer(
    name_or_folder: str, *, normalisation: Normalisation, window_tokens: int
) -> TextTokenizer:
    """Load the tokenizer that belongs to an encoder.

    Raises:
        RecipeError: There is none, or only one that is written in Python.
    """
    try:
        pretrained = AutoTokenizer.from_pretrained(name_or_folder)
    except (OSError, ValueError) as error:
        raise RecipeError(f"no encoder {name_or_folder!r}, neither under --data nor on the hub: {error}") from error
    if not pretrained.is_fast:
        raise RecipeError(f"encoder {name_or_folder!r} has a tokenizer written in Python; a fast one is needed here")
    layout = TokenLayout(
        start_id=pretrained.cls_token_id,
        end_id=pretrained.sep_token_id,
        pad_id=pretrained.pad_token_id,
        unknown_id=pretrained.unk_token_id,
        window_tokens=window_tokens,
        overlap_tokens=window_tokens // _OVERLAP_PARTS,
    )
    return TextTokenizer(pretrained.backend_tokenizer, normalisation=normalisation, layout=layout)


def check_window(encoder: RobertaModel, window_tokens: int) -> None:
    """Compare a row's length with what an encoder has positions for.

    Raises:
        RecipeError: The row is longer.
    """
    room = encoder.config.max_position_embeddings - encoder.config.pad_token_id - 1
    if window_tokens > room:
        raise RecipeError(f"window_tokens is {window_tokens}, and this encoder reads {room} tokens at most")


def build_encoder(settings: dict[str, Any]) -> RobertaModel:
    """Build an encoder with fresh weights from the settings that `encoder_settings` gave."""
    return RobertaModel(RobertaConfig(**settings), add_pooling_layer=False)


def encoder_settings(encoder: RobertaModel) -> dict[str, Any]:
    """Return what `build_encoder` needs to build the same network again."""
    config = encoder.config
    names = (*_SHARED_SETTINGS, "max_position_embeddings", "type_vocab_size")
    return {name: getattr(config, name) for name in names}


def _as_roberta(bert: Any) -> RobertaModel:
    """Return a `RobertaModel` that computes what this `BertModel` computes for single texts."""
    config = bert.config
    offset = config.pad_token_id + 1
    settings = {name: getattr(config, name) for name in _SHARED_SETTINGS}
    settings["max_position_embeddings"] = config.max_position_embeddings + offset
    settings["type_vocab_size"] = 1
    encoder = build_encoder(settings)
    state = bert.state_dict()
    positions = state["embeddings.position_embeddings.weight"]
    shifted = torch.zeros(positions.shape[0] + offset, positions.shape[1])
    shifted[offset:] = positions
    state["embeddings.position_embeddings.weight"] = shifted
    state["embeddings.token_type_embeddings.weight"] = state["embeddings.token_type_embeddings.weight"][:1]
    own_names = encoder.state_dict().keys()
    encoder.load_state_dict({name: tensor for name, tensor in state.items() if name in own_names})
    return encoder
