"""The voice stage: MobileNet over images of speech, with a head of its own. Run by `training`.

Legend: B recordings of a batch, S samples, K channels, F frames, M bands, V width of a pooled recording, C classes.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from librosa import resample
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from emostream.model.audio import SAMPLE_RATE_HZ, decode_recording, require_whole
from emostream.model.datasets import Dataset, Example
from emostream.model.device import autocast
from emostream.model.errors import AudioError, DatasetError
from emostream.model.evaluation import Evaluation, evaluate_scores, fit_temperature
from emostream.model.features import HOP_SAMPLES, ClipWindows, cut_windows, level
from emostream.model.mobilenet import load_pretrained, start_from
from emostream.model.network import Head, VoiceBranch
from emostream.model.pooling import Compute, pool_clips
from emostream.model.recipe import VoiceRecipe
from emostream.model.samples import EMOTION, LABELS
from emostream.model.sampling import class_weights, draw, read_choices, shares, shuffled_batches, soft_targets
from emostream.model.training_loop import Stage

_log = logging.getLogger(__name__)

_Waveform = NDArray[np.float32]

_MEASURED_RECORDINGS = 256
"""Recordings that the AudioSet weights' batch normalisation is measured on: a few hundred settle it."""


class VoiceStage(Stage):
    """What the voice stage learns, from what, and how it is judged.

    Args:
        recipe: The stage's part of the recipe.
        data: Folder that data sets and weights are relative to.
        compute: Device and precision.
        seed: Of the order of recordings.
        fold: (which fold is held out, how many there are), for cross-validation.
    """

    name = "voice"

    def __init__(
        self, recipe: VoiceRecipe, *, data: Path, compute: Compute, seed: int, fold: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.optimisation = recipe.optimisation
        self._recipe, self._compute, self._seed = recipe, compute, seed
        learned, _, judging = read_choices(recipe.datasets, data=data, fold=fold)
        heard, judged = list(map(_heard, learned)), list(map(_heard, judging))
        self._train_sets = train_sets = [dataset for dataset, _ in heard]
        self._dev_sets = [dataset for dataset, _ in judged]
        self._labels = [[example.labels for example in dataset.examples] for dataset in train_sets]
        self._clips = [[_at_speeds(wave, recipe.speeds) for wave in waves] for _, waves in heard]
        self._dev_clips = [[cut_windows(wave) for wave in waves] for _, waves in judged]
        self._weights = [
            class_weights(dataset, choice.class_weight_power, compute.device)[EMOTION]
            for dataset, choice in zip(train_sets, recipe.datasets, strict=True)
        ]
        self.branch = VoiceBranch(variant=recipe.variant, width_multiplier=recipe.width_multiplier)
        self.head = Head(
            width_in=self.branch.width, width=recipe.head_width, dropout=recipe.dropout, classes=len(LABELS)
        )
        if recipe.weights:
            file = data / recipe.weights
            weights = load_pretrained(str(file) if file.is_file() else recipe.weights)
            start_from(self.branch.body, weights, images_BKFM=self._some_images())
        self.to(compute.device)
        self.branch.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out

    def _some_images(self) -> Tensor:
        """Return images of recordings from all data sets."""
        clips = [speeds[0] for clips in self._clips for speeds in clips]
        chosen = clips[:: max(1, len(clips) // _MEASURED_RECORDINGS)]
        images_BKFM: Tensor = self.branch.images(torch.stack([self._crop(torch.from_numpy(clip)) for clip in chosen]))
        return images_BKFM

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, on one device."""
        return math.ceil(sum(self._draws()) / self.optimisation.batch_size)

    def _draws(self) -> list[int]:
        sizes = [len(clips) for clips in self._clips]
        recipe = self._recipe
        return shares(sizes, recipe.datasets, total=recipe.examples_per_epoch, power=recipe.sampling_power)

    def batches(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of (number of the data set, number of the recording in it)."""
        drawn = [
            (number, index)
            for number, (clips, count) in enumerate(zip(self._clips, self._draws(), strict=True))
            for index in draw(len(clips), count, epoch=epoch, seed=self._seed + number)
        ]
        order = shuffled_batches([0] * len(drawn), self.optimisation.batch_size, seed=self._seed + epoch)
        return ([drawn[index] for index in batch] for batch in order)

    def forward(self, batch: Sequence[tuple[int, int]]) -> Tensor:
        """Return the batch's mean loss, with whatever augmentation the recipe asks for."""
        device = self._compute.device
        wave_BS = self._add_noise(torch.stack([self._waveform(*place) for place in batch]).to(device))
        labels = [self._labels[number][index] for number, index in batch]
        targets_BC = soft_targets(labels, len(LABELS), smoothing=self.optimisation.label_smoothing).to(device)
        targets_BC = targets_BC * torch.stack([self._weights[number] for number, _ in batch])
        images_BKFM, targets_BC = self._mix(self._mask(self.branch.images(wave_BS)), targets_BC)
        with autocast(device, self._compute.precision):
            logits_BC = self.head(self.branch.body(images_BKFM.contiguous(memory_format=torch.channels_last)))
        return -(targets_BC * functional.log_softmax(logits_BC.float(), -1)).sum() / len(batch)

    def _waveform(self, number: int, index: int) -> Tensor:
        speeds = self._clips[number][index]
        chosen = int(torch.randint(len(speeds), ()))
        return self._crop(torch.from_numpy(speeds[chosen]))

    def _crop(self, wave_S: Tensor) -> Tensor:
        """Return as many samples as a training image has, from a random place, or put at a random place in silence."""
        samples = self._recipe.crop_frames * HOP_SAMPLES
        spare = samples - len(wave_S)
        offset = int(torch.randint(abs(spare) + 1, ()))
        if spare <= 0:
            return wave_S[offset : offset + samples]
        return functional.pad(wave_S, (offset, spare - offset))

    def _add_noise(self, wave_BS: Tensor) -> Tensor:
        if self._recipe.noise_db is None:
            return wave_BS
        low, high = self._recipe.noise_db
        ratio_db_B1 = low + (high - low) * torch.rand(len(wave_BS), 1, device=wave_BS.device)
        level_B1 = wave_BS.square().mean(1, keepdim=True).sqrt() * 10 ** (-ratio_db_B1 / 20)
        chosen_B1 = torch.rand(len(wave_BS), 1, device=wave_BS.device) < 0.5
        return wave_BS + torch.randn_like(wave_BS) * level_B1 * chosen_B1

    def _mask(self, images_BKFM: Tensor) -> Tensor:
        """Hide a span of frames and a span of bands of each image behind the image's own mean."""
        mean_BK11 = images_BKFM.mean((2, 3), keepdim=True)
        for axis, widest in ((2, self._recipe.mask_frames), (3, self._recipe.mask_bands)):
            if not widest:
                continue
            size, count = images_BKFM.shape[axis], len(images_BKFM)
            width_B = torch.randint(widest + 1, (count,), device=images_BKFM.device)
            start_B = (torch.rand(count, device=images_BKFM.device) * (size - width_B)).long()
            places = torch.arange(size, device=images_BKFM.device)
            hidden = (places >= start_B[:, None]) & (places < (start_B + width_B)[:, None])
            shape = (count, 1, size, 1) if axis == 2 else (count, 1, 1, size)
            images_BKFM = torch.where(hidden.view(shape), mean_BK11, images_BKFM)
        return images_BKFM

    def _mix(self, images_BKFM: Tensor, targets_BC: Tensor) -> tuple[Tensor, Tensor]:
        if not self._recipe.mixup:
            return images_BKFM, targets_BC
        alpha = torch.tensor(self._recipe.mixup)
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(images_BKFM), device=images_BKFM.device)
        mixed_BKFM = share * images_BKFM + (1 - share) * images_BKFM[other]
        return mixed_BKFM, share * targets_BC + (1 - share) * targets_BC[other]

    def peak_rate(self, parameter: str) -> float:
        """Return one rate for MobileNet, one for the head."""
        settings = self._recipe.optimisation
        return settings.learning_rate if parameter.startswith("branch.") else settings.head_learning_rate

    def judge(self) -> tuple[Evaluation, ...]:
        """Evaluate each judged data set's development split at its own best temperature."""
        return tuple(self._judge(*pair) for pair in zip(self._dev_sets, self._dev_clips, strict=True))

    def _judge(self, dataset: Dataset, clips: Sequence[ClipWindows]) -> Evaluation:
        pooled_NV = pool_clips(self.branch, clips, compute=self._compute)
        with torch.no_grad():
            logits_NC = self.head(pooled_NV.to(self._compute.device)).float().cpu()
        scores_NC = torch.softmax(logits_NC / fit_temperature((logits_NC, dataset.examples)), -1).numpy()
        return evaluate_scores(dataset, scores_NC, modalities=("voice",))

    def sets(self, split: str) -> list[Dataset]:
        """Return the data sets of the split `train` or `dev`: the examples whose recordings can be heard."""
        return list(self._train_sets if split == "train" else self._dev_sets)

    def pooled(self, split: str) -> list[tuple[Dataset, Tensor]]:
        """Return each data set of `train` or of what is judged, and pooled_NV of its recordings.

        A training recording comes once per speed, as the branch learned from it.
        """
        if split == "dev":
            pairs = zip(self._dev_sets, self._dev_clips, strict=True)
            return [(dataset, pool_clips(self.branch, clips, compute=self._compute)) for dataset, clips in pairs]
        return [
            (
                msgspec.structs.replace(dataset, examples=dataset.examples * len(clips[0])),
                torch.cat([self._pool_at_speed(clips, number) for number in range(len(clips[0]))]),
            )
            for dataset, clips in zip(self._train_sets, self._clips, strict=True)
        ]

    def _pool_at_speed(self, clips: Sequence[Sequence[_Waveform]], number: int) -> Tensor:
        return pool_clips(self.branch, [cut_windows(speeds[number]) for speeds in clips], compute=self._compute)

    def figure(self, evaluations: Sequence[Evaluation]) -> float:
        """Return the mean unweighted average recall."""
        return sum(evaluation.uar for evaluation in evaluations) / len(evaluations)


def _heard(dataset: Dataset) -> tuple[Dataset, list[_Waveform]]:
    """Return the examples whose recordings can be used, and the waveforms; says how many cannot.

    Raises:
        DatasetError: There is none.
    """
    heard: list[tuple[Example, _Waveform]] = []
    unread: list[str] = []
    for example in dataset.examples:
        if example.recording is None:
            continue
        try:
            heard.append((example, require_whole(decode_recording(example.recording)).waveform))
        except (AudioError, OSError) as error:
            unread.append(f"{example.recording}: {error}")
    if unread:
        _log.warning("%s %s: %d recordings cannot be used and are left out, the first of them: %s",
                     dataset.name, dataset.split, len(unread), unread[0])  # fmt: skip
    if not heard:
        raise DatasetError(f"{dataset.name}: no example of split {dataset.split!r} has a recording that can be used")
    return msgspec.structs.replace(dataset, examples=tuple(e for e, _ in heard)), [wave for _, wave in heard]


def _at_speeds(waveform_S: _Waveform, speeds: Sequence[float]) -> list[_Waveform]:
    """Return the levelled recording at each speed; pitch moves with it, as on a tape."""
    speech_S = level(waveform_S)
    return [
        speech_S if speed == 1.0 else resample(speech_S, orig_sr=SAMPLE_RATE_HZ * speed, target_sr=SAMPLE_RATE_HZ)
        for speed in speeds
    ]
