"""A recipe -> a checkpoint. Called by `emostream train`.

Each epoch is judged on the development splits, and its state is kept in the run's folder as safetensors, so that
an interrupted run goes on where its last finished epoch ended:

    recipe.json, progress.json          what runs, how far it is, the figures so far
    last.safetensors, optimiser.safetensors   state after the last finished epoch
    best/                               checkpoint of the best epoch, temperature fitted, ready for use

Legend: B texts of a batch, T tokens, C classes.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emostream.model.batching import pad_rows
from emostream.model.checkpoint import Checkpoint, CheckpointConfig, save_checkpoint
from emostream.model.datasets import Example, TextDataset, read_dataset
from emostream.model.device import autocast, choose_device, choose_precision
from emostream.model.encoder import encoder_settings, load_pretrained_encoder, load_pretrained_tokenizer
from emostream.model.errors import RecipeError
from emostream.model.evaluation import Evaluation, evaluate_scores, fit_temperature, mean_macro_f1
from emostream.model.network import TextEmotionModel
from emostream.model.normalise import Normalisation
from emostream.model.recipe import Recipe
from emostream.model.samples import LABELS
from emostream.model.scorer import TextScorer

_log = logging.getLogger(__name__)

_CHUNK_BATCHES = 50
"""Batches whose texts are sorted by length together: little padding, and still a fresh shuffle every epoch."""

Progress = Callable[[int, int, float], None]
"""Told after each step: steps done, steps in all, loss."""


class EpochRecord(msgspec.Struct, frozen=True):
    """One finished epoch."""

    epoch: int
    loss: float
    temperature: float
    evaluations: tuple[Evaluation, ...]


class RunProgress(msgspec.Struct):
    """How far a run is; `progress.json`."""

    epochs: list[EpochRecord] = []

    @property
    def best(self) -> EpochRecord:
        """The epoch with the highest mean macro-F1 over the development splits."""
        return max(self.epochs, key=lambda record: mean_macro_f1(record.evaluations))


class _Row(msgspec.Struct, frozen=True):
    ids: tuple[int, ...]
    labels: tuple[int, ...]


def train(
    recipe: Recipe, *, data: Path, run: Path, device: str = "auto", on_step: Progress = lambda *_: None
) -> RunProgress:
    """Train by a recipe, or go on with the run that `run` holds.

    Args:
        recipe: What to train, and how.
        data: Folder that the recipe's data sets and encoder folder are relative to.
        run: Folder of this run; its `best/` is the checkpoint that comes out.
        device: `auto`, `cpu`, `cuda` …
        on_step: Told about each step, for a progress bar.

    Raises:
        RecipeError: `run` holds a run of another recipe, or the encoder cannot be loaded.
        DatasetError: A data set is missing or malformed.
    """
    torch.manual_seed(recipe.seed)  # decides the head's first weights
    trainer = _Trainer(recipe, data=data, run=run, device=device)
    while len(trainer.progress.epochs) < recipe.epochs:
        trainer.train_epoch(on_step)
    return trainer.progress


class _Trainer:
    """A run: network, optimiser, data and how far they are."""

    def __init__(self, recipe: Recipe, *, data: Path, run: Path, device: str) -> None:
        self._recipe, self._run = recipe, run
        self._device = choose_device(device)
        self._precision = choose_precision(recipe.precision, self._device)
        choices = recipe.datasets
        train_sets = [read_dataset(choice.name, data / choice.folder, "train") for choice in choices]
        self._dev_sets = [read_dataset(choice.name, data / choice.folder, "dev") for choice in choices]
        encoder = str(data / recipe.encoder) if (data / recipe.encoder).is_dir() else recipe.encoder
        self._tokenizer = load_pretrained_tokenizer(
            encoder,
            normalisation=Normalisation(emoji_to_words=recipe.emoji_to_words),
            window_tokens=recipe.window_tokens,
        )
        self._network = TextEmotionModel(
            load_pretrained_encoder(encoder),
            head_width=recipe.head_width,
            dropout=recipe.dropout,
            classes=len(LABELS),
        ).to(self._device)
        self._rows = self._tokenise([example for split in train_sets for example in split.examples])
        self._class_weights = _class_weights(self._rows, recipe.class_weight_power).to(self._device)
        self._optimiser = torch.optim.AdamW(_parameter_groups(self._network, recipe), fused=True)
        self.progress = RunProgress()
        self._steps_done = 0
        self._resume()

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self._rows) / self._recipe.batch_size)

    def train_epoch(self, on_step: Progress) -> None:
        """Train one epoch, judge it, and keep its state."""
        epoch = len(self.progress.epochs)
        torch.manual_seed(self._recipe.seed + epoch)  # dropout is the same in a run that was interrupted
        self._network.train()
        losses: list[float] = []
        batches = shuffled_batches(self._rows, self._recipe.batch_size, seed=self._recipe.seed + epoch)
        for batch in batches:
            losses.append(self._step(batch))
            done = epoch * self._steps_per_epoch + len(losses)
            on_step(done, self._recipe.epochs * self._steps_per_epoch, losses[-1])
        self._network.eval()
        self._judge(epoch, loss=sum(losses) / len(losses))
        self._keep()

    def _step(self, rows: Sequence[_Row]) -> float:
        ids_BT = pad_rows([row.ids for row in rows], pad_id=self._tokenizer.layout.pad_id)
        targets_BC = _targets([row.labels for row in rows]).to(self._device)
        with autocast(self._device, self._precision):
            logits_BC = self._network(ids_BT.to(self._device)).float()
        loss = nn.functional.cross_entropy(
            logits_BC,
            targets_BC,
            weight=self._class_weights,
            label_smoothing=self._recipe.label_smoothing,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak_rate"] * self._rate_factor(self._steps_done)
        nn.utils.clip_grad_norm_(self._network.parameters(), self._recipe.clip_norm)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._steps_done += 1
        return float(loss.detach())

    def _judge(self, epoch: int, *, loss: float) -> None:
        """Evaluate on every development split, and save the checkpoint if this epoch is the best."""
        scorer = TextScorer(self._checkpoint(temperature=1.0), device=str(self._device))
        logits = [scorer.logits([example.text for example in split.examples]) for split in self._dev_sets]
        together = TextDataset("all", "dev", tuple(e for split in self._dev_sets for e in split.examples))
        temperature = fit_temperature(torch.cat(logits), together)
        evaluations = tuple(
            evaluate_scores(split, torch.softmax(split_logits / temperature, -1).numpy())
            for split, split_logits in zip(self._dev_sets, logits, strict=True)
        )
        record = EpochRecord(epoch=epoch + 1, loss=loss, temperature=temperature, evaluations=evaluations)
        self.progress.epochs.append(record)
        for evaluation in evaluations:
            _log.info(
                "epoch %d: loss %.4f, %s dev macro-F1 %.4f, accuracy %.4f",
                epoch + 1, loss, evaluation.task, evaluation.macro_f1, evaluation.accuracy,
            )  # fmt: skip
        if self.progress.best is record:
            save_checkpoint(self._checkpoint(temperature=temperature), self._run / "best")

    def _checkpoint(self, *, temperature: float) -> Checkpoint:
        recipe = self._recipe
        config = CheckpointConfig(
            name=recipe.name,
            version=recipe.version,
            labels=LABELS,
            encoder=encoder_settings(self._network.encoder),
            head_width=recipe.head_width,
            dropout=recipe.dropout,
            normalisation=self._tokenizer.normalisation,
            layout=self._tokenizer.layout,
            temperature=temperature,
        )
        return Checkpoint(config=config, network=self._network, tokenizer=self._tokenizer)

    def _tokenise(self, examples: Sequence[Example]) -> list[_Row]:
        """Return one row per text; of a long training text only the first window is learned from."""
        windows = self._tokenizer.windows([example.text for example in examples])
        return [_Row(ids=text.rows[0], labels=example.labels) for text, example in zip(windows, examples, strict=True)]

    def _rate_factor(self, step: int) -> float:
        """Rise from 0 during warm-up, then fall linearly to 0."""
        steps = self._recipe.epochs * self._steps_per_epoch
        warm_up = max(1, round(steps * self._recipe.warm_up_share))
        return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up), 1.0)

    def _keep(self) -> None:
        save_file(self._network.state_dict(), self._run / "last.safetensors")
        save_file(_flat_optimiser_state(self._optimiser), self._run / "optimiser.safetensors")
        # Last, because its presence says that the epoch is complete.
        _write_json(self._run / "progress.json", self.progress)

    def _resume(self) -> None:
        self._run.mkdir(parents=True, exist_ok=True)
        recipe_file, progress_file = self._run / "recipe.json", self._run / "progress.json"
        if recipe_file.exists() and msgspec.json.decode(recipe_file.read_bytes(), type=Recipe) != self._recipe:
            raise RecipeError(f"{self._run} holds a run of another recipe; choose another folder or remove it")
        _write_json(recipe_file, self._recipe)
        if not progress_file.exists():
            return
        self.progress = msgspec.json.decode(progress_file.read_bytes(), type=RunProgress)
        self._network.load_state_dict(load_file(self._run / "last.safetensors", device=str(self._device)))
        _restore_optimiser_state(self._optimiser, load_file(self._run / "optimiser.safetensors"))
        self._steps_done = len(self.progress.epochs) * self._steps_per_epoch
        _log.info("going on after epoch %d of %d", len(self.progress.epochs), self._recipe.epochs)


def shuffled_batches(rows: Sequence[_Row], batch_size: int, *, seed: int) -> Iterator[list[_Row]]:
    """Yield every row once, in batches of rows of similar length, in an order that the seed decides."""
    shuffler = random.Random(seed)
    order = shuffler.sample(range(len(rows)), len(rows))
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * _CHUNK_BATCHES):
        chunk = sorted(order[start : start + batch_size * _CHUNK_BATCHES], key=lambda i: len(rows[i].ids))
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    shuffler.shuffle(batches)
    for batch in batches:
        yield [rows[index] for index in batch]


def _targets(labels: Sequence[tuple[int, ...]]) -> Tensor:
    """Return targets_BC: probability shared equally by the labels that raters named."""
    targets_BC = torch.zeros(len(labels), len(LABELS))
    for row, named in enumerate(labels):
        targets_BC[row, list(named)] = 1 / len(named)
    return targets_BC


def _class_weights(rows: Sequence[_Row], power: float) -> Tensor:
    """Return weights_C with a mean of 1 over the training rows."""
    counts_C = sum((_targets([row.labels])[0] for row in rows), torch.zeros(len(LABELS))).clamp(min=1)
    weights_C = (counts_C.sum() / counts_C) ** power
    return weights_C * counts_C.sum() / (weights_C * counts_C).sum()


def _parameter_groups(network: TextEmotionModel, recipe: Recipe) -> list[dict[str, object]]:
    """Return AdamW's groups, each with its peak rate: one for the head, falling downwards for the encoder's layers."""
    depth = network.encoder.config.num_hidden_layers
    groups: list[dict[str, object]] = []
    for name, parameter in network.named_parameters():
        if name.startswith("encoder.encoder.layer."):
            rate = recipe.encoder_learning_rate * recipe.layer_decay ** (depth - 1 - int(name.split(".")[3]))
        elif name.startswith("encoder."):
            rate = recipe.encoder_learning_rate * recipe.layer_decay**depth
        else:
            rate = recipe.head_learning_rate
        decay = recipe.weight_decay if parameter.dim() > 1 else 0.0
        groups.append({"params": [parameter], "peak_rate": rate, "weight_decay": decay})
    return groups


def _flat_optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's tensors by `PARAMETER.NAME`, as safetensors wants them."""
    state = optimiser.state_dict()["state"]
    return {f"{i}.{name}": tensor.contiguous() for i, values in state.items() for name, tensor in values.items()}


def _restore_optimiser_state(optimiser: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _write_json(file: Path, value: object) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
