"""The loop that every training stage goes through: steps, rates, judging, resuming, logs. Stages say what they learn.

Each epoch is judged on development data, and its state is kept in the stage's folder as safetensors, so that an
interrupted run goes on where its last finished epoch ended:

    progress.json                                 how far it is, the figures so far
    epoch-N.safetensors, optimiser-N.safetensors  state after the last finished epoch, and weights after the best one
    log.csv, curve.png                        loss, accuracy, official metric and ECE per epoch and data set

Under torchrun each process takes its share of every epoch's batches, and DistributedDataParallel averages gradients.
"""

import atexit
import csv
import datetime as dt
import hashlib
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emostream.model.errors import RecipeError
from emostream.model.evaluation import Evaluation
from emostream.model.pictures import save_curve_png
from emostream.model.pooling import Compute
from emostream.model.recipe import Optimisation

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, float], None]
"""Told after each step: stage, steps done, steps in all, loss."""

_PROGRESS = "progress.json"

_JUDGING_TIMEOUT = dt.timedelta(hours=2)
"""How long the other processes wait while the first one judges an epoch; torch's ten minutes are too few on a CPU."""


class EpochRecord(msgspec.Struct, frozen=True):
    """One finished epoch; `figure` is what the best epoch is chosen by."""

    epoch: int
    loss: float
    figure: float
    evaluations: tuple[Evaluation, ...]


class StageProgress(msgspec.Struct):
    """How far a stage is, and the checksum of the weights that it learns on top of; `progress.json`."""

    epochs: list[EpochRecord] = []
    built_on: str = ""

    @property
    def best(self) -> EpochRecord:
        """The epoch with the highest figure, the earliest of equals."""
        return max(self.epochs, key=lambda record: record.figure)


class Stage(ABC, nn.Module):
    """A stage of training: a module that maps a batch of its own kind to a loss."""

    name: str
    optimisation: Optimisation

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, on one device."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Any]:
        """Yield an epoch's batches, the same ones whenever asked."""

    @abstractmethod
    def peak_rate(self, parameter: str) -> float:
        """Return the highest rate of a parameter, by its name."""

    def parameter_groups(self) -> list[dict[str, object]]:
        """Return AdamW's groups: each parameter with its rate, L2 regularisation on matrices only."""
        return [
            {
                "params": [parameter],
                "peak_rate": self.peak_rate(name),
                "weight_decay": self.optimisation.weight_decay if parameter.dim() > 1 else 0.0,
            }
            for name, parameter in self.named_parameters()
        ]

    @abstractmethod
    def judge(self) -> tuple[Evaluation, ...]:
        """Evaluate on development data."""

    @abstractmethod
    def figure(self, evaluations: Sequence[Evaluation]) -> float:
        """Return what the best epoch is chosen by; higher is better."""


def run_stage(
    stage: Stage,
    *,
    folder: Path,
    compute: Compute,
    seed: int,
    built_on: Sequence[nn.Module] = (),
    on_step: Progress = lambda *_: None,
) -> StageProgress:
    """Train a stage, or go on where `folder` says that it stopped; the stage ends with its best epoch's weights.

    Args:
        stage: What to train.
        folder: Where the stage keeps its state.
        compute: Device and precision.
        seed: Of dropout and augmentation; batches are the stage's own.
        built_on: Finished networks that it learns on top of.
        on_step: Told about each step, for a progress bar.

    Raises:
        RecipeError: What `folder` holds was learned on top of others, or is not whole.
    """
    trainer = _Trainer(stage, folder=folder, compute=compute, built_on=_checksum(built_on))
    while len(trainer.progress.epochs) < stage.optimisation.epochs:
        trainer.train_epoch(seed, on_step)
    stage.load_state_dict(_load_kept(_weights_file(folder, trainer.progress.best.epoch), str(compute.device)))
    stage.eval()
    return trainer.progress


def processes() -> tuple[int, int]:
    """Return this process's number and how many train together; (0, 1) outside torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=_JUDGING_TIMEOUT)
        atexit.register(torch.distributed.destroy_process_group)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: under torchrun, the GPU with its local number, which it alone uses."""
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
        return own
    return device


def write_json(file: Path, value: object) -> None:
    """Write a value as JSON that a person can read; the file is there whole or not at all."""
    part = file.with_suffix(".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    part.replace(file)


def _checksum(modules: Sequence[nn.Module]) -> str:
    state = nn.ModuleList(modules).state_dict()
    return hashlib.sha256(save({name: tensor.contiguous() for name, tensor in state.items()})).hexdigest()[:16]


class _Trainer:
    def __init__(self, stage: Stage, *, folder: Path, compute: Compute, built_on: str) -> None:
        self._stage, self._folder, self._compute = stage, folder, compute
        self._rank, self._world = processes()
        # A model without voice has a placeholder for texts that nothing asks for.
        self._loss_of = DistributedDataParallel(stage, find_unused_parameters=True) if self._world > 1 else stage
        self._optimiser = torch.optim.AdamW(stage.parameter_groups(), fused=True)
        self.progress = StageProgress(built_on=built_on)
        self._steps_per_epoch = stage.steps_per_epoch // self._world
        if not self._steps_per_epoch:
            raise RecipeError(
                f"{stage.name}: an epoch has {stage.steps_per_epoch} batches, too few for {self._world} processes; "
                "smaller batches or fewer processes help"
            )
        self._steps_done = 0
        self._resume()

    def train_epoch(self, seed: int, on_step: Progress) -> None:
        """Train one epoch, judge it, and keep its state."""
        epoch, total = len(self.progress.epochs), self._stage.optimisation.epochs * self._steps_per_epoch
        # Dropout is the same in a run that was interrupted, and another one in each process.
        torch.manual_seed((seed + epoch) * self._world + self._rank)
        self._stage.train()
        loss_sum = 0.0
        for step, batch in enumerate(self._own_batches(epoch), start=1):
            loss = self._step(batch)
            loss_sum += loss
            on_step(self._stage.name, epoch * self._steps_per_epoch + step, total, loss)
        self._stage.eval()
        if self._rank == 0:
            self._judge(epoch, loss=loss_sum / self._steps_per_epoch)
        if self._world > 1:
            torch.distributed.barrier()
            self.progress = _read_progress(self._folder)

    def _own_batches(self, epoch: int) -> Iterator[Any]:
        """Yield this process's share; every process takes equally many steps."""
        most = self._steps_per_epoch * self._world
        for number, batch in enumerate(self._stage.batches(epoch)):
            if number < most and number % self._world == self._rank:
                yield batch

    def _step(self, batch: Any) -> float:
        loss: Tensor = self._loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak_rate"] * self._rate_factor(self._steps_done)
        nn.utils.clip_grad_norm_(self._stage.parameters(), self._stage.optimisation.clip_norm)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._steps_done += 1
        value = float(loss.detach())
        if not math.isfinite(value):  # and so are weights and moments from now on; those of the last epoch are kept
            raise RecipeError(
                f"{self._stage.name}: the loss of step {self._steps_done} is {value}; a lower learning rate may help"
            )
        return value

    def _rate_factor(self, step: int) -> float:
        """Rise from 0 during warm-up, then fall linearly to 0."""
        steps = self._stage.optimisation.epochs * self._steps_per_epoch
        warm_up = max(1, round(steps * self._stage.optimisation.warm_up_share))
        return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up), 1.0)

    def _judge(self, epoch: int, *, loss: float) -> None:
        evaluations = self._stage.judge()
        record = EpochRecord(epoch + 1, loss, self._stage.figure(evaluations), evaluations)
        self.progress.epochs.append(record)
        _log.info("%s, epoch %d: loss %.4f, figure %.4f", self._stage.name, record.epoch, loss, record.figure)
        for evaluation in evaluations:
            _log.info(
                "  %s dev, %s: accuracy %.4f, %s %.4f, ECE %.4f",
                evaluation.task, "+".join(evaluation.modalities), evaluation.accuracy, evaluation.official.name,
                evaluation.official.value, evaluation.ece,
            )  # fmt: skip
        self._keep(record.epoch)
        self._report()

    def _report(self) -> None:
        _write_log(self._folder / "log.csv", self.progress)
        save_curve_png(self.progress, self._folder / "curve.png")

    def _keep(self, epoch: int) -> None:
        """Keep an epoch's state, under names of its own: what is interrupted here leaves the last epoch whole."""
        state = {name: tensor.contiguous() for name, tensor in self._stage.state_dict().items()}
        save_file(state, _weights_file(self._folder, epoch))
        save_file(_flat_optimiser_state(self._optimiser), _optimiser_file(self._folder, epoch))
        write_json(self._folder / _PROGRESS, self.progress)
        needed = {_weights_file(self._folder, number) for number in (epoch, self.progress.best.epoch)}
        for file in self._folder.glob("*.safetensors"):
            if file not in {*needed, _optimiser_file(self._folder, epoch)}:
                file.unlink()

    def _resume(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / _PROGRESS).exists():
            return
        built_on, self.progress = self.progress.built_on, _read_progress(self._folder)
        if self.progress.built_on not in ("", built_on):  # empty if it was begun before this was kept
            raise RecipeError(
                f"{self._folder} was learned on top of other weights than the stages before it have now; "
                "remove it, and it is learned anew"
            )
        self.progress.built_on = built_on
        if self._rank == 0:  # perhaps it was stopped after the epoch was kept, and before that was told
            self._report()
        last = self.progress.epochs[-1].epoch
        self._stage.load_state_dict(_load_kept(_weights_file(self._folder, last), str(self._compute.device)))
        _restore_optimiser_state(self._optimiser, _load_kept(_optimiser_file(self._folder, last)))
        self._steps_done = len(self.progress.epochs) * self._steps_per_epoch
        _log.info("%s: %d of %d epochs are done", self._stage.name, len(self.progress.epochs),
                  self._stage.optimisation.epochs)  # fmt: skip


def _weights_file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch}.safetensors"


def _optimiser_file(folder: Path, epoch: int) -> Path:
    return folder / f"optimiser-{epoch}.safetensors"


def _load_kept(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read what a stage kept.

    Raises:
        RecipeError: It is gone, or not whole.
    """
    try:
        return load_file(file, device=device)
    except (FileNotFoundError, SafetensorError) as error:
        raise _not_whole(file, error) from error


def _read_progress(folder: Path) -> StageProgress:
    file = folder / _PROGRESS
    try:
        return msgspec.json.decode(file.read_bytes(), type=StageProgress)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_whole(file, error) from error


def _not_whole(file: Path, error: Exception) -> RecipeError:
    return RecipeError(f"{file} cannot be read: {error}; remove {file.parent}, and this stage is learned anew")


def _write_log(file: Path, progress: StageProgress) -> None:
    columns = [
        f"{evaluation.task} {'+'.join(evaluation.modalities)} {name}"
        for evaluation in progress.epochs[0].evaluations
        for name in ("accuracy", "official", "ECE")
    ]
    with file.open("w", encoding="utf-8", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(["epoch", "loss", "figure", *columns])
        for record in progress.epochs:
            figures = [
                value
                for evaluation in record.evaluations
                for value in (evaluation.accuracy, evaluation.official.value, evaluation.ece)
            ]
            table.writerow([record.epoch, *(f"{value:.4f}" for value in (record.loss, record.figure, *figures))])


def _flat_optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's tensors by `PARAMETER.NAME`, as safetensors wants them."""
    state = optimiser.state_dict()["state"]
    return {f"{i}.{name}": tensor.contiguous() for i, values in state.items() for name, tensor in values.items()}


def _restore_optimiser_state(optimiser: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """Restore what `_flat_optimiser_state` gave.

    The fused AdamW reads a parameter and its moments as flat memory: all must lie in the same order, be it channels
    last or not.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        index, name = key.split(".")
        own = parameters[int(index)]
        laid_out = torch.empty_like(own).copy_(tensor) if tensor.shape == own.shape else tensor
        state.setdefault(int(index), {})[name] = laid_out
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
