"""A recipe -> a checkpoint, in stages. Called by `emostream train`.

    RUN/recipe.json   what runs
    RUN/text          encoder and text heads        (text_training.py)
    RUN/text-N        the same from the start: averaged, or taught by those before it
    RUN/heads/SET     the head of a data set, longer (head_training.py)
    RUN/voice         MobileNet                     (voice_training.py)
    RUN/fusion        the head over both            (fusion_training.py)
    RUN/best          the checkpoint that comes out, ready for use
    RUN/figures       the development figures of what came out, as JSON, CSV, PNG and Markdown

A stage that is done is not run again; one that was interrupted goes on after its last finished epoch.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch
from filelock import FileLock, Timeout
from torch import nn

from emostream.model.checkpoint import Checkpoint, CheckpointConfig, VoiceSettings, save_checkpoint
from emostream.model.datasets import require_folds
from emostream.model.device import choose_device, choose_precision
from emostream.model.encoder import encoder_settings
from emostream.model.errors import RecipeError
from emostream.model.evaluation import Evaluation
from emostream.model.fusion_training import FusionStage, check_pairs
from emostream.model.head_training import HeadStage, check_heads
from emostream.model.network import FusedEmotionModel
from emostream.model.pooling import Compute
from emostream.model.quantise import quantise_rows, widen_rows
from emostream.model.recipe import Recipe
from emostream.model.report import write_reports
from emostream.model.samples import EMOTION, LABELS
from emostream.model.text_training import Teacher, TextStage
from emostream.model.training_loop import Progress, local_device, processes, run_stage, write_json
from emostream.model.voice_training import VoiceStage

_CLAIM, _LOCK = "recipe.json", ".lock"


def train(
    recipe: Recipe,
    *,
    data: Path,
    run: Path,
    device: str | None = None,
    fold: tuple[int, int] | None = None,
    on_step: Progress = lambda *_: None,
) -> tuple[Evaluation, ...]:
    """Train by a recipe, or go on with the run that `run` holds.

    Args:
        recipe: What to train, and how.
        data: Folder that the recipe's data sets, encoder and weights are relative to.
        run: Folder of this run; its `best/` is the checkpoint that comes out.
        device: In place of the recipe's. Under torchrun, each process takes the GPU of its local number.
        fold: (which fold is held out, how many there are): data sets with speakers or sessions are divided by them, and
            what is held out judges the epochs.
        on_step: Told about each step, for a progress bar.

    Returns:
        The development figures of what came out: of the heads, and of the three paths.

    Raises:
        RecipeError: `run` holds a run of another recipe, or one that is under way; the encoder cannot be loaded; or a
            stage would lack what it learns from.
        DatasetError: A data set is missing or malformed, or none can be divided into folds.
        AudioError: A recording of a data set cannot be used.
    """
    chosen = local_device(choose_device(device or recipe.device))
    compute = Compute(chosen, choose_precision(recipe.precision, chosen))
    claim = claim_run(run, recipe, fold)
    with _alone_in(run):
        return _run_stages(claim, data=data, run=run, compute=compute, on_step=on_step)


def _run_stages(
    claim: "Claim", *, data: Path, run: Path, compute: Compute, on_step: Progress
) -> tuple[Evaluation, ...]:
    recipe, fold = claim.recipe, claim.fold
    if recipe.text.teaching is not None and recipe.text.runs == 1:
        raise RecipeError("text.teaching needs two runs or more: the first has nobody to learn from")
    # Both are built before either runs: what is wrong with recipe or data shows in a minute, not after an hour.
    torch.manual_seed(recipe.seed)  # decides the first weights of heads
    text = TextStage(recipe.text, data=data, compute=compute, seed=recipe.seed, fold=fold)
    voice = None
    if recipe.voice is not None:
        torch.manual_seed(recipe.seed)
        voice = VoiceStage(recipe.voice, data=data, compute=compute, seed=recipe.seed, fold=fold)
    if recipe.heads is not None:
        check_heads(recipe.heads, text=text)
    check_pairs(recipe.fusion, text=text, voice=voice)
    if fold is not None:
        require_folds([*text.sets("dev"), *(voice.sets("dev") if voice is not None else [])])
    if processes()[0] == 0:
        claim.write(run)

    _learn_text(text, recipe, run=run, compute=compute, on_step=on_step)
    make_small(text.branch)
    judged = {each.task: each for each in text.judge()}
    if recipe.heads is not None:
        for name in recipe.heads.datasets:
            head = HeadStage(recipe.heads, name, text=text, compute=compute, seed=recipe.seed)
            learned = _learn_on(
                head, text, folder=run / "heads" / name, compute=compute, seed=recipe.seed, on_step=on_step
            )
            judged |= {each.task: each for each in learned}
    if voice is not None:
        run_stage(voice, folder=run / "voice", compute=compute, seed=recipe.seed, on_step=on_step)
        make_small(voice.branch)

    torch.manual_seed(recipe.seed)
    fusion = FusionStage(recipe.fusion, text=text, voice=voice, compute=compute, seed=recipe.seed)
    run_stage(
        fusion,
        folder=run / "fusion",
        compute=compute,
        seed=recipe.seed,
        built_on=[stage.branch for stage in (text, voice) if stage is not None],
        on_step=on_step,
    )

    # The seven labels are answered by the fusion head; the text stage's own figures of them are not what comes out.
    attributes = (each for each in judged.values() if each.labels != LABELS)
    evaluations = (*fusion.judge(), *attributes)
    if processes()[0] == 0:
        save_checkpoint(_checkpoint(recipe, text=text, voice=voice, fusion=fusion), run / "best")
        write_reports(evaluations, run / "figures", title="On development data, which chose epochs and temperatures")
    return evaluations


def _learn_on(
    head: HeadStage, text: TextStage, *, folder: Path, compute: Compute, seed: int, on_step: Progress
) -> tuple[Evaluation, ...]:
    """Run the heads stage of a head, and leave it as it was if no epoch made it better."""
    before, came = {name: tensor.clone() for name, tensor in head.state_dict().items()}, head.judge()
    progress = run_stage(head, folder=folder, compute=compute, seed=seed, built_on=[text.branch], on_step=on_step)
    if progress.best.figure > head.figure(came):
        return head.judge()
    head.load_state_dict(before)
    return came


def _learn_text(text: TextStage, recipe: Recipe, *, run: Path, compute: Compute, on_step: Progress) -> None:
    """Train the text stage as often as the recipe says.

    It is left with what the last run learned, where those before it were its teachers, or else with the mean of all.
    """
    first = {name: tensor.clone() for name, tensor in text.state_dict().items()}
    total = dict.fromkeys(first, torch.zeros(()))
    teachers: list[Teacher] = []
    for number in range(recipe.text.runs):
        if number and recipe.text.teaching is not None:
            teachers.append(text.as_teacher())
        text.load_state_dict(first)
        text.begin(number, teachers=teachers)
        run_stage(
            text,
            folder=run / ("text" if number == 0 else f"text-{number + 1}"),
            compute=compute,
            seed=recipe.seed + 100 * number,
            built_on=teachers,
            on_step=on_step,
        )
        total = {name: total[name] + tensor.cpu().double() for name, tensor in text.state_dict().items()}
    if recipe.text.teaching is None:
        text.load_state_dict({name: tensor / recipe.text.runs for name, tensor in total.items()})


def make_small(branch: nn.Module) -> None:
    """Give a branch the weights that its checkpoint will have: what learns on top, and all figures, go by these.

    They are made on the CPU: CUDA divides a little differently, and a run that goes on elsewhere must find the same.
    """
    state = {name: tensor.cpu() for name, tensor in branch.state_dict().items()}
    branch.load_state_dict(widen_rows(quantise_rows(state)))


@contextlib.contextmanager
def _alone_in(run: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder; of those that train together, the first one does.

    Raises:
        RecipeError: Another one is at work there.
    """
    if processes()[0] != 0:
        yield
        return
    lock = FileLock(run / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise RecipeError(f"another training is at work in {run}: it holds {lock.lock_file}") from error
    except OSError as error:
        raise RecipeError(f"{lock.lock_file} cannot be locked: {error.strerror}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def check_fold(checkpoint: Path, task: str, fold: tuple[int, int]) -> None:
    """Find out whether a checkpoint has learned from a fold of a data set, as far as the run that it lies in says.

    Raises:
        RecipeError: It has: its run held out another fold, or none, or did not divide this data set.
    """
    file = checkpoint.resolve().parent / _CLAIM
    if not file.exists():
        return
    claim = _read_claim(file)
    stages = [stage for stage in (claim.recipe.text, claim.recipe.voice) if stage is not None]
    learned = [choice for stage in stages for choice in stage.datasets if _set(choice.name) == _set(task)]
    divided = claim.fold is not None and all(choice.judged for choice in learned)
    if learned and not (divided and claim.fold == fold):
        held = (
            f"held out fold {claim.fold[0] + 1} of {claim.fold[1]}" if claim.fold and divided else "did not divide it"
        )
        raise RecipeError(
            f"{checkpoint} has learned from fold {fold[0] + 1} of {fold[1]} of {task}: its training {held}"
        )


def _set(name: str) -> str:
    """Return whose recordings a data set's are: IEMOCAP has two readers."""
    return name.removesuffix("-merged")


class Claim(msgspec.Struct, frozen=True):
    """What a run's folder is for."""

    recipe: Recipe
    fold: tuple[int, int] | None

    def write(self, run: Path) -> None:
        """Write it into the folder."""
        write_json(run / _CLAIM, self)


def claim_run(run: Path, recipe: Recipe, fold: tuple[int, int] | None) -> Claim:
    """Return what is to stand in the folder, and refuse a folder in which something else runs.

    Raises:
        RecipeError: It holds a run of another recipe or fold.
    """
    anywhere = msgspec.structs.replace(recipe, device="auto")  # a run may go on elsewhere
    file, claim = run / _CLAIM, Claim(anywhere, fold)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{run} cannot hold a run: {error}") from error
    if file.exists() and _read_claim(file) != claim:
        raise RecipeError(f"{run} holds a run of another recipe; choose another folder or remove it")
    return claim


def _read_claim(file: Path) -> Claim:
    """Read what a run's folder is for.

    Raises:
        RecipeError: The file cannot be read.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Claim)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} does not say what the folder is for: {error}") from error


def _checkpoint(recipe: Recipe, *, text: TextStage, voice: VoiceStage | None, fusion: FusionStage) -> Checkpoint:
    attributes = {name: labels for name, labels in text.classes.items() if name != EMOTION}
    heads = torch.nn.ModuleDict({name: text.heads[name] for name in attributes})
    temperatures = {name: value for name, value in text.temperatures().items() if name != EMOTION}
    settings = None
    if voice is not None and recipe.voice is not None:
        settings = VoiceSettings(variant=recipe.voice.variant, width_multiplier=recipe.voice.width_multiplier)
    config = CheckpointConfig(
        name=recipe.name,
        version=recipe.version,
        labels=LABELS,
        attributes=attributes,
        encoder=encoder_settings(text.branch.encoder),
        voice=settings,
        fusion_width=recipe.fusion.head_width,
        attribute_width=recipe.text.head_width,
        normalisation=text.tokenizer.normalisation,
        layout=text.tokenizer.layout,
        temperatures={**fusion.temperatures(), **temperatures},
    )
    network = FusedEmotionModel(
        text=text.branch, voice=voice.branch if voice else None, fusion=fusion.fusion, attributes=heads
    )
    return Checkpoint(config=config, network=network, tokenizer=text.tokenizer)
