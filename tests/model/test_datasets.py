"""Readers, on small folders in the published layouts; sentences are ours."""

from pathlib import Path

import pytest

from emostream.model.datasets import Example, read_dataset
from emostream.model.errors import DatasetError
from emostream.model.samples import LABELS

ANGER, JOY, NEUTRAL, SURPRISE = (LABELS.index(name) for name in ("anger", "joy", "neutral", "surprise"))


def test_goemotions_with_seven_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (tmp_path / "dev.tsv").write_text("so glad\t3\tx1\nwhat, really?! ok\t6,3\tx2\n")
    assert read_dataset("goemotions", tmp_path, "dev").examples == (
        Example("so glad", (JOY,)),
        Example("what, really?! ok", (JOY, SURPRISE)),
    )


def test_goemotions_with_fine_labels_is_folded(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("annoyance\ngratitude\nlove\nneutral\n")
    (tmp_path / "test.tsv").write_text("grr\t0\tx\nthanks, love you\t1,2\ty\nfine\t3\tz\n")
    labels = [example.labels for example in read_dataset("goemotions", tmp_path, "test").examples]
    assert labels == [(ANGER,), (JOY,), (NEUTRAL,)]


def test_meld(tmp_path: Path) -> None:
    (tmp_path / "test_sent_emo.csv").write_text(
        "Sr No.,Utterance,Speaker,Emotion,Sentiment\n"
        '1,"Well, look who it is!",Ann,joy,positive\n'
        "2,Hm.,Bo,neutral,neutral\n"
    )
    assert read_dataset("meld", tmp_path, "test").examples == (
        Example("Well, look who it is!", (JOY,)),
        Example("Hm.", (NEUTRAL,)),
    )


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("unheard", {}, "goemotions, meld"),
        ("goemotions", {}, "labels.txt is missing"),
        ("goemotions", {"labels.txt": "joy"}, "dev.tsv is missing"),
        ("goemotions", {"labels.txt": "bliss"}, "bliss"),
        ("goemotions", {"labels.txt": "joy", "dev.tsv": "fine\t0\tx\nhm\t1\ty\n"}, "line 2"),
        ("goemotions", {"labels.txt": "joy", "dev.tsv": "no tabs here\n"}, "line 1"),
        ("goemotions", {"labels.txt": "joy", "dev.tsv": ""}, "no example"),
        ("meld", {}, "dev_sent_emo.csv is missing"),
        ("meld", {"dev_sent_emo.csv": "a,b\n1,2\n"}, "Utterance and Emotion"),
        ("meld", {"dev_sent_emo.csv": "Utterance,Emotion\nhi,joy\nho,glee\n"}, "line 3.*glee"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, files: dict[str, str], said: str) -> None:
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(DatasetError, match=said):
        read_dataset(name, tmp_path, "dev")
