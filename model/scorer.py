"""A checkpoint at work: texts, recordings or both in, one outcome each out, same order.

Called by the GPU worker's child process, by `emostream predict` and by evaluation. `prepare` and `compute` may run in
a thread each, neither in several.

Legend: N items, X texts among them, R recordings among them, D width of a pooled text, V of a recording, C classes.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from emostream.model.audio import Recording
from emostream.model.checkpoint import SHIPPED, Checkpoint, load_checkpoint
from emostream.model.clip_quality import quality_flags
from emostream.model.device import choose_device, choose_precision, precision_name
from emostream.model.errors import CheckpointError
from emostream.model.features import ClipWindows, cut_windows
from emostream.model.language import LanguageDetector
from emostream.model.pooling import Compute, pool_clips, pool_texts
from emostream.model.samples import (
    ATTRIBUTES,
    FLAG_LANGUAGE,
    FLAG_LOW_QUALITY,
    FLAG_NO_WORDS,
    FLAG_TRUNCATED,
    FLAG_UNKNOWN_TOKENS,
    FLAG_WINDOWED,
    FUSED,
    MODALITIES,
    TEXT,
    VOICE,
    AttributeAnswer,
    BatchOutcome,
    ModelInfo,
    Outcome,
    Scored,
    Unscorable,
)
from emostream.model.tokenise import Windows

_WARM_UP_TEXTS = ("ok", "what a day " * 6, "nobody saw that coming " * 40)

_UNKNOWN_SHARE = 0.5
"""Share of tokens outside the vocabulary from which a text counts as unread."""


class Item(msgspec.Struct, frozen=True, eq=False):
    """What one answer is asked for: a text, a recording, or both."""

    text: str | None = None
    recording: Recording | None = None


class PreparedBatch(msgspec.Struct, frozen=True, eq=False):
    """Items as the network reads them.

    Attributes:
        texts: Token windows of each item; None where it has no text.
        clips: Windows of its recording; None where it has none.
        flags: What was noticed about each item on the way.
        prepare_s: Seconds that it took.
    """

    texts: tuple[Windows | None, ...]
    clips: tuple[ClipWindows | None, ...]
    flags: tuple[tuple[str, ...], ...]
    prepare_s: float


class EmotionScorer:
    """Scores with one checkpoint on one device.

    Args:
        checkpoint: The trained model.
        device: `auto`, `cpu`, `cuda`, `cuda:1` …
        precision: `auto`, `float32` or `bfloat16`.
        attributes: Heads whose answers come along; none named takes those of `ATTRIBUTES` that the checkpoint has.
        language: Says which texts are in no language that the model learned.

    Raises:
        CheckpointError: The checkpoint has no head of a name given.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        language: LanguageDetector,
        device: str = "auto",
        precision: str = "auto",
        attributes: Sequence[str] = (),
    ) -> None:
        chosen = choose_device(device)
        self._compute = Compute(chosen, choose_precision(precision, chosen))
        self._config = checkpoint.config
        self._tokenizer = checkpoint.tokenizer
        self._network = checkpoint.network.to(chosen).eval()
        self._attributes = _known(attributes, checkpoint.config.attributes)
        self._language = language

    @classmethod
    def load(
        cls,
        folder: Path = SHIPPED,
        *,
        device: str = "auto",
        precision: str = "auto",
        attributes: Sequence[str] = (),
    ) -> "EmotionScorer":
        """Load a checkpoint folder; the shipped one by default."""
        return cls(
            load_checkpoint(folder),
            language=LanguageDetector.load(),
            device=device,
            precision=precision,
            attributes=attributes,
        )

    @property
    def info(self) -> ModelInfo:
        """The model's name and version, its device and precision."""
        return ModelInfo(
            name=self._config.name,
            version=self._config.version,
            device=str(self._compute.device),
            precision=precision_name(self._compute.precision),
        )

    @property
    def head_classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of every attribute head that the checkpoint has, asked for or not."""
        return self._config.attributes

    def warm_up(self) -> None:
        """Score a few texts of different lengths, so that the first real batch finds everything prepared."""
        for count in (1, 32):
            self.score([Item(text=text) for text in _WARM_UP_TEXTS * count])

    def score(self, items: Sequence[Item]) -> BatchOutcome:
        """Score items of any length: `prepare`, then `compute`.

        Raises:
            CheckpointError: An item has a recording, and the checkpoint has no voice branch.
        """
        return self.compute(self.prepare(items))

    def prepare(self, items: Sequence[Item]) -> PreparedBatch:
        """Normalise, tokenise and cut; may run in a thread of its own, next to `compute`."""
        started = time.perf_counter()
        with_text = [item.text for item in items if item.text is not None]
        windows = iter(self._tokenizer.windows(with_text))
        texts = tuple(None if item.text is None else next(windows) for item in items)
        clips = tuple(None if item.recording is None else cut_windows(item.recording.waveform) for item in items)
        flags = tuple(self._flags(*pair) for pair in zip(items, texts, strict=True))
        return PreparedBatch(texts=texts, clips=clips, flags=flags, prepare_s=time.perf_counter() - started)

    def _flags(self, item: Item, windows: Windows | None) -> tuple[str, ...]:
        flags: list[str] = []
        if item.text is not None and windows is not None:
            flags += [FLAG_WINDOWED] * (len(windows.rows) > 1)
            flags += [FLAG_TRUNCATED] * windows.truncated
            flags += [FLAG_NO_WORDS] * (not windows.has_words)
            flags += [FLAG_UNKNOWN_TOKENS] * (windows.unknown_share >= _UNKNOWN_SHARE)
            flags += [FLAG_LANGUAGE] * self._language.is_foreign(item.text)
        if item.recording is not None:
            flags += [FLAG_TRUNCATED] * item.recording.truncated
            flags += quality_flags(item.recording.waveform)
            flags += [FLAG_LOW_QUALITY] * item.recording.damaged
        return tuple(dict.fromkeys(flags))

    @torch.inference_mode()
    def compute(self, batch: PreparedBatch) -> BatchOutcome:
        """Run the network.

        Returns:
            One outcome per item, in order: `Scored`, or `Unscorable` where the network gave no number.
        """
        started = time.perf_counter()
        text_XD, padded_tokens = self._pool_texts(batch.texts)
        voice_RV = self._pool_clips(batch.clips)
        paths = [_path(*halves) for halves in zip(batch.texts, batch.clips, strict=True)]
        scores_NC = self._path_scores(batch, paths, text_XD, voice_RV).tolist()
        attributes = self._attribute_answers(batch.texts, text_XD)
        tokens = [sum(map(len, windows.rows)) if windows else 0 for windows in batch.texts]
        columns = zip(scores_NC, batch.flags, attributes, tokens, paths, strict=True)
        return BatchOutcome(
            outcomes=tuple(_outcome(*row) for row in columns),
            tokens=sum(tokens),
            padded_tokens=padded_tokens,
            tokenise_s=batch.prepare_s,
            forward_s=time.perf_counter() - started,
        )

    @torch.inference_mode()
    def head_scores(self, texts: Sequence[str], heads: Iterable[str]) -> dict[str, Tensor]:
        """Return calibrated scores_XC of some attribute heads, all from one pass of the encoder; for evaluation."""
        text_XD, _ = self._pool_texts(tuple(self._tokenizer.windows(texts)))
        return {name: self._head(name, text_XD) for name in heads}

    def _pool_texts(self, texts: Sequence[Windows | None]) -> tuple[Tensor, int]:
        given = [windows for windows in texts if windows is not None]
        pad_id = self._tokenizer.layout.pad_id
        text_XD, padded_tokens = pool_texts(self._network.text, given, pad_id=pad_id, compute=self._compute)
        return text_XD.to(self._compute.device), padded_tokens

    def _pool_clips(self, clips: Sequence[ClipWindows | None]) -> Tensor | None:
        given = [windows for windows in clips if windows is not None]
        if not given:
            return None
        if self._network.voice is None:
            raise CheckpointError(
                f"{self._config.name} {self._config.version} reads texts alone: it has no voice branch"
            )
        return pool_clips(self._network.voice, given, compute=self._compute).to(self._compute.device)

    def _path_scores(
        self, batch: PreparedBatch, paths: Sequence[str], text_XD: Tensor, voice_RV: Tensor | None
    ) -> Tensor:
        """Return calibrated scores_NC, on the CPU; each item takes the path that it has the halves for."""
        scores_NC = torch.empty(len(batch.texts), len(self._config.labels))
        text_row, clip_row = _rows(batch.texts), _rows(batch.clips)
        for path in (TEXT, VOICE, FUSED):
            items = [n for n, taken in enumerate(paths) if taken == path]
            if items:
                text = None if path == VOICE else text_XD[[text_row[n] for n in items]]
                voice = None if path == TEXT or voice_RV is None else voice_RV[[clip_row[n] for n in items]]
                logits = self._network.fusion(text, voice).float() / self._config.temperatures[path]
                scores_NC[items] = torch.softmax(logits, -1).cpu()
        return scores_NC

    def _head(self, name: str, text_XD: Tensor) -> Tensor:
        logits_XC = self._network.attributes[name](text_XD).float() / self._config.temperatures[name]
        return torch.softmax(logits_XC, -1).cpu()

    def _attribute_answers(self, texts: Sequence[Windows | None], text_XD: Tensor) -> list[dict[str, AttributeAnswer]]:
        """Return each item's attributes; an item without text has none."""
        answers: list[dict[str, AttributeAnswer]] = [{} for _ in texts]
        with_text = [answer for answer, windows in zip(answers, texts, strict=True) if windows is not None]
        for name in self._attributes if with_text else ():
            confidence_X, best_X = self._head(name, text_XD).max(-1)
            labels = self._config.attributes[name]
            for answer, confidence, best in zip(with_text, confidence_X.tolist(), best_X.tolist(), strict=True):
                answer[name] = AttributeAnswer(label=labels[best], confidence=confidence)
        return answers


def _known(wanted: Sequence[str], heads: Mapping[str, object]) -> tuple[str, ...]:
    unknown = [name for name in wanted if name not in heads]
    if unknown:
        raise CheckpointError(f"the model has no head {unknown[0]!r}; it has: {', '.join(heads) or 'none'}")
    return tuple(wanted) or tuple(name for name in ATTRIBUTES if name in heads)


def _path(text: object, clip: object) -> str:
    if text is None and clip is None:
        raise ValueError("an item has neither text nor recording")
    return VOICE if text is None else TEXT if clip is None else FUSED


def _rows(halves: Sequence[object]) -> list[int]:
    """Return, for each item, in which row of the pooled vectors its half stands."""
    rows, given = [], 0
    for half in halves:
        rows.append(given)
        given += half is not None
    return rows


def _outcome(
    scores: list[float],
    flags: tuple[str, ...],
    attributes: dict[str, AttributeAnswer],
    tokens: int,
    path: str,
) -> Outcome:
    if any(score != score for score in scores):
        return Unscorable(reason="not_a_number", error="the network gave a score that is not a number")
    return Scored(scores=tuple(scores), flags=flags, attributes=attributes, tokens=tokens, modalities=MODALITIES[path])
