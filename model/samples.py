"""The model's own words. Imports no other module of emostream; everyone may import it."""

import msgspec

LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
"""The seven labels of MELD and of GoEmotions' Ekman map, in the order of every score vector."""

FLAG_TRUNCATED = "truncated"
"""The text was longer than the model reads; the answer rests on its beginning."""

FLAG_WINDOWED = "long_text"
"""The text was longer than the encoder takes at once; the answer is the mean over overlapping windows."""


class Scored(msgspec.Struct, frozen=True, tag="scored"):
    """The model's answer for one text.

    Attributes:
        scores: Calibrated probabilities over `LABELS`, summing to 1.
        flags: What a reader should know about the answer, `FLAG_…`.
        tokens: Tokens the encoder read for this text, special tokens included.
    """

    scores: tuple[float, ...]
    flags: tuple[str, ...] = ()
    tokens: int = 0


class Unscorable(msgspec.Struct, frozen=True, tag="unscorable"):
    """One text that the model cannot answer, in the place where its score would stand.

    Attributes:
        reason: A short stable word: dead-letter header and metric label.
        error: One sentence for a person.
    """

    reason: str
    error: str


Outcome = Scored | Unscorable


class ModelInfo(msgspec.Struct, frozen=True):
    """Which model answers, and on what it runs."""

    name: str
    version: str
    device: str
    precision: str


class BatchOutcome(msgspec.Struct, frozen=True):
    """The answers for a batch, in the order of its texts, and what they cost.

    Attributes:
        outcomes: One per text.
        tokens: Real tokens read by the encoder.
        padded_tokens: Tokens computed, padding included.
        tokenise_s: Seconds spent on normalising and tokenising.
        forward_s: Seconds spent in the network.
    """

    outcomes: tuple[Outcome, ...]
    tokens: int
    padded_tokens: int
    tokenise_s: float
    forward_s: float
