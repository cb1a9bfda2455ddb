"""A BERT checkpoint in RoBERTa's network computes what BERT computes."""

from pathlib import Path

import pytest
import torch
from transformers import BertModel, GPT2Config, GPT2Model

from emostream.model.encoder import build_encoder, encoder_settings, load_pretrained_encoder
from emostream.model.errors import RecipeError


def test_bert_weights_give_berts_outputs(tiny_bert: Path) -> None:
    bert = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).eval()
    encoder = load_pretrained_encoder(str(tiny_bert)).eval()
    ids = torch.tensor([[2, 4, 5, 6, 3, 0, 0], [2, 7, 8, 9, 10, 11, 3]])
    mask = ids != 0
    with torch.inference_mode():
        expected = bert(ids, attention_mask=mask).last_hidden_state[mask]
        given = encoder(ids, attention_mask=mask).last_hidden_state[mask]
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_settings_build_the_same_network_again(tiny_bert: Path) -> None:
    encoder = load_pretrained_encoder(str(tiny_bert))
    again = build_encoder(encoder_settings(encoder))
    again.load_state_dict(encoder.state_dict())


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10)).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="gpt2"):
        load_pretrained_encoder(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        load_pretrained_encoder(str(tmp_path / "nowhere"))
