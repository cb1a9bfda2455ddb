"""Stand-ins that keep the contracts of the real parts, for tests and for trying the pipeline out without a model."""

import hashlib
from collections.abc import Callable, Sequence

from emostream.model.samples import LABELS, BatchOutcome, ModelInfo, Scored
from emostream.streams.errors import ScoringFailed

MODEL = ModelInfo(name="hashed", version="0", device="none", precision="float32")


class HashedScorer:
    """A scorer whose answer for a text depends on nothing but the text.

    Args:
        refuses: Texts for which the whole batch fails, as it does when the model raises.
    """

    def __init__(self, refuses: Callable[[str], bool] = lambda _: False) -> None:
        self._refuses = refuses
        self.batches: list[list[str]] = []

    async def score(self, texts: Sequence[str]) -> BatchOutcome:
        """Score texts; raises `ScoringFailed` if one of them is refused."""
        self.batches.append(list(texts))
        if any(map(self._refuses, texts)):
            raise ScoringFailed("a text of this batch is refused")
        return BatchOutcome(
            outcomes=tuple(Scored(scores=hashed_scores(text), tokens=len(text)) for text in texts),
            tokens=sum(map(len, texts)),
            padded_tokens=len(texts) * max(map(len, texts)),
            tokenise_s=0.0,
            forward_s=0.0,
        )


def hashed_scores(text: str) -> tuple[float, ...]:
    """Return probabilities over the labels that only this text has."""
    weights = [1 + byte for byte in hashlib.sha256(text.encode()).digest()[: len(LABELS)]]
    return tuple(weight / sum(weights) for weight in weights)
