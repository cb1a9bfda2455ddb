"""Encoders for the model's tests."""

from pathlib import Path

import pytest
from tiny_encoder import save_tiny_bert

from emostream.model.checkpoint import SHIPPED
from emostream.model.scorer import TextScorer


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT encoder of two layers, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    save_tiny_bert(folder)
    return folder


@pytest.fixture(scope="session")
def shipped_scorer() -> TextScorer:
    """The checkpoint that ships, in float32."""
    return TextScorer.load(SHIPPED, device="cpu", precision="float32")
