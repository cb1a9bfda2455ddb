"""`emostream evaluate --split test --json` on every data set that it knows, laid out as its authors publish it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from tiny_data import write_goemotions, write_iemocap, write_meld, write_ravdess, write_tone, write_tweeteval
from tiny_recordings import encode

from emostream.model import cli
from emostream.model.checkpoint import SHIPPED, load_checkpoint
from emostream.model.datasets import TWEETEVAL_TASKS, read_dataset, readers
from emostream.model.errors import DatasetError
from emostream.model.scorer import EmotionScorer

FIELDS = ("accuracy", "macro_f1", "uar", "wa", "ece")
TEXT, VOICE = "text", "voice"


def write_tones(folder: Path, *names: str) -> None:
    noise = np.random.default_rng(3)
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_tone(folder / name, 200 * (number + 1), noise)


def write_tess(folder: Path) -> None:
    write_tones(folder, "YAF_angry/YAF_back_angry.wav", "OAF_Pleasant_surprise/OAF_bar_ps.wav")


def write_emodb(folder: Path) -> None:
    write_tones(folder, "wav/03a01Wa.wav", "wav/03a01Fa.wav", "wav/08a01Na.wav")


def write_semeval(folder: Path) -> None:
    classes = load_checkpoint(SHIPPED).config.attributes["semeval2018_ec"]
    rows = [("ID", "Tweet", *classes)]
    rows += [(name, f"so {name}", *(str(int(name == each)) for each in classes)) for name in classes]
    folder.mkdir()
    (folder / "test.txt").write_text("".join("\t".join(row) + "\n" for row in rows))


def write_all_tweeteval(folder: Path) -> None:
    write_tweeteval(folder, classes=load_checkpoint(SHIPPED).config.attributes)


def write_meld_with_clips(folder: Path) -> None:
    """Write two lines of MELD with their films, whose sound is AAC in MP4, and one without."""
    folder.mkdir()
    rows = ["I am so happy for you!,joy,0,0", "I hate you!,anger,0,1", "It is at nine.,neutral,1,0"]
    header = "Utterance,Emotion,Dialogue_ID,Utterance_ID"
    (folder / "test_sent_emo.csv").write_text("\n".join([header, *rows]) + "\n")
    at_s = np.arange(2 * 48_000) / 48_000
    hum = (0.3 * np.sin(2 * np.pi * 200 * at_s) * np.sin(2 * np.pi * at_s))[None]
    for name in ("dia0_utt0", "dia0_utt1"):
        film = folder / "output_repeated_splits_test" / f"{name}.mp4"
        film.parent.mkdir(exist_ok=True)
        film.write_bytes(encode(hum, rate_hz=48_000, container="mp4", codec="aac", picture=True))


CASES = {
    "goemotions": (write_goemotions, 16, (TEXT,)),
    "meld": (write_meld, 120, (TEXT,)),
    "meld with clips": (write_meld_with_clips, 3, (TEXT, VOICE)),
    "ravdess": (lambda folder: write_ravdess(folder, actors=(20, 21)), 9, (VOICE,)),
    "tess": (write_tess, 2, (VOICE,)),
    "emodb": (write_emodb, 3, (VOICE,)),
    "iemocap": (write_iemocap, 12, (TEXT, VOICE)),
    "iemocap-merged": (write_iemocap, 12, (TEXT, VOICE)),
    "semeval2018_ec": (write_semeval, 11, (TEXT,)),
    **{f"tweeteval/{task}": (write_all_tweeteval, None, (TEXT,)) for task in TWEETEVAL_TASKS},
}


@pytest.fixture(autouse=True)
def loaded_once(shipped_scorer: EmotionScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the shipped model, which is what the command loads, from memory."""
    monkeypatch.setattr(EmotionScorer, "load", lambda *_, **__: shipped_scorer)


def test_no_data_set_is_left_out() -> None:
    assert {case.removesuffix(" with clips") for case in CASES} == set(readers())


@pytest.mark.parametrize("case", CASES)
def test_a_published_test_split_is_judged(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write: Callable[[Path], None]
    write, n, modalities = CASES[case]
    write(tmp_path / "data")
    task = case.removesuffix(" with clips")
    cli.evaluate(task=task, data=tmp_path / "data", split="test", as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["split"], result["modalities"]) == (task, "test", list(modalities))
    assert all(0 <= result[field] <= 1 for field in (*FIELDS, "ece_by_chance")), "fractions"
    assert set(result["official"]) == {"name", "value"}
    assert sum(map(sum, result["confusion"])) == sum(each["support"] for each in result["per_class"].values())
    assert result["n"] == sum(map(sum, result["confusion"]))
    if n is not None:
        assert result["n"] == n
    assert tuple(result["per_class"]) in read_dataset(task, tmp_path / "data", "test").classes.values()


def test_all_of_tweeteval_and_its_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_all_tweeteval(tmp_path / "data")
    cli.evaluate(task="tweeteval", data=tmp_path / "data", split="test", as_json=True, out=tmp_path / "out")
    shown = capsys.readouterr()
    results = json.loads(shown.out)
    assert [result["task"] for result in results] == [f"tweeteval/{task}" for task in TWEETEVAL_TASKS]
    mean = sum(result["official"]["value"] for result in results) / 7
    assert f"TweetEval, mean of the seven official metrics: {mean:.4f}" in shown.err
    assert json.loads((tmp_path / "out" / "tweeteval-stance-test.json").read_text()) == results[5]


def test_several_data_sets_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_goemotions(tmp_path / "goemotions")
    write_meld(tmp_path / "meld")
    write_all_tweeteval(tmp_path / "tweeteval")
    also = [f"meld={tmp_path / 'meld'}", f"tweeteval={tmp_path / 'tweeteval'}"]
    cli.evaluate(task="goemotions", data=tmp_path / "goemotions", also=also, as_json=True)
    shown = capsys.readouterr()
    results = json.loads(shown.out)
    tweets = [f"tweeteval/{task}" for task in TWEETEVAL_TASKS]
    assert [result["task"] for result in results] == ["goemotions", "meld", *tweets]
    n = results[0]["n"] + results[1]["n"]
    assert f"From text, goemotions and meld together: {n} examples, accuracy " in shown.err
    assert all(sum(each["n"] for each in result["calibration"]) == result["n"] for result in results)


@pytest.mark.parametrize(
    ("also", "wrong"),
    [("meld", "TASK=FOLDER is needed"), ("meld=", "TASK=FOLDER is needed"), ("goemotions=x", "judged twice")],
)
def test_a_further_data_set_needs_a_folder_and_is_another(also: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=wrong):
        cli.evaluate(task="goemotions", data=tmp_path, also=[also])


@pytest.mark.parametrize(("also", "wrong"), [("irony", "no path 'voice'"), ("meld", "can take the path 'voice'")])
def test_a_path_is_refused_before_anything_is_judged(
    also: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ravdess(tmp_path / "ravdess")
    write_meld(tmp_path / "meld")
    write_all_tweeteval(tmp_path / "irony")
    monkeypatch.setattr(EmotionScorer, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    further = f"{'tweeteval/irony' if also == 'irony' else also}={tmp_path / also}"
    with pytest.raises(DatasetError, match=wrong):
        cli.evaluate(task="ravdess", data=tmp_path / "ravdess", split="dev", path="voice", also=[further])
