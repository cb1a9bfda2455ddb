"""A checkpoint at work: texts, recordings or both in, one outcome each out, same order.

Called by the GPU worker's child process, by `emostream predict` and by evaluation. `prepare` may run in several
threads, next to one thread that computes.

Legend: N items, X texts among them, R recordings among them, D width of a pooled text, V of a recording, C classes.
"""

import logging
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from emostream.model.audio import SAMPLE_RATE_HZ, Recording
from emostream.model.checkpoint import SHIPPED, Checkpoint, load_checkpoint
from emostream.model.clip_quality import quality_flags
from emostream.model.device import (
    choose_device,
    choose_precision,
    hold_in,
    is_out_of_memory,
    keep_freed_memory,
    precision_name,
)
from emostream.model.errors import CheckpointError
from emostream.model.features import ClipWindows, cut_windows
from emostream.model.language import LanguageDetector
from emostream.model.pooling import Compute, pool_clips_in_steps, pool_texts
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
    NOT_A_NUMBER,
    TEXT,
    VOICE,
    AttributeAnswer,
    BatchOutcome,
    ModelInfo,
    Outcome,
    Scored,
    Unscorable,
)
from emostream.model.steps import exhaust
from emostream.model.tokenise import Windows

_log = logging.getLogger(__name__)

_WARM_UP_TEXTS = ("ok", "what a day " * 6, "nobody saw that coming " * 40)

TEXTS_AT_ONCE = 256
"""Texts that commands give to `score` together, between two steps of a progress bar."""

RECORDINGS_AT_ONCE = 32
"""Recordings, likewise: decoded and cut they take up to 9 MB each."""

_LEAST_SHARE = 1 / 64
"""Of the usual size of a forward pass; below it a pass is one item long as it is, on a CPU and on CUDA."""

_UNKNOWN_SHARE = 0.5
"""Share of tokens outside the vocabulary from which a text counts as unread."""


class Item(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What one answer is asked for: a text, a recording, or both; a half that was read before as its pooled vector.

    Attributes:
        text: What was written.
        recording: What was said.
        text_D: In place of a text, its pooled vector.
        voice_V: In place of a recording, its pooled vector.
    """

    text: str | None = None
    recording: Recording | None = None
    text_D: Tensor | None = None
    voice_V: Tensor | None = None


class PreparedBatch(msgspec.Struct, frozen=True, eq=False):
    """Items as the network reads them.

    Attributes:
        items: What was asked.
        texts: Token windows of each item; None where it has no text to read.
        clips: Windows of its recording; None where it has none to hear.
        flags: What was noticed about each item on the way.
        prepare_s: Seconds that it took.
    """

    items: tuple[Item, ...]
    texts: tuple[Windows | None, ...]
    clips: tuple[ClipWindows | None, ...]
    flags: tuple[tuple[str, ...], ...]
    prepare_s: float


class EmotionScorer:
    """Scores with one checkpoint on one device.

    Args:
        checkpoint: The trained model. The scorer takes its network over, onto its device and into its precision; it can
            no longer be trained or saved.
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
        keep_freed_memory()
        self._network = checkpoint.network.to(chosen).eval()
        if self._network.voice is not None:
            self._network.voice.body.fold()
        for branch in (self._network.text, self._network.voice):
            if branch is not None:
                hold_in(self._compute.precision, branch)
        self._attributes = _known(attributes, checkpoint.config.attributes)
        self._language = language
        self._reading = threading.Lock()

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

    @property
    def text_width(self) -> int:
        """Numbers in a pooled text."""
        return self._network.text.width

    @property
    def voice_width(self) -> int:
        """Numbers in a pooled recording; 0 where the checkpoint reads texts alone."""
        return self._network.voice.width if self._network.voice is not None else 0

    def warm_up(self) -> None:
        """Score a few items of different lengths, so that the first real batch finds everything prepared.

        A GPU sets memory aside for full passes as well; a CPU has nothing to prepare for them.
        """
        for count in (1,) if self._compute.device.type == "cpu" else (1, 32):
            self.score([Item(text=text) for text in _WARM_UP_TEXTS * count])
        if self._network.voice is not None:
            self.score([Item(text=_WARM_UP_TEXTS[0], recording=recording) for recording in _warm_up_recordings()])
        self.probe()

    def probe(self) -> None:
        """Score a short text and a short recording: what raises here raises on everything.

        Raises:
            CheckpointError: They get no number.
        """
        recording = _warm_up_recordings()[0] if self._network.voice is not None else None
        items = [Item(text=_WARM_UP_TEXTS[0]), Item(text=_WARM_UP_TEXTS[0], recording=recording)]
        for outcome in self.score(items).outcomes:
            if isinstance(outcome, Unscorable):
                raise CheckpointError(f"{outcome.error}, whatever is asked: weights or device are broken")

    def score(self, items: Sequence[Item]) -> BatchOutcome:
        """Score items of any length: `prepare`, then `compute`.

        Raises:
            CheckpointError: An item has a recording, and the checkpoint has no voice branch.
        """
        return self.compute(self.prepare(items))

    def prepare(self, items: Sequence[Item]) -> PreparedBatch:
        """Normalise, tokenise and cut; may run in threads of its own, next to `compute`."""
        started = time.perf_counter()
        with_text = [item.text for item in items if item.text is not None]
        with self._reading:
            windows = iter(self._tokenizer.windows(with_text))
            foreign = iter([self._language.is_foreign(text) for text in with_text])
        texts = tuple(None if item.text is None else next(windows) for item in items)
        clips = tuple(None if item.recording is None else cut_windows(item.recording.waveform) for item in items)
        flags = []
        for item, read in zip(items, texts, strict=True):
            of_text = _text_flags(read, is_foreign=next(foreign)) if read is not None else []
            of_voice = _voice_flags(item.recording) if item.recording is not None else []
            flags.append(tuple(dict.fromkeys([*of_text, *of_voice])))
        took_s = time.perf_counter() - started
        return PreparedBatch(items=tuple(items), texts=texts, clips=clips, flags=tuple(flags), prepare_s=took_s)

    def compute(self, batch: PreparedBatch) -> BatchOutcome:
        """Run the network.

        Returns:
            One outcome per item, in order: `Scored`, or `Unscorable` where the network gave no number.
        """
        return exhaust(self.steps(batch))

    def steps(self, batch: PreparedBatch) -> Generator[None, None, BatchOutcome]:
        """Run the network as `compute` does, and pause after each few seconds of audio, so that others get their turn.

        Any number of batches may be under way at once, in one thread. When the device runs out of memory, forward
        passes are halved from then on, and the batch is computed again; one that does not fit even so raises what torch
        raised.
        """
        halvings = 0
        while True:
            try:
                outcome = yield from self._steps(batch)
                return msgspec.structs.replace(outcome, halvings=halvings)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._halve_passes():
                    raise
                halvings += 1
            # Only now: while the error is handled, it holds what the failed pass had allocated.
            if self._compute.device.type == "cuda":
                torch.cuda.empty_cache()

    def _halve_passes(self) -> bool:
        """Compute half as much at once from now on; say whether that was still possible."""
        share = self._compute.share / 2
        if share < _LEAST_SHARE:
            return False
        self._compute = msgspec.structs.replace(self._compute, share=share)
        _log.warning("the device ran out of memory; forward passes are 1/%d of their usual size now", round(1 / share))
        return True

    @torch.inference_mode()
    def _steps(self, batch: PreparedBatch) -> Generator[None, None, BatchOutcome]:
        started = time.perf_counter()
        text_XD, padded_tokens = self._pool_texts(batch.texts)
        text_s = time.perf_counter() - started
        voice_RV, voice_s = yield from self._pool_clips(batch.clips)
        started = time.perf_counter()
        text = _by_item([item.text_D for item in batch.items], batch.texts, text_XD)
        voice = _by_item([item.voice_V for item in batch.items], batch.clips, voice_RV)
        paths = [_path(*halves) for halves in zip(text, voice, strict=True)]
        scores_NC = self._path_scores(paths, text, voice).tolist()
        attributes = self._attribute_answers(text)
        tokens = [sum(map(len, windows.rows)) if windows else 0 for windows in batch.texts]
        columns = zip(scores_NC, batch.flags, attributes, tokens, paths, _stored(text), _stored(voice), strict=True)
        return BatchOutcome(
            outcomes=tuple(_outcome(*row) for row in columns),
            tokens=sum(tokens),
            padded_tokens=padded_tokens,
            tokenise_s=batch.prepare_s,
            forward_s=text_s + voice_s + time.perf_counter() - started,
            audio_s=sum(item.recording.seconds for item in batch.items if item.recording is not None),
        )

    @torch.inference_mode()
    def head_scores(self, texts: Sequence[str], heads: Iterable[str]) -> dict[str, Tensor]:
        """Return calibrated scores_XC of some attribute heads, all from one pass of the encoder; for evaluation."""
        text_XD, _ = self._pool_texts(tuple(self._tokenizer.windows(texts)))
        return {name: self._head(name, text_XD.to(self._compute.device)) for name in heads}

    def _pool_texts(self, texts: Sequence[Windows | None]) -> tuple[Tensor, int]:
        given = [windows for windows in texts if windows is not None]
        pad_id = self._tokenizer.layout.pad_id
        return pool_texts(self._network.text, given, pad_id=pad_id, compute=self._compute)

    def _pool_clips(self, clips: Sequence[ClipWindows | None]) -> Generator[None, None, tuple[Tensor, float]]:
        """Return voice_RV of the recordings among the clips, and the seconds that it took; pauses in between."""
        given = [windows for windows in clips if windows is not None]
        if given and self._network.voice is None:
            raise CheckpointError(
                f"{self._config.name} {self._config.version} reads texts alone: it has no voice branch"
            )
        if self._network.voice is None or not given:
            return torch.empty(0), 0.0
        return (yield from pool_clips_in_steps(self._network.voice, given, compute=self._compute))

    def _path_scores(
        self, paths: Sequence[str], text: Sequence[Tensor | None], voice: Sequence[Tensor | None]
    ) -> Tensor:
        """Return calibrated scores_NC, on the CPU; each item takes the path that it has the halves for."""
        scores_NC = torch.empty(len(paths), len(self._config.labels))
        for path in (TEXT, VOICE, FUSED):
            items = [n for n, taken in enumerate(paths) if taken == path]
            if items:
                logits = self._network.fusion(self._stack(text, items), self._stack(voice, items)).float()
                scores_NC[items] = torch.softmax(logits / self._config.temperatures[path], -1).cpu()
        return scores_NC

    def _stack(self, vectors: Sequence[Tensor | None], items: Sequence[int]) -> Tensor | None:
        """Return the vectors of items of one path, given on the CPU, as a matrix; None where they have no such half."""
        given = [vector for n in items if (vector := vectors[n]) is not None]
        return torch.stack(given).to(self._compute.device) if given else None

    def _head(self, name: str, text_XD: Tensor) -> Tensor:
        logits_XC = self._network.attributes[name](text_XD).float() / self._config.temperatures[name]
        return torch.softmax(logits_XC, -1).cpu()

    def _attribute_answers(self, text: Sequence[Tensor | None]) -> list[dict[str, AttributeAnswer]]:
        """Return each item's attributes; an item without text has none."""
        answers: list[dict[str, AttributeAnswer]] = [{} for _ in text]
        with_text = [answer for answer, vector in zip(answers, text, strict=True) if vector is not None]
        text_XD = self._stack(text, range(len(text)))
        if text_XD is None:
            return answers
        for name in self._attributes:
            confidence_X, best_X = self._head(name, text_XD).max(-1)
            labels = self._config.attributes[name]
            for answer, confidence, best in zip(with_text, confidence_X.tolist(), best_X.tolist(), strict=True):
                answer[name] = AttributeAnswer(label=labels[best], confidence=confidence)
        return answers


def _warm_up_recordings() -> list[Recording]:
    """Return noise of one window and of several."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 10 * SAMPLE_RATE_HZ).astype(np.float32)
    return [
        Recording(waveform=noise[: seconds * SAMPLE_RATE_HZ], seconds=seconds, truncated=False, damaged=False)
        for seconds in (1, 10)
    ]


def _known(wanted: Sequence[str], heads: Mapping[str, object]) -> tuple[str, ...]:
    unknown = [name for name in wanted if name not in heads]
    if unknown:
        raise CheckpointError(f"the model has no head {unknown[0]!r}; it has: {', '.join(heads) or 'none'}")
    return tuple(wanted) or tuple(name for name in ATTRIBUTES if name in heads)


def _path(text: object, clip: object) -> str:
    if text is None and clip is None:
        raise ValueError("an item has neither text nor recording")
    return VOICE if text is None else TEXT if clip is None else FUSED


def _by_item(
    read_before: Sequence[Tensor | None], read_now: Sequence[object], pooled_XD: Tensor
) -> list[Tensor | None]:
    """Return each item's pooled vector: the one that it came with, or the next row where it was read just now."""
    rows = iter(pooled_XD)
    return [vector if read is None else next(rows) for vector, read in zip(read_before, read_now, strict=True)]


def _stored(vectors: Sequence[Tensor | None]) -> list[bytes | None]:
    """Return vectors as they are stored for partners that come later: float16."""
    return [None if vector is None else vector.half().numpy().tobytes() for vector in vectors]


def _text_flags(read: Windows, *, is_foreign: bool) -> list[str]:
    return [
        *[FLAG_WINDOWED] * (len(read.rows) > 1),
        *[FLAG_TRUNCATED] * read.truncated,
        *[FLAG_NO_WORDS] * (not read.has_words),
        *[FLAG_UNKNOWN_TOKENS] * (read.unknown_share >= _UNKNOWN_SHARE),
        *[FLAG_LANGUAGE] * is_foreign,
    ]


def _voice_flags(recording: Recording) -> list[str]:
    return [
        *[FLAG_TRUNCATED] * recording.truncated,
        *quality_flags(recording.waveform),
        *[FLAG_LOW_QUALITY] * recording.damaged,
    ]


def _outcome(
    scores: list[float],
    flags: tuple[str, ...],
    attributes: dict[str, AttributeAnswer],
    tokens: int,
    path: str,
    text_vector: bytes | None,
    voice_vector: bytes | None,
) -> Outcome:
    if any(score != score for score in scores):
        return Unscorable(reason=NOT_A_NUMBER, error="the network gave a score that is not a number")
    return Scored(
        scores=tuple(scores),
        flags=flags,
        attributes=attributes,
        tokens=tokens,
        modalities=MODALITIES[path],
        text_vector=text_vector,
        voice_vector=voice_vector,
    )
