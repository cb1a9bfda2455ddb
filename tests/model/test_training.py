"""Training, for real but small: all three paths learn, and an interrupted run ends as an uninterrupted one."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from tiny_data import write_goemotions, write_iemocap, write_irony, write_meld, write_ravdess

from emostream.model import cli, training_loop
from emostream.model.audio import decode_recording
from emostream.model.batching import pad_rows
from emostream.model.checkpoint import load_checkpoint
from emostream.model.datasets import read_dataset, readers
from emostream.model.errors import DatasetError, DeviceError, RecipeError
from emostream.model.fusion_training import FusionStage
from emostream.model.judging import judge
from emostream.model.pooling import Compute
from emostream.model.recipe import (
    RECIPES,
    SHIPPED_RECIPE,
    DatasetChoice,
    FusionRecipe,
    HeadRecipe,
    Optimisation,
    Recipe,
    Teaching,
    TextOptimisation,
    TextRecipe,
    VoiceOptimisation,
    VoiceRecipe,
    find_recipe,
    read_recipe,
)
from emostream.model.samples import LABELS
from emostream.model.scorer import EmotionScorer, Item
from emostream.model.text_training import TextStage
from emostream.model.training import check_fold, train
from emostream.model.voice_training import VoiceStage

pytestmark = pytest.mark.xdist_group("training")  # most look at one run, or go on from a copy of it


@pytest.fixture(scope="session")
def data(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(tiny_bert, folder / "encoder")
    write_meld(folder / "meld")
    write_irony(folder / "tweeteval")
    write_ravdess(folder / "ravdess")
    return folder


RECIPE = Recipe(
    name="tiny",
    version="0",
    precision="float32",
    text=TextRecipe(
        encoder="encoder",
        datasets=(DatasetChoice("meld", "meld"), DatasetChoice("tweeteval/irony", "tweeteval")),
        window_tokens=32,
        head_width=16,
        optimisation=TextOptimisation(epochs=6, batch_size=8, learning_rate=2e-3, head_learning_rate=5e-3),
    ),
    heads=HeadRecipe(
        datasets=("tweeteval/irony",),
        class_weight_power=0.5,
        optimisation=Optimisation(epochs=2, batch_size=8, learning_rate=1e-3),
    ),
    voice=VoiceRecipe(
        datasets=(DatasetChoice("ravdess", "ravdess"),),
        width_multiplier=0.25,
        head_width=16,
        crop_frames=128,
        speeds=(1.0, 1.02),
        mixup=0.1,
        mask_frames=4,
        mask_bands=2,
        noise_db=(30.0, 40.0),
        examples_per_epoch=180,
        optimisation=VoiceOptimisation(epochs=8, batch_size=12, learning_rate=2e-3, head_learning_rate=2e-3),
    ),
    fusion=FusionRecipe(
        head_width=32,
        examples_per_epoch=480,
        voice_dropout=0.2,
        optimisation=Optimisation(epochs=4, batch_size=24, learning_rate=5e-3),
    ),
)


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    steps: list[tuple[str, int, int]] = []
    train(RECIPE, data=data, run=folder, device="cpu", on_step=lambda *step: steps.append(step[:3]))
    for stage in ("text", "heads, tweeteval/irony", "voice", "fusion"):
        told = [(done, total) for name, done, total in steps if name == stage]
        assert told == [(done, len(told)) for done in range(1, len(told) + 1)]
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing but what `run` drew before this: hundreds of curves and matrices that nobody looks at."""
    monkeypatch.setattr("emostream.model.training_loop.save_curve_png", lambda *_: None)
    monkeypatch.setattr("emostream.model.report.save_confusion_png", lambda *_: None)
    monkeypatch.setattr("emostream.model.report.save_calibration_png", lambda *_: None)


def best(scores: tuple[float, ...]) -> str:
    return LABELS[scores.index(max(scores))]


def test_every_path_learns(run: Path, data: Path) -> None:
    scorer = EmotionScorer.load(run / "best", device="cpu", precision="float32")
    clip = decode_recording(data / "ravdess" / "Actor_17" / "03-01-03-01-01-01-17.wav")
    text, voice, both = scorer.score(
        [Item(text="the a so"), Item(recording=clip), Item(text="j so", recording=clip)]
    ).outcomes
    assert [best(outcome.scores) for outcome in (text, voice, both)] == ["anger", "joy", "joy"]
    assert text.attributes["irony"].label == "non_irony"
    ironic = scorer.score([Item(text="so z the")]).outcomes[0]
    assert ironic.attributes["irony"].label == "irony"


def test_a_run_leaves_logs_curves_and_figures(run: Path) -> None:
    for stage in ("text", "heads/tweeteval/irony", "voice", "fusion"):
        with (run / stage / "log.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
        assert (run / stage / "curve.png").read_bytes().startswith(b"\x89PNG")
    figures = [json.loads(file.read_text()) for file in (run / "figures").glob("*.json")]
    assert {(figure["task"], tuple(figure["modalities"])) for figure in figures} == {
        ("meld", ("text",)), ("tweeteval/irony", ("text",)), ("ravdess", ("voice",)),
        ("pairs", ("text",)), ("pairs", ("voice",)), ("pairs", ("text", "voice")),
    }  # fmt: skip
    assert "meld" in (run / "figures" / "report.md").read_text()


def test_what_is_shipped_scores_as_what_was_judged(run: Path, data: Path) -> None:
    """int8 and the way through a folder change little: the checkpoint's own figures are the run's."""
    scorer = EmotionScorer.load(run / "best", device="cpu", precision="float32")
    for name, folder in (("meld", "meld"), ("ravdess", "ravdess"), ("tweeteval/irony", "tweeteval")):
        judged = judge(scorer, read_dataset(name, data / folder, "dev"))
        logged = json.loads((run / "figures" / f"{_stem(name)}.json").read_text())
        assert judged.accuracy == pytest.approx(logged["accuracy"], abs=0.06)


def _stem(name: str) -> str:
    return {"meld": "meld-dev", "ravdess": "ravdess-dev-voice", "tweeteval/irony": "tweeteval-irony-dev"}[name]


@pytest.mark.parametrize("stage", ["text", "heads", "voice", "fusion"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(run: Path, data: Path, tmp_path: Path, stage: str) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(name: str, done: int, total: int, _loss: float) -> None:
        if name.split(",")[0] == stage and done == total // 2 + 1:  # in the middle of an epoch
            raise Interrupted

    stages = ["text", "heads", "voice", "fusion"]
    for earlier in stages[: stages.index(stage)]:
        shutil.copytree(run / earlier, tmp_path / earlier)
    with pytest.raises(Interrupted):
        train(RECIPE, data=data, run=tmp_path, device="cpu", on_step=interrupt)
    train(RECIPE, data=data, run=tmp_path, device="cpu")
    whole, resumed = load_checkpoint(run / "best"), load_checkpoint(tmp_path / "best")
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], tensor, rtol=1e-3, atol=2e-3, msg=name)


def test_what_was_learned_on_other_weights_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    """As when somebody removes a stage to have it learned anew, and keeps those that were built on it."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "text").glob("epoch-*.safetensors"):
        weights = load_file(file)
        weights["branch.encoder.embeddings.LayerNorm.weight"] += 0.5
        save_file(weights, file)
    with pytest.raises(RecipeError, match=r"heads/tweeteval/irony was learned on top of other weights.*remove it"):
        train(RECIPE, data=data, run=tmp_path, device="cpu")


def test_a_run_of_before_checksums_were_kept_is_resumed(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "best").rename(tmp_path / "as it was")
    for file in tmp_path.rglob("progress.json"):
        progress = json.loads(file.read_bytes())
        del progress["built_on"]
        file.write_text(json.dumps(progress))
    train(RECIPE, data=data, run=tmp_path, device="cpu")
    assert (tmp_path / "best/model.safetensors").read_bytes() == (tmp_path / "as it was/model.safetensors").read_bytes()


def test_a_stop_between_two_files_loses_nothing(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped when the weights of an epoch are written and its progress is not."""
    real = training_loop.write_json

    def stopping(file: Path, value: object) -> None:
        if file.name == "progress.json" and len(value.epochs) == 3:
            raise KeyboardInterrupt
        real(file, value)

    monkeypatch.setattr(training_loop, "write_json", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, data=data, run=tmp_path, device="cpu")
    monkeypatch.setattr(training_loop, "write_json", real)
    shutil.copytree(run / "voice", tmp_path / "voice")
    train(RECIPE, data=data, run=tmp_path, device="cpu")
    whole, resumed = load_checkpoint(run / "best"), load_checkpoint(tmp_path / "best")
    for name, tensor in whole.network.text.state_dict().items():
        torch.testing.assert_close(resumed.network.text.state_dict()[name], tensor, rtol=1e-3, atol=2e-3, msg=name)


def changed(recipe: Recipe, part: str, **changes: object) -> Recipe:
    """Return a recipe with changes in one of its parts."""
    return msgspec.structs.replace(recipe, **{part: msgspec.structs.replace(getattr(recipe, part), **changes)})


UNJUDGED = (DatasetChoice("meld", "meld", judged=False),)
IRONY_UNJUDGED = (RECIPE.text.datasets[0], DatasetChoice("tweeteval/irony", "tweeteval", judged=False))
FEAR_ALONE = (DatasetChoice("ravdess", "fear"),)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (changed(RECIPE, "fusion", match_by_label=False), "nothing has both text and voice"),
        (changed(RECIPE, "heads", datasets=("goemotions",)), "'goemotions' is none of the text stage's"),
        (changed(RECIPE, "text", datasets=RECIPE.text.datasets[1:]), "labelled with the seven emotions"),
        (changed(RECIPE, "text", datasets=UNJUDGED), "none of meld is judged"),
        (changed(RECIPE, "text", datasets=IRONY_UNJUDGED), "'tweeteval/irony' is not judged"),
        (changed(RECIPE, "text", window_tokens=10_000), "window_tokens is 10000"),
        (changed(RECIPE, "voice", datasets=FEAR_ALONE), "no label in common"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_learned(
    data: Path, tmp_path: Path, recipe: Recipe, said: str
) -> None:
    for file in (data / "ravdess").rglob("03-01-05-*.wav"):  # as fear, which no text of ours has
        copy = data / "fear" / file.parent.name / file.name.replace("03-01-05", "03-01-06")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    with pytest.raises(RecipeError, match=said):
        train(recipe, data=data, run=tmp_path, device="cpu", on_step=lambda *_: pytest.fail("it learns"))
    assert not (tmp_path / "recipe.json").exists(), "a recipe that is mended may use the folder"


def test_recordings_that_cannot_be_used_are_left_out_and_named(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(data / "ravdess", tmp_path / "ravdess")
    broken = folder / "Actor_01" / "03-01-03-01-01-01-01.wav"
    broken.write_bytes(b"no recording")
    compute = Compute(torch.device("cpu"), "float32")
    stage = VoiceStage(RECIPE.voice, data=tmp_path, compute=compute, seed=7)
    assert len(stage.sets("train")[0].examples) == len(read_dataset("ravdess", folder, "train").examples) - 1
    assert f"1 recordings cannot be used and are left out, the first of them: {broken}: " in caplog.text
    for file in folder.rglob("*.wav"):
        file.write_bytes(b"")
    with pytest.raises(DatasetError, match="no example of split 'train' has a recording that can be used"):
        VoiceStage(RECIPE.voice, data=tmp_path, compute=compute, seed=7)


def test_a_head_that_learning_on_makes_no_better_stays_as_it_was(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "text", tmp_path / "text")
    wild = Optimisation(epochs=1, batch_size=8, learning_rate=10.0, clip_norm=1e9)
    recipe = msgspec.structs.replace(changed(RECIPE, "heads", optimisation=wild), voice=None)
    train(recipe, data=data, run=tmp_path, device="cpu")
    came = end_of(tmp_path / "text")
    head = load_checkpoint(tmp_path / "best").network.attributes["irony"]
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(tensor, came[f"heads.irony.{name}"], rtol=0, atol=float(tensor.abs().max()) / 127)


def test_each_head_learns_on_by_itself(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "text", tmp_path / "text")
    recipe = msgspec.structs.replace(changed(RECIPE, "heads", datasets=("meld", "tweeteval/irony")), voice=None)
    train(recipe, data=data, run=tmp_path, device="cpu")
    alone, beside = (end_of(folder / "heads/tweeteval/irony") for folder in (run, tmp_path))
    assert set(beside) == {"head.dense.weight", "head.dense.bias", "head.classify.weight", "head.classify.bias"}
    for name, tensor in alone.items():
        torch.testing.assert_close(beside[name], tensor, msg=name)
    assert end_of(tmp_path / "heads/meld")["head.classify.bias"].shape == (7,)


def test_a_loss_that_is_no_number_ends_the_training(data: Path, tmp_path: Path) -> None:
    wild = msgspec.structs.replace(RECIPE.text.optimisation, learning_rate=1e30, head_learning_rate=1e30)
    with pytest.raises(RecipeError, match=r"text: the loss of step \d+ is (nan|inf); a lower learning rate"):
        train(changed(RECIPE, "text", optimisation=wild), data=data, run=tmp_path, device="cpu")
    assert not (tmp_path / "text" / "progress.json").exists()


def test_a_recipe_without_voice_makes_a_model_that_reads_texts(data: Path, tmp_path: Path) -> None:
    text = msgspec.structs.replace(
        RECIPE.text, optimisation=msgspec.structs.replace(RECIPE.text.optimisation, epochs=2)
    )
    train(msgspec.structs.replace(RECIPE, voice=None, text=text), data=data, run=tmp_path, device="cpu")
    scorer = EmotionScorer.load(tmp_path / "best", device="cpu")
    assert scorer.score([Item(text="j so")]).outcomes[0].modalities == ("text",)


def test_a_head_whose_data_set_does_not_judge_has_a_temperature_all_the_same(data: Path, tmp_path: Path) -> None:
    once = msgspec.structs.replace(RECIPE.text.optimisation, epochs=1)
    text = msgspec.structs.replace(RECIPE.text, datasets=IRONY_UNJUDGED, optimisation=once)
    recipe = msgspec.structs.replace(RECIPE, text=text, heads=None, voice=None)
    assert {each.task for each in train(recipe, data=data, run=tmp_path, device="cpu")} == {"meld"}
    assert load_checkpoint(tmp_path / "best").config.temperatures["irony"] != 1.0
    (outcome,) = EmotionScorer.load(tmp_path / "best", device="cpu").score([Item(text="so z")]).outcomes
    assert set(outcome.attributes) == {"irony"}


def test_folds_of_what_cannot_be_divided_are_refused(data: Path, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(RECIPE, voice=None)
    with pytest.raises(DatasetError, match="meld, tweeteval/irony: each has no speakers, sessions or dialogues"):
        train(recipe, data=data, run=tmp_path, device="cpu", fold=(0, 3))
    assert not (tmp_path / "text").exists()


def test_two_trainings_in_one_folder_are_kept_apart(data: Path, tmp_path: Path) -> None:
    def meanwhile(*_: object) -> None:
        with pytest.raises(RecipeError, match=f"another training is at work in {tmp_path}"):
            train(recipe, data=data, run=tmp_path, device="cpu")
        raise InterruptedError

    recipe = msgspec.structs.replace(RECIPE, voice=None)
    with pytest.raises(InterruptedError):
        train(recipe, data=data, run=tmp_path, device="cpu", on_step=meanwhile)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text/epoch-{}.safetensors", None),
        ("text/optimiser-{}.safetensors", b""),
        ("text/progress.json", b"{"),
        ("text/progress.json", b'{"built_on": "\xff"}'),
    ],
)
def test_a_stage_that_is_not_whole_says_so(
    run: Path, data: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    file = folder / name.format(RECIPE.text.optimisation.epochs)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"{file.name} cannot be read: .*; remove {folder / 'text'}, and"):
        train(RECIPE, data=data, run=folder, device="cpu")


@pytest.mark.parametrize("teaching", [None, Teaching(share=0.5, others=0.1)], ids=["labels", "taught"])
def test_runs_end_in_the_mean_of_their_weights_or_in_the_last_student(
    data: Path, tmp_path: Path, teaching: Teaching | None
) -> None:
    short = msgspec.structs.replace(RECIPE.text.optimisation, epochs=2)
    text = msgspec.structs.replace(RECIPE.text, runs=2, teaching=teaching, optimisation=short)
    recipe = msgspec.structs.replace(RECIPE, text=text, heads=None, voice=None)
    steps: list[str] = []
    train(recipe, data=data, run=tmp_path, device="cpu", on_step=lambda name, *_: steps.append(name))
    parts = {"text": "text", "text, run 2": "text-2"}
    assert list(dict.fromkeys(steps)) == [*parts, "fusion"]
    ends = [end_of(tmp_path / folder) for folder in parts.values()]
    ours = load_checkpoint(tmp_path / "best").network.text.state_dict()
    assert any(len({end[f"branch.{name}"].sum().item() for end in ends}) == 2 for name in ours), "each learns"
    for name, tensor in ours.items():
        mean = torch.stack([end[f"branch.{name}"].double() for end in (ends[-1:] if teaching else ends)]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=float(mean.abs().max()) / 127)
    before = (tmp_path / "best" / "model.safetensors").read_bytes()
    (tmp_path / "text" / "log.csv").unlink()  # as a stop just before it was written leaves it
    train(recipe, data=data, run=tmp_path, device="cpu")
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "text" / "log.csv").exists()


def test_a_second_run_learns_from_the_first(data: Path, tmp_path: Path) -> None:
    short = msgspec.structs.replace(RECIPE.text.optimisation, epochs=1)
    ends = []
    for teaching in (None, Teaching(share=0.5)):
        text = msgspec.structs.replace(RECIPE.text, runs=2, teaching=teaching, optimisation=short)
        recipe = msgspec.structs.replace(RECIPE, text=text, heads=None, voice=None, precision="bfloat16")
        train(recipe, data=data, run=tmp_path / str(teaching is None), device="cpu")
        ends.append([end_of(tmp_path / str(teaching is None) / folder) for folder in ("text", "text-2")])
    (first, second), (same, taught) = ends
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(second[name], taught[name]) for name in second)


def test_a_single_run_has_no_teacher(data: Path, tmp_path: Path) -> None:
    text = msgspec.structs.replace(RECIPE.text, teaching=Teaching(share=0.5))
    with pytest.raises(RecipeError, match=r"text\.teaching needs two runs or more"):
        train(msgspec.structs.replace(RECIPE, text=text), data=data, run=tmp_path, device="cpu")


def test_a_student_of_a_run_that_is_gone_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    short = msgspec.structs.replace(RECIPE.text.optimisation, epochs=1)
    text = msgspec.structs.replace(RECIPE.text, runs=2, teaching=Teaching(share=0.5), optimisation=short)
    recipe = msgspec.structs.replace(RECIPE, text=text, heads=None, voice=None)
    train(recipe, data=data, run=tmp_path, device="cpu")
    weights = tmp_path / "text" / "epoch-1.safetensors"
    save_file({name: 1.01 * tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(RecipeError, match="text-2"):
        train(recipe, data=data, run=tmp_path, device="cpu")


def test_a_student_learns_from_every_head_of_its_teachers(data: Path) -> None:
    teaching = Teaching(share=0.75, others=0.25)
    recipe = msgspec.structs.replace(RECIPE.text, teaching=teaching)
    stage = TextStage(recipe, data=data, compute=Compute(torch.device("cpu"), torch.float32), seed=1).eval()
    batch = [each for some in stage.batches(0) for each in some]
    by_labels = stage(batch).item()
    teachers = [stage.as_teacher(), stage.as_teacher()]
    for tensor in teachers[1].parameters():
        tensor.data *= 1.5
    stage.begin(2, teachers=teachers)
    ids_BT = pad_rows([row.ids for row in batch], pad_id=stage.tokenizer.layout.pad_id)
    with torch.no_grad():
        own, other = (teacher(teacher.branch(ids_BT)) for teacher in teachers)
    told = {name: ((own[name] + other[name]) / 2).half().float() for name in own}  # kept as float16
    entropy_BH = torch.stack([-(told[name] * own[name].log()).sum(-1) for name in own], dim=1)
    own_BH = torch.tensor([[row.head == name for name in stage.heads] for row in batch])
    expected = 0.25 * by_labels + (torch.where(own_BH, 0.75, 0.25) * entropy_BH).sum() / len(batch)
    assert own_BH.any(0).all(), "texts of both data sets"
    assert stage(batch).item() == pytest.approx(expected.item(), rel=1e-5)
    assert not [name for name, _ in stage.named_parameters() if "teacher" in name], "nothing of it is learned"


def end_of(stage: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a stage's best epoch."""
    epochs = json.loads((stage / "progress.json").read_text())["epochs"]
    return load_file(stage / f"epoch-{max(epochs, key=lambda record: record['figure'])['epoch']}.safetensors")


def test_folds_hold_out_speakers(data: Path, tmp_path: Path) -> None:
    short = msgspec.structs.replace(
        RECIPE,
        text=msgspec.structs.replace(
            RECIPE.text, optimisation=msgspec.structs.replace(RECIPE.text.optimisation, epochs=1)
        ),
        voice=msgspec.structs.replace(
            RECIPE.voice, optimisation=msgspec.structs.replace(RECIPE.voice.optimisation, epochs=1)
        ),
    )
    folds = [train(short, data=data, run=tmp_path / str(k), device="cpu", fold=(k, 3)) for k in range(3)]
    held = [evaluation.n for fold in folds for evaluation in fold if evaluation.task == "ravdess"]
    assert sum(held) == 6 * 9, "every recording is held out once"


def gradients(stage: TextStage) -> dict[str, torch.Tensor]:
    """Return what the first batch says of each parameter, with the same dropout each time."""
    torch.manual_seed(3)
    stage.zero_grad()
    stage(next(stage.batches(0))).backward()
    return {name: each.grad for name, each in stage.named_parameters() if each.grad is not None}


def assert_alike(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, rtol: float, atol: float
) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=atol, msg=name)


@pytest.fixture
def text_stage(data: Path) -> TextStage:
    return TextStage(RECIPE.text, data=data, compute=Compute(torch.device("cpu"), torch.float32), seed=1)


def test_many_long_texts_are_computed_in_parts_and_learned_as_one(
    text_stage: TextStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_stage.eval()  # dropout falls differently on parts
    batch = next(text_stage.batches(0))
    rows: list[int] = []
    text_stage.branch.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    whole = gradients(text_stage)
    assert rows == [len(batch)]
    longest = max(len(row.ids) for row in batch)
    monkeypatch.setattr("emostream.model.text_training._MOST_KEPT_TOKENS", {"cpu": 3 * longest})
    parted = gradients(text_stage)
    assert max(rows[1:]) == 3
    assert sum(rows[1:]) == 2 * len(batch), "each text forward twice"
    assert_alike(parted, whole, rtol=1e-4, atol=1e-6)


def test_dropout_is_the_same_when_parts_are_computed_again(
    text_stage: TextStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emostream.model.text_training._MOST_KEPT_TOKENS", {"cpu": 1})
    again = gradients(text_stage)
    monkeypatch.setattr("emostream.model.text_training.checkpoint", lambda branch, part, **_: branch(part))
    assert_alike(again, gradients(text_stage), rtol=1e-5, atol=1e-7)


def test_texts_alone_and_of_pairs_come_from_data_sets_as_the_recipe_says(data: Path, tmp_path: Path) -> None:
    """A data set of 120 texts and one of 16, to be drawn alike."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    write_goemotions(tmp_path / "goemotions")
    sets = (DatasetChoice("meld", "meld"), DatasetChoice("goemotions", "goemotions"))
    compute = Compute(torch.device("cpu"), torch.float32)
    text = TextStage(msgspec.structs.replace(RECIPE.text, datasets=sets), data=tmp_path, compute=compute, seed=1)
    voice = VoiceStage(RECIPE.voice, data=tmp_path, compute=compute, seed=1)
    recipe = msgspec.structs.replace(RECIPE.fusion, text_share=0.5, sampling_power=0.0)
    fusion = FusionStage(recipe, text=text, voice=voice, compute=compute, seed=1)
    batches = [batch for epoch in range(10) for batch in fusion.batches(epoch)]
    assert {(len(batch.texts), len(batch.clips), len(batch.matched_pairs)) for batch in batches} == {(12, 6, 6)}
    large, small = (each.examples for each in text.emotion_sets("train"))
    labels = [LABELS[example.labels[0]] for example in (*large, *small)]
    texts = [row >= len(large) for batch in batches for row in batch.texts]
    paired = [(labels[row], row >= len(large)) for batch in batches for row, _ in batch.matched_pairs]
    assert np.mean(texts) == pytest.approx(0.5, abs=0.05)
    for label, share in (("anger", 0.5), ("joy", 0.5), ("neutral", 0.0)):  # the small set has no neutral text
        assert np.mean([of_small for named, of_small in paired if named == label]) == pytest.approx(share, abs=0.1)


def test_a_set_with_text_and_voice_gives_its_own_pairs(data: Path, tmp_path: Path) -> None:
    """IEMOCAP as the paper has it: one session held out, fused on what was really said together."""
    write_iemocap(tmp_path / "iemocap")
    (tmp_path / "encoder").symlink_to(data / "encoder")
    choice = (DatasetChoice("iemocap", "iemocap"),)
    recipe = msgspec.structs.replace(
        RECIPE,
        text=msgspec.structs.replace(RECIPE.text, datasets=choice, examples_per_epoch=160),
        heads=None,
        voice=msgspec.structs.replace(RECIPE.voice, datasets=choice, speeds=(1.0,)),
        fusion=msgspec.structs.replace(RECIPE.fusion, match_by_label=False),
    )
    evaluations = train(recipe, data=tmp_path, run=tmp_path / "run", device="cpu", fold=(4, 5))
    assert {(each.split, each.modalities, each.n) for each in evaluations} == {
        ("fold 5 of 5", ("text",), 12), ("fold 5 of 5", ("voice",), 12), ("fold 5 of 5", ("text", "voice"), 12),
    }  # fmt: skip
    assert max(each.accuracy for each in evaluations if each.modalities == ("text", "voice")) >= 0.9


def test_the_command_cross_validates_by_session(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_iemocap(tmp_path / "iemocap")
    (tmp_path / "encoder").symlink_to(data / "encoder")
    rates = "learning_rate = 2e-3, head_learning_rate = 5e-3"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "folds"\nversion = "0"\nprecision = "float32"\n'
        '[text]\nencoder = "encoder"\nwindow_tokens = 32\nhead_width = 16\n'
        f"optimisation = {{epochs = 1, batch_size = 8, {rates}}}\n"
        'datasets = [{name = "iemocap", folder = "iemocap"}]\n'
        "[voice]\nwidth_multiplier = 0.25\nhead_width = 16\ncrop_frames = 128\n"
        f"optimisation = {{epochs = 1, batch_size = 12, {rates}}}\n"
        'datasets = [{name = "iemocap", folder = "iemocap"}]\n'
        "[fusion]\nexamples_per_epoch = 120\nmatch_by_label = false\n"
        "optimisation = {epochs = 1, batch_size = 12, learning_rate = 5e-3}\n"
    )
    out = tmp_path / "run"
    cli.train(data=tmp_path, out=out, recipe=recipe, device="cpu", folds=5)
    markdown = (out / "cross-validation.md").read_text()
    assert capsys.readouterr().out == markdown
    assert [line for line in markdown.splitlines() if line.startswith("## ")] == [
        "## iemocap 5 folds, from text", "## iemocap 5 folds, from voice", "## iemocap 5 folds, from text and voice"
    ]  # fmt: skip
    for values in json.loads((out / "cross-validation.json").read_text()):
        assert [fold["n"] for fold in values["folds"]] == [12] * 5, "each session is held out once"
        assert sum(figures["support"] for figures in values["per_class"].values()) == 60
        right = sum(row[number] for number, row in enumerate(values["confusion"]))
        assert values["mean"]["accuracy"] == pytest.approx(right / 60)
    cli.evaluate(
        task="iemocap", data=tmp_path / "iemocap", fold="2/5", checkpoint=out / "fold-2" / "best", device="cpu",
        precision="float32", as_json=True,
    )  # fmt: skip
    judged, in_training = json.loads(capsys.readouterr().out), values["folds"][1]
    assert (judged["split"], judged["modalities"]) == ("fold 2 of 5", in_training["modalities"])
    assert judged["accuracy"] == pytest.approx(in_training["accuracy"], abs=0.1)
    assert judged["per_class"]["joy"]["support"] == in_training["per_class"]["joy"]["support"]
    with pytest.raises(RecipeError, match="has learned from fold 1 of 5 of iemocap: its training held out fold 2 of 5"):
        cli.evaluate(task="iemocap", data=tmp_path / "iemocap", fold="1/5", checkpoint=out / "fold-2" / "best")
    with pytest.raises(RecipeError, match="has learned from fold 1 of 5 of iemocap-merged"):
        check_fold(out / "fold-2" / "best", "iemocap-merged", (0, 5))
    check_fold(out / "fold-2" / "best", "ravdess", (0, 5))  # of which it learned nothing
    with pytest.raises(typer.BadParameter, match="K/N is needed"):
        cli.evaluate(task="iemocap", data=tmp_path / "iemocap", fold="6/5")
    with pytest.raises(typer.BadParameter, match="name a --checkpoint"):
        cli.evaluate(task="iemocap", data=tmp_path / "iemocap", fold="2/5")


_WATCHING = """
import atexit, json, os, pathlib
steps = []

def watch():
    from emostream.model import training
    run_stage = training.run_stage
    def watched(stage, *, on_step, **settings):
        def watching(*step):
            steps.append((sum(float(weights.double().abs().sum()) for weights in stage.parameters()), step[-1]))
            on_step(*step)
        return run_stage(stage, on_step=watching, **settings)
    training.run_stage = watched

if "LOCAL_RANK" in os.environ:
    watch()
    file = pathlib.Path(__file__).with_name(f"steps-{os.environ['RANK']}.json")
    atexit.register(lambda: file.write_text(json.dumps(steps)))
"""
"""Notes weights and loss after each step, in each of the processes that torchrun starts."""


def test_two_processes_train_together(data: Path, tmp_path: Path) -> None:
    """As with two GPUs, on the CPU: torchrun, gradients averaged, one checkpoint."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "two"\nversion = "0"\nprecision = "float32"\n'
        '[text]\nencoder = "encoder"\nwindow_tokens = 32\nhead_width = 16\n'
        "optimisation = {epochs = 6, batch_size = 4, learning_rate = 2e-3, head_learning_rate = 5e-3}\n"
        'datasets = [{name = "meld", folder = "meld"}]\n'
        "[fusion]\nexamples_per_epoch = 240\n"
        "optimisation = {epochs = 4, batch_size = 12, learning_rate = 5e-3}\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    emostream = str(Path(sys.executable).with_name("emostream"))
    (tmp_path / "sitecustomize.py").write_text(_WATCHING)
    done = subprocess.run(
        [*command, emostream, "train", "--data", data, "--out", tmp_path / "run", "--recipe", recipe],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    ones, others = (json.loads((tmp_path / f"steps-{rank}.json").read_text()) for rank in range(2))
    assert len(ones) == len(others) > 10
    assert [weights for weights, _ in ones] == [weights for weights, _ in others], "each step leaves both the same"
    assert all(loss != other for (_, loss), (_, other) in zip(ones, others, strict=True)), "on batches of their own"
    scorer = EmotionScorer.load(tmp_path / "run" / "best", device="cpu")
    answers = scorer.score([Item(text="a so"), Item(text="the j so")]).outcomes
    assert [best(answer.scores) for answer in answers] == ["anger", "joy"]


def test_the_recipe_names_a_device_and_a_run_may_go_on_on_another(run: Path, data: Path, tmp_path: Path) -> None:
    elsewhere = msgspec.structs.replace(RECIPE, device="cuda:99")
    with pytest.raises(DeviceError, match="cuda:99"):
        train(elsewhere, data=data, run=tmp_path)
    assert train(elsewhere, data=data, run=run, device="cpu"), "what is done is not done again"


def test_a_folder_of_another_recipe_is_left_alone(run: Path, data: Path) -> None:
    with pytest.raises(RecipeError, match="another recipe"):
        train(msgspec.structs.replace(RECIPE, seed=9), data=data, run=run)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.name)
def test_recipes_are_readable(recipe: Path) -> None:
    read = read_recipe(recipe)
    assert {choice.name for choice in (*read.text.datasets, *(read.voice.datasets if read.voice else ()))} <= set(
        readers()
    )


def test_a_bare_name_is_a_recipe_that_ships() -> None:
    assert find_recipe(Path("permissive")) == RECIPES / "permissive.toml"
    for other in (Path("mine"), Path("/data/permissive"), Path("recipes/permissive"), Path("permissive.toml")):
        assert find_recipe(other) == other


def test_the_permissive_recipe_learns_from_permissive_data_alone() -> None:
    recipe = read_recipe(RECIPES / "permissive.toml")
    assert [choice.name for choice in recipe.text.datasets] == ["goemotions"]
    assert recipe.voice is None


def test_the_shipped_recipe_names_the_shipped_model() -> None:
    shipped, recipe = load_checkpoint(SHIPPED_RECIPE.parents[1] / "weights").config, read_recipe(SHIPPED_RECIPE)
    assert (shipped.name, shipped.version) == (recipe.name, recipe.version)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"epochs = ", "recipe"), (b'name = "x"\nepoch = 3', "epoch"), (b"name = 7", "str"), (b"\xff", "utf-8")],
)
def test_a_malformed_recipe_says_what_is_wrong(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=said):
        read_recipe(tmp_path / "r.toml")
