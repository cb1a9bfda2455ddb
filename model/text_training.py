"""The text stage: an encoder and a head per question, learned together from all data sets. Run by `training`.

A batch mixes data sets; every text goes through the encoder once, and only the head that its labels belong to counts.
A later run may have teachers, which answer every text by every head, once.

Legend: B texts of a batch, T tokens, D width of a pooled text, C classes.
"""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from emostream.model.batching import pad_rows
from emostream.model.datasets import Dataset, Example
from emostream.model.device import autocast
from emostream.model.encoder import check_window, find_encoder, load_pretrained_encoder, load_pretrained_tokenizer
from emostream.model.evaluation import Evaluation, evaluate_scores, fit_temperature
from emostream.model.network import TextBranch, build_heads, prepare_for_training
from emostream.model.normalise import Normalisation
from emostream.model.pooling import Compute, pool_texts
from emostream.model.recipe import TextRecipe
from emostream.model.samples import EMOTION
from emostream.model.sampling import class_weights, draw, read_choices, shares, shuffled_batches, soft_targets
from emostream.model.tokenise import Windows
from emostream.model.training_loop import Stage

_log = logging.getLogger(__name__)

_MOST_KEPT_TOKENS = {"cpu": 6144, "cuda": 65_536}
"""Padded tokens of a batch whose activations are kept for the way back. 96 tweets have some 2,300, the longest 96 of an
epoch up to 24,576: kept, they took 8.2 GB on a CPU, computed again in parts 3.8, and up to a quarter more time. CUDA's
is not measured."""


class Row(msgspec.Struct, frozen=True):
    """One training text: its place in which data set, token ids of its first window, and where its loss is taken."""

    dataset: int
    place: int
    ids: tuple[int, ...]
    head: str
    labels: tuple[int, ...]


class Teacher(nn.Module):
    """A copy of a text stage's network as it is now, from whose answers later runs learn."""

    def __init__(self, branch: TextBranch, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.branch, self._heads = copy.deepcopy(branch), copy.deepcopy(heads)
        self.eval()

    @torch.no_grad()
    def forward(self, pooled_ND: Tensor) -> dict[str, Tensor]:
        """Return scores_NC of each head."""
        return {name: torch.softmax(head(pooled_ND), -1) for name, head in self._heads.items()}


class TextStage(Stage):
    """What the text stage learns, from what, and how it is judged.

    Args:
        recipe: The stage's part of the recipe.
        data: Folder that data sets and encoder are relative to.
        compute: Device and precision.
        seed: Of the order of texts.
        fold: (which fold is held out, how many there are), for cross-validation.
    """

    name = "text"

    def __init__(
        self, recipe: TextRecipe, *, data: Path, compute: Compute, seed: int, fold: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.optimisation = recipe.optimisation
        self._recipe, self._compute = recipe, compute
        self._first_seed = self._seed = seed
        self._teachers: tuple[Teacher, ...] = ()  # in a tuple: as modules they would be learned, and saved, too
        self._answers: list[Tensor] = []
        encoder = find_encoder(recipe.encoder, data)
        self.tokenizer = load_pretrained_tokenizer(
            encoder,
            normalisation=Normalisation(emoji_to_words=recipe.emoji_to_words),
            window_tokens=recipe.window_tokens,
        )
        train_sets, self._held_sets, self._dev_sets = read_choices(recipe.datasets, data=data, fold=fold)
        self._train_sets = train_sets
        self.classes = {head: labels for dataset in train_sets for head, labels in dataset.classes.items()}
        self.branch = TextBranch(load_pretrained_encoder(encoder))
        check_window(self.branch.encoder, recipe.window_tokens)
        prepare_for_training(self.branch.encoder, compute.device)
        self.heads = build_heads(
            self.classes, width_in=self.branch.width, width=recipe.head_width, dropout=recipe.dropout
        )
        self._rows = [self._tokenise(number, dataset) for number, dataset in enumerate(train_sets)]
        powers = [choice.class_weight_power for choice in recipe.datasets]
        self._weights = [
            class_weights(dataset, power, compute.device) for dataset, power in zip(train_sets, powers, strict=True)
        ]
        self.to(compute.device)

    def _tokenise(self, number: int, dataset: Dataset) -> list[Row]:
        """Return one row per text; of a long training text only the first window is learned from."""
        windows = self.tokenizer.windows(dataset.texts)
        if longer := sum(len(text.rows) > 1 for text in windows):
            _log.warning("%s: %d of %d texts are longer than a window of %d tokens, whose rest is not learned from",
                         dataset.name, longer, len(windows), self.tokenizer.layout.window_tokens)  # fmt: skip
        return [
            Row(dataset=number, place=place, ids=text.rows[0], head=example.head, labels=example.labels)
            for place, (text, example) in enumerate(zip(windows, dataset.examples, strict=True))
        ]

    def begin(self, run: int, *, teachers: Sequence[Teacher] = ()) -> None:
        """Have what follows learn from texts in an order of its own, and from teachers where there are some."""
        self._teachers = tuple(teachers)
        self._answers = []
        self._seed = self._first_seed + 100_000 * run
        self.name = f"text, run {run + 1}" if run else "text"

    def as_teacher(self) -> Teacher:
        """Return a copy of the network, for `begin`."""
        return Teacher(self.branch, self.heads)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, on one device."""
        return math.ceil(sum(self._draws()) / self.optimisation.batch_size)

    def _draws(self) -> list[int]:
        """Return how many texts of each data set an epoch has."""
        sizes = [len(rows) for rows in self._rows]
        recipe = self._recipe
        return shares(sizes, recipe.datasets, total=recipe.examples_per_epoch, power=recipe.sampling_power)

    def batches(self, epoch: int) -> Iterator[list[Row]]:
        """Yield batches of rows."""
        drawn = [
            rows[index]
            for number, (rows, count) in enumerate(zip(self._rows, self._draws(), strict=True))
            for index in draw(len(rows), count, epoch=epoch, seed=self._seed + number)
        ]
        lengths = [len(row.ids) for row in drawn]
        for batch in shuffled_batches(lengths, self.optimisation.batch_size, seed=self._seed + epoch):
            yield [drawn[index] for index in batch]

    def forward(self, batch: Sequence[Row]) -> Tensor:
        """Return the batch's mean loss."""
        ids_BT = pad_rows([row.ids for row in batch], pad_id=self.tokenizer.layout.pad_id).to(self._compute.device)
        passes = [self._log_scores(ids_BT) for _ in range(2 if self._recipe.r_drop else 1)]
        labels = self._targets(batch)
        targets = self._taught(labels, batch)
        loss = torch.stack([_cross_entropy(log_scores, targets) for log_scores in passes]).mean()
        if self._recipe.r_drop:
            loss = loss + self._recipe.r_drop * _divergence(passes[0], passes[1], labels)
        return loss / len(batch)

    def _log_scores(self, ids_BT: Tensor) -> dict[str, Tensor]:
        with autocast(self._compute.device, self._compute.precision):
            pooled_BD = self._pool_batch(ids_BT)
            logits = {name: head(pooled_BD) for name, head in self.heads.items()}
        return {name: functional.log_softmax(logits_BC.float(), -1) for name, logits_BC in logits.items()}

    def _pool_batch(self, ids_BT: Tensor) -> Tensor:
        """Return pooled_BD; of many long texts in parts, whose activations are computed again on the way back."""
        rows = max(1, self._compute.most(_MOST_KEPT_TOKENS) // ids_BT.shape[1])
        if len(ids_BT) <= rows:
            return self.branch(ids_BT)  # type: ignore[no-any-return]
        parts = torch.split(ids_BT, rows)
        return torch.cat([checkpoint(self.branch, part, use_reentrant=False) for part in parts])

    def _targets(self, batch: Sequence[Row]) -> dict[str, Tensor]:
        """Return weighted targets_BC per head; rows of other heads are zero and cost nothing."""
        smoothing, device = self.optimisation.label_smoothing, self._compute.device
        targets = {name: torch.zeros(len(batch), len(labels), device=device) for name, labels in self.classes.items()}
        for number, row in enumerate(batch):
            target_C = soft_targets([row.labels], len(self.classes[row.head]), smoothing=smoothing)[0].to(device)
            targets[row.head][number] = target_C * self._weights[row.dataset][row.head]
        return targets

    def _taught(self, labels: dict[str, Tensor], batch: Sequence[Row]) -> dict[str, Tensor]:
        """Return targets_BC per head: labels, and what the teachers answer."""
        teaching = self._recipe.teaching
        if not self._teachers or teaching is None:
            return labels
        if not self._answers:  # asked in each step, of what it has drawn, one teacher took a third of it
            self._answers = [self._ask(dataset) for dataset in self._train_sets]
        told_BA = torch.stack([self._answers[row.dataset][row.place] for row in batch]).to(self._compute.device)
        answers = torch.split(told_BA.float(), [len(classes) for classes in self.classes.values()], dim=1)
        return {
            name: (1 - teaching.share) * labels[name]
            + torch.where(labels[name].any(-1, keepdim=True), teaching.share, teaching.others) * answer_BC
            for name, answer_BC in zip(self.classes, answers, strict=True)
        }

    def _ask(self, dataset: Dataset) -> Tensor:
        """Return answers_NA, float16: what the teachers say of each text on average, all heads side by side."""
        _log.info("%s: teachers read %s, %d texts", self.name, dataset.name, len(dataset.texts))
        windows, told = self.tokenizer.windows(dataset.texts), []
        for teacher in self._teachers:
            scores = teacher(self._pool(teacher.branch, windows).to(self._compute.device))
            told.append(torch.cat([scores[name] for name in self.classes], dim=1))
        return torch.stack(told).mean(0).half().cpu()

    def peak_rate(self, parameter: str) -> float:
        """Return one rate for the heads, and one that falls downwards through the encoder's layers."""
        settings = self._recipe.optimisation
        if not parameter.startswith("branch."):
            return settings.head_learning_rate
        depth = self.branch.encoder.config.num_hidden_layers
        layer = int(parameter.split(".")[4]) if ".layer." in parameter else -1
        return float(settings.learning_rate * settings.layer_decay ** (depth - 1 - layer))

    def judge(self) -> tuple[Evaluation, ...]:
        """Evaluate each data set's development split, each task at its own best temperature."""
        return self.judge_pooled(self._dev_sets, [self.pool(dataset) for dataset in self._dev_sets])

    def judge_pooled(self, datasets: Sequence[Dataset], pooled: Sequence[Tensor]) -> tuple[Evaluation, ...]:
        """Evaluate data sets by the vectors of their texts, pooled_ND each; each task at its own best temperature."""
        logits = [self._head_logits(*pair) for pair in zip(pooled, datasets, strict=True)]
        temperatures = _task_temperatures(datasets, logits)
        return tuple(
            evaluate_scores(dataset, torch.softmax(logits_NC / _column(dataset, temperatures), -1).numpy())
            for dataset, logits_NC in zip(datasets, logits, strict=True)
        )

    def temperatures(self) -> dict[str, float]:
        """Return the temperature of each head, fitted on all development examples of its task, judged or not."""
        logits = [self._head_logits(self.pool(dataset), dataset) for dataset in self._held_sets]
        fitted = _task_temperatures(self._held_sets, logits)
        return {head: fitted.get(_task(head), 1.0) for head in self.classes}

    def pool(self, dataset: Dataset) -> Tensor:
        """Return pooled_ND of a data set's texts."""
        return self._pool(self.branch, self.tokenizer.windows(dataset.texts))

    def _pool(self, branch: TextBranch, windows: Sequence[Windows]) -> Tensor:
        return pool_texts(branch, windows, pad_id=self.tokenizer.layout.pad_id, compute=self._compute)[0]

    def sets(self, split: str) -> list[Dataset]:
        """Return the data sets of the split `train` or `dev`."""
        return list(self._train_sets if split == "train" else self._dev_sets)

    def emotion_sets(self, split: str) -> list[Dataset]:
        """Return those that are labelled with our seven labels."""
        return [dataset for dataset in self.sets(split) if EMOTION in dataset.classes]

    @torch.no_grad()
    def _head_logits(self, pooled_ND: Tensor, dataset: Dataset) -> Tensor:
        """Return logits_NC, each text answered by the head that its labels belong to."""
        answers = {name: self.heads[name](pooled_ND.to(self._compute.device)).cpu() for name in dataset.classes}
        return torch.stack([answers[example.head][row] for row, example in enumerate(dataset.examples)])

    def figure(self, evaluations: Sequence[Evaluation]) -> float:
        """Return the mean of the official metrics: every data set counts alike."""
        return sum(evaluation.official.value for evaluation in evaluations) / len(evaluations)


def _task_temperatures(datasets: Sequence[Dataset], logits: Sequence[Tensor]) -> dict[str, float]:
    """Return each task's temperature, which its heads share: a stance's target has 40 to 69 dev tweets alone."""
    rows: dict[str, list[tuple[Example, Tensor]]] = {}
    for dataset, logits_NC in zip(datasets, logits, strict=True):
        for example, logits_C in zip(dataset.examples, logits_NC, strict=True):
            rows.setdefault(_task(example.head), []).append((example, logits_C))
    return {
        task: fit_temperature((torch.stack([row for _, row in pairs]), [example for example, _ in pairs]))
        for task, pairs in rows.items()
    }


def _task(head: str) -> str:
    """Return what a head is one of: of `stance/climate`, `stance`."""
    return head.partition("/")[0]


def _column(dataset: Dataset, temperatures: dict[str, float]) -> Tensor:
    return torch.tensor([[temperatures[_task(example.head)]] for example in dataset.examples])


def _cross_entropy(log_scores: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return the summed loss of a batch."""
    return -torch.stack([(targets[name] * log_scores[name]).sum() for name in log_scores]).sum()


def _divergence(first: dict[str, Tensor], second: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return the symmetric Kullback-Leibler divergence of two passes, summed over the rows that each head answers."""
    parts = []
    for name, p_BC in first.items():
        q_BC, own_B1 = second[name], (targets[name].sum(-1, keepdim=True) > 0)
        parts.append((own_B1 * (p_BC.exp() - q_BC.exp()) * (p_BC - q_BC)).sum() / 2)
    return torch.stack(parts).sum()
