"""A checkpoint at work: texts in, one outcome per text out, same order.

Called by the GPU worker's child process, by `emostream predict` and by evaluation. `prepare` and `compute` may run in
a thread each, neither in several.

Legend: N texts, W windows, T tokens, D encoder width, C labels.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from emostream.model.batching import cut_by_cost, pad_rows
from emostream.model.checkpoint import SHIPPED, Checkpoint, load_checkpoint
from emostream.model.device import autocast, choose_device, choose_precision, precision_name
from emostream.model.samples import (
    FLAG_TRUNCATED,
    FLAG_WINDOWED,
    BatchOutcome,
    ModelInfo,
    Outcome,
    Scored,
    Unscorable,
)
from emostream.model.tokenise import Windows

MOST_PADDED_TOKENS = {"cpu": 1024, "cuda": 65_536}
"""Padded tokens of one forward pass. On two CPU cores, posts of 35 tokens on average, batches of 256: 512 to 1024
tokens score within 5 % of each other, 2048 some 15 % slower, 4096 some 30 % (a third is padding then, and activations
leave the cache). A GPU wants tens of thousands to be busy at all; that figure is not measured yet."""

_WARM_UP_TEXTS = ("ok", "what a day " * 6, "nobody saw that coming " * 40)


class PreparedBatch(msgspec.Struct, frozen=True):
    """Texts as the network reads them, and the seconds it took to make them so."""

    windows: tuple[Windows, ...]
    tokenise_s: float


class TextScorer:
    """Scores texts with one checkpoint on one device.

    Args:
        checkpoint: The trained model.
        device: `auto`, `cpu`, `cuda`, `cuda:1` …
        precision: `auto`, `float32` or `bfloat16`.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str = "auto", precision: str = "auto") -> None:
        self._device = choose_device(device)
        self._precision = choose_precision(precision, self._device)
        self._config = checkpoint.config
        self._tokenizer = checkpoint.tokenizer
        self._network = checkpoint.network.to(self._device).eval()
        self._most_tokens = MOST_PADDED_TOKENS[self._device.type]

    @classmethod
    def load(cls, folder: Path = SHIPPED, *, device: str = "auto", precision: str = "auto") -> "TextScorer":
        """Load a checkpoint folder; the shipped one by default."""
        return cls(load_checkpoint(folder), device=device, precision=precision)

    @property
    def info(self) -> ModelInfo:
        """The model's name and version, its device and precision."""
        return ModelInfo(
            name=self._config.name,
            version=self._config.version,
            device=str(self._device),
            precision=precision_name(self._precision),
        )

    def warm_up(self) -> None:
        """Score a few texts of different lengths, so that the first real batch finds everything prepared."""
        for count in (1, 32):
            self.score(_WARM_UP_TEXTS * count)

    def score(self, texts: Sequence[str]) -> BatchOutcome:
        """Score texts of any length: `prepare`, then `compute`."""
        return self.compute(self.prepare(texts))

    def prepare(self, texts: Sequence[str]) -> PreparedBatch:
        """Normalise and tokenise; may run in a thread of its own, next to `compute`."""
        started = time.perf_counter()
        windows = self._tokenizer.windows(texts)
        return PreparedBatch(windows=tuple(windows), tokenise_s=time.perf_counter() - started)

    def compute(self, batch: PreparedBatch) -> BatchOutcome:
        """Run the network.

        Returns:
            One outcome per text, in order: `Scored`, or `Unscorable` where the network gave no number.
        """
        started = time.perf_counter()
        logits_NC, padded_tokens = self._logits(batch.windows)
        scores_NC = torch.softmax(logits_NC / self._config.temperature, dim=-1).tolist()
        outcomes = tuple(_outcome(*pair) for pair in zip(batch.windows, scores_NC, strict=True))
        return BatchOutcome(
            outcomes=outcomes,
            tokens=sum(len(row) for text in batch.windows for row in text.rows),
            padded_tokens=padded_tokens,
            tokenise_s=batch.tokenise_s,
            forward_s=time.perf_counter() - started,
        )

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Return logits_NC, float32, before the temperature; evaluation fits the temperature on them."""
        return self._logits(self._tokenizer.windows(texts))[0]

    @torch.inference_mode()
    def _logits(self, windows: Sequence[Windows]) -> tuple[Tensor, int]:
        """Return logits_NC on the CPU, and how many tokens were computed for them."""
        rows = [row for text in windows for row in text.rows]
        owners_W = torch.tensor([n for n, text in enumerate(windows) for _ in text.rows], dtype=torch.int64)
        pooled_WD = torch.empty(len(rows), self._network.dense.in_features)
        padded_tokens = 0
        for group in cut_by_cost([len(row) for row in rows], most_tokens=self._most_tokens):
            ids_WT = pad_rows([rows[index] for index in group], pad_id=self._tokenizer.layout.pad_id)
            padded_tokens += ids_WT.numel()
            with autocast(self._device, self._precision):
                pooled_WD[group] = self._network.pool(ids_WT.to(self._device)).cpu()
        pooled_ND = _mean_over_windows(pooled_WD, owners_W, len(windows))
        return self._network.head(pooled_ND.to(self._device)).float().cpu(), padded_tokens


def _mean_over_windows(pooled_WD: Tensor, owners_W: Tensor, texts: int) -> Tensor:
    """Return pooled_ND: the mean of each text's windows."""
    sums_ND = torch.zeros(texts, pooled_WD.shape[1]).index_add_(0, owners_W, pooled_WD)
    counts_N = torch.bincount(owners_W, minlength=texts)
    return sums_ND / counts_N.unsqueeze(1)


def _outcome(windows: Windows, scores: list[float]) -> Outcome:
    if any(score != score for score in scores):
        return Unscorable(reason="not_a_number", error="the network gave a score that is not a number")
    flags: list[str] = []
    if len(windows.rows) > 1:
        flags.append(FLAG_WINDOWED)
    if windows.truncated:
        flags.append(FLAG_TRUNCATED)
    tokens = sum(len(row) for row in windows.rows)
    return Scored(scores=tuple(scores), flags=tuple(flags), tokens=tokens)
