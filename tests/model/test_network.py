"""The fused model's paths, and placeholders for a missing half."""

import pytest
import torch

from emostream.model.network import FusionHead, SharedDropout


@pytest.fixture
def fusion() -> FusionHead:
    torch.manual_seed(1)
    head = FusionHead(text_width=8, voice_width=6, width=16, dropout=0.0, classes=7)
    torch.nn.init.normal_(head.absent_text)
    torch.nn.init.normal_(head.absent_voice)
    return head


def test_a_missing_half_is_the_learned_placeholder(fusion: FusionHead) -> None:
    text, voice = torch.randn(3, 8), torch.randn(3, 6)
    torch.testing.assert_close(fusion(text, None), fusion(text, fusion.absent_voice.expand(3, -1)))
    torch.testing.assert_close(fusion(None, voice), fusion(fusion.absent_text.expand(3, -1), voice))
    assert not torch.allclose(fusion(text, voice), fusion(text, None))


def test_placeholders_learn(fusion: FusionHead) -> None:
    fusion(torch.randn(3, 8), None).square().sum().backward()
    assert fusion.absent_voice.grad is not None
    assert fusion.absent_voice.grad.abs().sum() > 0


def test_a_model_without_voice_has_no_voice_to_miss() -> None:
    head = FusionHead(text_width=8, voice_width=0, width=16, dropout=0.0, classes=7)
    assert head(torch.randn(2, 8), None).shape == (2, 7)


def test_neither_half_is_an_error(fusion: FusionHead) -> None:
    with pytest.raises(ValueError, match="neither"):
        fusion(None, None)


def test_shared_dropout_drops_whole_features_and_keeps_the_mean() -> None:
    torch.manual_seed(2)
    dropout, hidden = SharedDropout(0.25), torch.ones(200, 5, 100)
    dropped = dropout(hidden)
    assert (dropped == dropped[:, :1]).all()
    assert {0.0, round(1 / 0.75, 4)} == {round(value, 4) for value in dropped.unique().tolist()}
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert (dropout.eval()(hidden) == hidden).all()
