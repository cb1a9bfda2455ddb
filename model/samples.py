"""The model's own words. Imports no other module of emostream; everyone may import it."""

import msgspec

LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
"""The seven labels of MELD and of GoEmotions' Ekman map, in the order of every score vector."""

EMOTION = "emotion"
"""The head that answers with `LABELS`; every other head's answer is an attribute."""

TEXT, VOICE, FUSED = "text", "voice", "fused"
"""The three paths of the model; each has a temperature of its own."""

MODALITIES = {TEXT: ("text",), VOICE: ("voice",), FUSED: ("text", "voice")}
"""What an answer of each path rests on."""

PATHS = {modalities: path for path, modalities in MODALITIES.items()}
"""The path that such an answer took."""

FLAG_TRUNCATED = "truncated"
"""The text was longer than the model reads; the answer rests on its beginning."""

FLAG_WINDOWED = "long_text"
"""The text was longer than the encoder takes at once; the answer is the mean over overlapping windows."""


FLAG_LANGUAGE = "language"
"""The text is surely in a language that the model never learned."""

FLAG_NO_WORDS = "no_words"
"""There is no word in the text: nothing but marks, digits, mentions or links."""

FLAG_UNKNOWN_TOKENS = "unknown_tokens"
"""At least half of the text's tokens are none that the model knows."""

FLAG_SILENCE = "silence"
"""The recording is nearly silent."""

FLAG_LOW_QUALITY = "low_quality"
"""The recording is clipped, noise for the most part, or damaged."""

FLAG_CLIP_FAILED = "clip_failed"
"""The post came with a clip that could not be heard; the answer rests on the text. The clip is a dead letter."""

FLAG_CLIP_MISSING = "clip_missing"
"""The post announced a clip that has not come; a richer answer follows if it still does."""

FLAG_PARTNER_UNKNOWN = "partner_unknown"
"""The half stands alone because nobody could be asked whether the other one had come before."""

ATTRIBUTES = ("sentiment", "irony", "offensive", "hate")
"""Heads whose answers come with every answer unless asked otherwise. The others answer questions that few posts raise:
stance towards five named targets, the emoji that fits, and the emotions of other data sets."""


def attribute_names(listed: str) -> tuple[str, ...]:
    """Return the heads that a person listed, separated by commas."""
    return tuple(filter(None, map(str.strip, listed.split(","))))


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer is asked for; at least one half of it is there.

    Attributes:
        text: What was written.
        clip: What was said: an encoded recording.
        text_vector: In place of a text: what `Scored.text_vector` said of it.
        voice_vector: In place of a clip, or of one that cannot be heard: what `Scored.voice_vector` said of it.
    """

    text: str | None = None
    clip: bytes | None = None
    text_vector: bytes | None = None
    voice_vector: bytes | None = None


class AttributeAnswer(msgspec.Struct, frozen=True):
    """The answer to a further question: the likeliest class and its calibrated probability."""

    label: str
    confidence: float


class Scored(msgspec.Struct, frozen=True, tag="scored"):
    """The model's answer for one item.

    Attributes:
        scores: Calibrated probabilities over `LABELS`, summing to 1.
        flags: What a reader should know about the answer, `FLAG_…`.
        tokens: Tokens the encoder read for it, special tokens included.
        modalities: What the answer rests on.
        attributes: Answers of other heads, by name.
        text_vector: The pooled text, float16, little endian; with it a partner that comes later is answered fused.
        voice_vector: The pooled recording, likewise.
        clip_fault: Why the clip that was asked about could not be heard; the answer rests on the text.
        text_fault: Why the text that was asked about could not be read; the answer rests on the clip.
    """

    scores: tuple[float, ...]
    flags: tuple[str, ...] = ()
    tokens: int = 0
    modalities: tuple[str, ...] = ("text",)
    attributes: dict[str, AttributeAnswer] = {}
    text_vector: bytes | None = None
    voice_vector: bytes | None = None
    clip_fault: "Unscorable | None" = None
    text_fault: "Unscorable | None" = None


NOT_A_NUMBER = "not_a_number"
"""Reason of what the network answers with a score that is no number."""


class Unscorable(msgspec.Struct, frozen=True, tag="unscorable"):
    """One item that the model cannot answer, in the place where its score would stand.

    Attributes:
        reason: A short stable word: dead-letter header and metric label.
        error: One sentence for a person.
        of_clip: Of a pair, why its clip cannot be answered alone, where that is another reason.
    """

    reason: str
    error: str
    of_clip: "Unscorable | None" = None


Outcome = Scored | Unscorable


class ModelInfo(msgspec.Struct, frozen=True):
    """Which model answers, and on what it runs."""

    name: str
    version: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} on {self.device}, {self.precision}"


class BatchOutcome(msgspec.Struct, frozen=True):
    """The answers for a batch, in the order of its items, and what they cost.

    Attributes:
        outcomes: One per item.
        tokens: Real tokens read by the encoder.
        padded_tokens: Tokens computed, padding included.
        tokenise_s: Seconds spent on making the input ready: normalising and tokenising, cutting recordings.
        forward_s: Seconds spent in the network.
        audio_s: Seconds of audio heard.
        halvings: How often the device ran out of memory; each time, what is computed at once was halved for good.
    """

    outcomes: tuple[Outcome, ...]
    tokens: int
    padded_tokens: int
    tokenise_s: float
    forward_s: float
    audio_s: float = 0.0
    halvings: int = 0
