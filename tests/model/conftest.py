"""Encoders, recordings and the shipped model for the model's tests."""

from pathlib import Path

import pytest
from tiny_encoder import save_tiny_bert

from emostream.model.audio import Recording, decode_recording
from emostream.model.checkpoint import SHIPPED
from emostream.model.scorer import EmotionScorer

CLIPS = Path(__file__).parents[2] / "docs" / "examples" / "clips"


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT encoder of two layers, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    save_tiny_bert(folder)
    return folder


@pytest.fixture(scope="session")
def shipped_scorer() -> EmotionScorer:
    """The checkpoint that ships, in float32."""
    return EmotionScorer.load(SHIPPED, device="cpu", precision="float32")


@pytest.fixture(scope="session")
def recordings() -> list[Recording]:
    """Sentences spoken by a machine: made for this project, 3 to 5 s each."""
    return [decode_recording(file) for file in sorted(CLIPS.glob("*.ogg"))]
