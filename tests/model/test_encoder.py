"""A BERT checkpoint in RoBERTa's network computes what BERT computes, and RoBERTa's own what RoBERTa computes."""

from pathlib import Path

import pytest
import torch
from tiny_encoder import save_tiny_roberta
from transformers import (
    AutoTokenizer,
    BertModel,
    CamembertConfig,
    CamembertModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)

from emostream.model.encoder import (
    build_encoder,
    encoder_settings,
    find_encoder,
    load_pretrained_encoder,
    load_pretrained_tokenizer,
)
from emostream.model.errors import RecipeError
from emostream.model.normalise import Normalisation


def test_bert_weights_give_berts_outputs(tiny_bert: Path) -> None:
    bert = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).eval()
    encoder = load_pretrained_encoder(str(tiny_bert)).eval()
    ids = torch.tensor([[2, 4, 5, 6, 3, 0, 0], [2, 7, 8, 9, 10, 11, 3]])
    mask = ids != 0
    with torch.inference_mode():
        expected = bert(ids, attention_mask=mask).last_hidden_state[mask]
        given = encoder(ids, attention_mask=mask).last_hidden_state[mask]
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [(RobertaConfig, RobertaModel), (CamembertConfig, CamembertModel)])
def test_roberta_weights_give_robertas_outputs_for_what_its_tokenizer_gives(tmp_path: Path, family: tuple) -> None:
    save_tiny_roberta(tmp_path, *family)
    roberta = family[1].from_pretrained(tmp_path, add_pooling_layer=False).eval()
    encoder = load_pretrained_encoder(str(tmp_path)).eval()
    tokenizer = load_pretrained_tokenizer(str(tmp_path), normalisation=Normalisation(), window_tokens=32)
    (text,) = tokenizer.windows(["so so, señor \U0001f642"])
    assert text.rows[0] == tuple(AutoTokenizer.from_pretrained(tmp_path)("so so, señor \U0001f642")["input_ids"])
    assert (text.rows[0][0], text.rows[0][-1], tokenizer.layout.pad_id) == (0, 2, 1)
    ids = torch.tensor([[*text.rows[0], 1, 1]])
    mask = ids != tokenizer.layout.pad_id
    with torch.inference_mode():
        expected = roberta(ids, attention_mask=mask).last_hidden_state[mask]
        given = encoder(ids, attention_mask=mask).last_hidden_state[mask]
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_an_encoder_is_found_under_the_data_or_is_a_name_on_the_hub(tmp_path: Path) -> None:
    assert find_encoder("owner/one", tmp_path) == "owner/one"
    (tmp_path / "encoders" / "one").mkdir(parents=True)
    assert find_encoder("owner/one", tmp_path) == str(tmp_path / "encoders" / "one")
    (tmp_path / "owner" / "one").mkdir(parents=True)
    assert find_encoder("owner/one", tmp_path) == str(tmp_path / "owner" / "one")


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
