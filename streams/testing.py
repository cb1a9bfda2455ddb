"""Stand-ins that keep the contracts of the real parts, for tests and for trying the pipeline out without a model."""

import hashlib
from collections.abc import Callable, Sequence

from emostream.model.samples import (
    FUSED,
    LABELS,
    MODALITIES,
    TEXT,
    VOICE,
    BatchOutcome,
    ModelInfo,
    Outcome,
    Query,
    Scored,
    Unscorable,
)
from emostream.streams.errors import ScoringFailed
from emostream.streams.frames import Lane

MODEL = ModelInfo(name="hashed", version="0", device="none", precision="float32")


class HashedScorer:
    """A scorer whose answer for a query depends on nothing but the query; clips that start with `!` cannot be heard.

    Args:
        refuses: Texts for which the whole batch fails, as it does when the model raises.
    """

    def __init__(self, refuses: Callable[[str], bool] = lambda _: False) -> None:
        self._refuses = refuses
        self.batches: list[list[str]] = []

    async def score(self, lane: Lane, queries: Sequence[Query], *, alone: bool = False) -> BatchOutcome:  # noqa: ARG002
        """Score queries; raises `ScoringFailed` if one of their texts is refused."""
        texts = [query.text or "" for query in queries]
        self.batches.append(texts)
        if any(map(self._refuses, texts)):
            raise ScoringFailed("a text of this batch is refused")
        tokens = sum(map(len, texts))
        return BatchOutcome(
            outcomes=tuple(map(_outcome, queries)), tokens=tokens, padded_tokens=tokens, tokenise_s=0.0, forward_s=0.0
        )


def _outcome(query: Query) -> Outcome:
    fault = Unscorable("audio_undecodable", "it starts with !") if (query.clip or b"").startswith(b"!") else None
    text = query.text_vector if query.text is None else query.text.encode()
    voice = query.voice_vector if query.clip is None or fault else query.clip
    if fault and query.text is None:
        return fault
    path = FUSED if text and voice else TEXT if text else VOICE
    return Scored(
        scores=hashed_scores((text or b"") + (voice or b"")),
        tokens=len(query.text or ""),
        modalities=MODALITIES[path],
        text_vector=text,
        voice_vector=voice,
        clip_fault=fault,
    )


def hashed_scores(content: bytes) -> tuple[float, ...]:
    """Return probabilities over the labels that only this content has."""
    weights = [1 + byte for byte in hashlib.sha256(content).digest()[: len(LABELS)]]
    return tuple(weight / sum(weights) for weight in weights)
