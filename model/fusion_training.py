"""The fusion stage: the head over both branches, on vectors that the branches pooled once. Run by `training`.

There is no recorded set with matching text and voice whose labels all of ours share, so texts and recordings are paired
by label unless a data set (MELD with its audio, IEMOCAP) gives pairs of its own.

Legend: B examples of a batch, N examples, D width of a pooled text, V of a pooled recording, C labels.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from emostream.model.datasets import PAIRS, Dataset, Example
from emostream.model.errors import RecipeError
from emostream.model.evaluation import Evaluation, evaluate_scores, fit_temperature
from emostream.model.network import FusionHead
from emostream.model.pooling import Compute
from emostream.model.recipe import FusionRecipe
from emostream.model.samples import EMOTION, FUSED, LABELS, MODALITIES, TEXT, VOICE
from emostream.model.sampling import pair_by_label, rows_by_label, soft_targets
from emostream.model.text_training import TextStage
from emostream.model.training_loop import Stage
from emostream.model.voice_training import VoiceStage

_SPLITS = ("train", "dev")


class Pooled(msgspec.Struct, frozen=True):
    """Pooled vectors of a split, row by row, and the examples they stand for; one half can be missing throughout."""

    dataset: Dataset
    text_ND: Tensor | None = None
    voice_NV: Tensor | None = None

    @property
    def path(self) -> str:
        """Which path answers these examples."""
        if self.text_ND is not None and self.voice_NV is not None:
            return FUSED
        return VOICE if self.text_ND is None else TEXT


class _Batch(msgspec.Struct, frozen=True):
    """Row numbers: texts alone, recordings alone, a data set's own pairs, and pairs matched by label."""

    texts: list[int]
    clips: list[int] = []
    own_pairs: list[int] = []
    matched_pairs: list[tuple[int, int]] = []


class FusionStage(Stage):
    """What the fusion stage learns, from what, and how it is judged.

    Args:
        recipe: The stage's part of the recipe.
        text: The finished text stage.
        voice: The finished voice stage; None for a model that reads texts alone.
        compute: Device and precision.
        seed: Of pairs and their order.
    """

    name = "fusion"

    def __init__(
        self, recipe: FusionRecipe, *, text: TextStage, voice: VoiceStage | None, compute: Compute, seed: int
    ) -> None:
        super().__init__()
        self.optimisation = recipe.optimisation
        self._recipe, self._compute, self._seed = recipe, compute, seed
        texts = {
            split: [Pooled(each, text_ND=text.pool(each)) for each in text.emotion_sets(split)] for split in _SPLITS
        }
        clips = {split: voice.pooled(split) if voice else [] for split in _SPLITS}
        voices = {split: [Pooled(each, voice_NV=pooled_NV) for each, pooled_NV in clips[split]] for split in _SPLITS}
        own = {split: [pair for each in voices[split] if (pair := _own_pairs(each, text))] for split in _SPLITS}
        self._text_ND, self._text_labels = _stack([pool.text_ND for pool in texts["train"]], texts["train"])
        self._voice_NV, self._voice_labels = _stack([pool.voice_NV for pool in voices["train"]], voices["train"])
        sizes = [len(pool.dataset.examples) for pool in texts["train"]]
        self._text_sets = [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        self._text_odds = [size**recipe.sampling_power for size in sizes]
        self._texts_by_label = _rows_and_odds(self._text_labels, self._text_sets, self._text_odds)
        self._clips_by_label = rows_by_label(self._voice_labels)
        self._own_text_ND, _ = _stack([pool.text_ND for pool in own["train"]], own["train"])
        self._own_voice_NV, self._own_labels = _stack([pool.voice_NV for pool in own["train"]], own["train"])
        self._dev = [*texts["dev"], *voices["dev"], *own["dev"]]
        if recipe.match_by_label and texts["dev"] and voices["dev"]:
            self._dev.append(_matched_pairs(texts["dev"], voices["dev"], seed=seed))
        self.fusion = FusionHead(
            text_width=text.branch.width,
            voice_width=voice.branch.width if voice else 0,
            width=recipe.head_width,
            dropout=recipe.dropout,
            classes=len(LABELS),
        ).to(compute.device)
        self._weights_C = _balance(self._voice_labels).to(compute.device)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, on one device."""
        return math.ceil(self._recipe.examples_per_epoch / self.optimisation.batch_size)

    def batches(self, epoch: int) -> Iterator[_Batch]:
        """Yield batches of texts, recordings and pairs; of texts alone where there is no voice."""
        chance = random.Random(self._seed + epoch)
        size = self.optimisation.batch_size
        texts, part = size, 0
        if self._voice_labels:
            texts = max(1, round(size * self._recipe.text_share))
            part = max(1, (size - texts) // 2)
        for _ in range(self.steps_per_epoch):
            yield _Batch(
                texts=self._choose_texts(chance, texts),
                clips=_choose(chance, len(self._voice_labels), part),
                own_pairs=_choose(chance, len(self._own_labels), part) if self._own_labels else [],
                matched_pairs=[self._match(chance) for _ in range(part)] if self._recipe.match_by_label else [],
            )

    def _choose_texts(self, chance: random.Random, count: int) -> list[int]:
        return [chance.choice(rows) for rows in chance.choices(self._text_sets, self._text_odds, k=count)]

    def _match(self, chance: random.Random) -> tuple[int, int]:
        """Return a text and a recording of one label, which is drawn as texts have it or as recordings have it.

        Of data sets with such texts, one is drawn as it is for texts alone.
        """
        labels = self._text_labels if chance.random() < 0.5 else self._voice_labels
        while True:
            named = chance.choice(labels)
            if len(named) == 1 and named[0] in self._texts_by_label and named[0] in self._clips_by_label:
                (rows,) = chance.choices(*self._texts_by_label[named[0]])
                return chance.choice(rows), chance.choice(self._clips_by_label[named[0]])

    def forward(self, batch: _Batch) -> Tensor:
        """Return the mean loss over texts, recordings and pairs."""
        device = self._compute.device
        losses = [self._loss(self._text_ND[batch.texts].to(device), None, _of(self._text_labels, batch.texts))]
        if batch.clips:
            labels = _of(self._voice_labels, batch.clips)
            weights_B = self._weights_C[[named[0] for named in labels]]
            losses.append(weights_B * self._loss(None, self._voice_NV[batch.clips].to(device), labels))
        if batch.own_pairs:
            text_BD, voice_BV = self._own_text_ND[batch.own_pairs], self._own_voice_NV[batch.own_pairs]
            losses.append(self._loss_of_pairs(text_BD, voice_BV, _of(self._own_labels, batch.own_pairs)))
        if batch.matched_pairs:
            rows, clips = (list(side) for side in zip(*batch.matched_pairs, strict=True))
            labels = _of(self._voice_labels, clips)
            losses.append(self._loss_of_pairs(self._text_ND[rows], self._voice_NV[clips], labels))
        return torch.cat(losses).mean()

    def _loss_of_pairs(self, text_BD: Tensor, voice_BV: Tensor, labels: Sequence[tuple[int, ...]]) -> Tensor:
        voice_BV = functional.dropout(voice_BV, self._recipe.voice_dropout, self.training)
        return self._loss(text_BD.to(self._compute.device), voice_BV.to(self._compute.device), labels)

    def _loss(self, text_BD: Tensor | None, voice_BV: Tensor | None, labels: Sequence[tuple[int, ...]]) -> Tensor:
        """Return loss_B."""
        targets_BC = soft_targets(labels, len(LABELS), smoothing=self.optimisation.label_smoothing)
        log_scores_BC = functional.log_softmax(self.fusion(text_BD, voice_BV), -1)
        return -(targets_BC.to(self._compute.device) * log_scores_BC).sum(1)

    def peak_rate(self, parameter: str) -> float:  # noqa: ARG002 - all of it starts from nothing
        """Return the one rate."""
        return self.optimisation.learning_rate

    def judge(self) -> tuple[Evaluation, ...]:
        """Evaluate each development split on its path, and pairs matched by label on all three paths."""
        temperatures = self.temperatures()
        return tuple(
            evaluate_scores(
                dataset, torch.softmax(logits_NC / temperatures[path], -1).numpy(), modalities=MODALITIES[path]
            )
            for dataset, path, logits_NC in self.answers()
        )

    def answers(self) -> Iterator[tuple[Dataset, str, Tensor]]:
        """Yield each development split, a path that answers it, and logits_NC before any temperature."""
        for pool in self._dev:
            paths = (TEXT, VOICE, FUSED) if pool.dataset.name == PAIRS else (pool.path,)
            for path in paths:
                yield pool.dataset, path, self._logits(pool, path)

    def temperatures(self) -> dict[str, float]:
        """Return each path's temperature, fitted on the development sets of that path, which count alike."""
        fitted: dict[str, float] = {}
        for path in (TEXT, VOICE, FUSED):
            pools = [pool for pool in self._dev if pool.path == path]
            if pools:
                fitted[path] = fit_temperature(*((self._logits(each, path), each.dataset.examples) for each in pools))
        return fitted

    @torch.no_grad()
    def _logits(self, pool: Pooled, path: str) -> Tensor:
        text_ND = None if path == VOICE or pool.text_ND is None else pool.text_ND.to(self._compute.device)
        voice_NV = None if path == TEXT or pool.voice_NV is None else pool.voice_NV.to(self._compute.device)
        logits_NC: Tensor = self.fusion(text_ND, voice_NV).float().cpu()
        return logits_NC

    def figure(self, evaluations: Sequence[Evaluation]) -> float:
        """Return the mean over the paths of their mean macro-F1."""
        by_path: dict[tuple[str, ...], list[float]] = {}
        for evaluation in evaluations:
            if evaluation.task != PAIRS or len(evaluation.modalities) == len(MODALITIES[FUSED]):
                by_path.setdefault(evaluation.modalities, []).append(evaluation.macro_f1)
        return sum(sum(values) / len(values) for values in by_path.values()) / len(by_path)


def check_pairs(recipe: FusionRecipe, *, text: TextStage, voice: VoiceStage | None) -> None:
    """Find out early whether the fusion stage has what it learns from.

    Raises:
        RecipeError: No text has one of the seven labels; or nothing has both text and voice, nor can be paired.
    """
    if not all(text.emotion_sets(split) for split in _SPLITS):
        raise RecipeError("text: none of its data sets that are judged is labelled with the seven emotions")
    if voice is None:
        return
    own = all(any(example.text for each in voice.sets(split) for example in each.examples) for split in _SPLITS)
    if own:
        return
    if not recipe.match_by_label:
        raise RecipeError("nothing has both text and voice: the recipe must match by label, or name a set of pairs")
    for split in _SPLITS:
        if not _single_labels(text.emotion_sets(split)) & _single_labels(voice.sets(split)):
            raise RecipeError(f"texts and recordings of split {split!r} have no label in common to be paired by")


def _single_labels(datasets: Sequence[Dataset]) -> set[int]:
    return {example.labels[0] for each in datasets for example in each.examples if len(example.labels) == 1}


def _own_pairs(clips: Pooled, text: TextStage) -> Pooled | None:
    """Return the recordings whose words are known too, as pairs; None if there are none."""
    rows = [row for row, example in enumerate(clips.dataset.examples) if example.text]
    if not rows or clips.voice_NV is None:
        return None
    dataset = msgspec.structs.replace(clips.dataset, examples=tuple(clips.dataset.examples[row] for row in rows))
    return Pooled(dataset, text_ND=text.pool(dataset), voice_NV=clips.voice_NV[rows])


def _matched_pairs(texts: Sequence[Pooled], clips: Sequence[Pooled], *, seed: int) -> Pooled:
    """Return each recording with five texts of its label: speakers and texts that no stage learned from."""
    text_ND, text_labels = _stack([pool.text_ND for pool in texts], texts)
    voice_NV, voice_labels = _stack([pool.voice_NV for pool in clips], clips)
    pairs = pair_by_label(text_labels, voice_labels, seed=seed)
    rows, recordings = (list(side) for side in zip(*pairs, strict=True))
    examples = tuple(Example(labels=labels) for labels in _of(voice_labels, recordings))
    spoken = clips[0].dataset
    dataset = Dataset(PAIRS, spoken.split, {EMOTION: LABELS}, examples, is_fold=spoken.is_fold)
    return Pooled(dataset, text_ND[rows], voice_NV[recordings])


def _stack(halves: Sequence[Tensor | None], pools: Sequence[Pooled]) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Return the vectors of several splits as one matrix, and the labels of its rows."""
    vectors = [half for half in halves if half is not None]
    labels = [example.labels for pool in pools for example in pool.dataset.examples]
    return (torch.cat(vectors) if vectors else torch.empty(0, 0)), labels


def _rows_and_odds(
    labels: Sequence[tuple[int, ...]], sets: Sequence[Iterable[int]], odds: Sequence[float]
) -> dict[int, tuple[list[list[int]], list[float]]]:
    """Return, by label, the rows of each data set that has it alone, and the odds of these data sets."""
    found: dict[int, tuple[list[list[int]], list[float]]] = {}
    for rows, odds_of_set in zip(sets, odds, strict=True):
        for label, named_rows in rows_by_label(labels, rows).items():
            rows_of_label, odds_of_label = found.setdefault(label, ([], []))
            rows_of_label.append(named_rows)
            odds_of_label.append(odds_of_set)
    return found


def _balance(labels: Sequence[tuple[int, ...]]) -> Tensor:
    """Return weights_C, (1 / frequency) ** 0.5 with a mean of 1: recordings of RAVDESS are twice as often neutral."""
    counts_C = torch.bincount(torch.tensor([named[0] for named in labels], dtype=torch.int64), minlength=len(LABELS))
    weights_C = counts_C.clamp(min=1).float().rsqrt()
    return weights_C * counts_C.sum().clamp(min=1) / (weights_C * counts_C).sum().clamp(min=1e-9)


def _of(labels: Sequence[tuple[int, ...]], rows: Sequence[int]) -> list[tuple[int, ...]]:
    return [labels[row] for row in rows]


def _choose(chance: random.Random, size: int, count: int) -> list[int]:
    return [chance.randrange(size) for _ in range(count)]
