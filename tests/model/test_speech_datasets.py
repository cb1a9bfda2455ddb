"""Readers of recordings, on small trees in the published layouts; the files are empty, for nobody opens them."""

import logging
from collections import Counter
from pathlib import Path

import pytest

from emostream.model.datasets import Dataset, Example, divide, read_dataset, read_splits
from emostream.model.errors import DatasetError
from emostream.model.samples import EMOTION, LABELS
from emostream.model.speech_datasets import RAVDESS_ACTORS, TESS_DEV_SHARE, _recordings_under

TESS_FOLDERS = ("OAF_Fear", "OAF_Pleasant_surprise", "OAF_angry", "YAF_neutral", "YAF_pleasant_surprised", "YAF_sad")
MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
MELD_ROWS = """1,"Well, look who it is!",Ann,joy,positive,0,0
2,Hm.,Bo,neutral,neutral,0,1
3,No!,Bo,Anger,negative,7,0
"""
SAID = "Ses0{n}F_impro01_F00{turn} [006.2901-008.2357]: {text}"
CODES = {"ang": "anger", "hap": "joy", "neu": "neutral", "sad": "sadness", "exc": "joy"}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def answers(dataset: Dataset) -> list[tuple[str, str, str]]:
    """File, emotion and group of each example, in order."""
    assert dataset.classes == {EMOTION: LABELS}
    return [(e.recording.name if e.recording else "", LABELS[e.labels[0]], e.group) for e in dataset.examples]


def test_ravdess_labels(tmp_path: Path) -> None:
    names = [f"Actor_02/03-01-{emotion:02}-01-02-01-02.wav" for emotion in range(1, 9)]
    touch(tmp_path, *reversed(names))
    emotions = ["neutral", "neutral", "joy", "sadness", "anger", "fear", "disgust", "surprise"]
    expected = [(Path(name).name, emotion, "02") for name, emotion in zip(names, emotions, strict=True)]
    assert answers(read_dataset("ravdess", tmp_path, "train")) == expected


def test_recordings_behind_links_are_found_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "03-01-05-01-01-01-21.wav")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "Actor_21").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tree)
    assert answers(read_dataset("ravdess", tree, "test")) == [("03-01-05-01-01-01-21.wav", "anger", "21")]
    assert _recordings_under(tree) == [tree / "Actor_21" / "03-01-05-01-01-01-21.wav"]


def test_ravdess_passes_over_songs_videos_and_other_files(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Actor_18/03-01-05-01-01-01-18.FLAC",
        "Actor_18/03-02-05-01-01-01-18.wav",
        "Actor_18/01-01-05-01-01-01-18.mp4",
        "Actor_18/02-01-05-01-01-01-18.mp4",
        "Actor_18/._03-01-06-01-01-01-18.wav",
        "Actor_18/03-01-07-01-01-01-18.txt",
        "Actor_18/03-01-09-01-01-01-18.wav",
        "notes.wav",
    )
    assert answers(read_dataset("ravdess", tmp_path, "dev")) == [("03-01-05-01-01-01-18.FLAC", "anger", "18")]


def test_ravdess_is_split_by_actor(tmp_path: Path) -> None:
    touch(tmp_path, *(f"03-01-03-01-01-01-{actor:02}.ogg" for actor in range(1, 25)))
    groups = {
        split: [group for *_, group in answers(read_dataset("ravdess", tmp_path, split))] for split in RAVDESS_ACTORS
    }
    assert groups == {
        "train": [f"{actor:02}" for actor in range(1, 17)],
        "dev": ["17", "18", "19", "20"],
        "test": ["21", "22", "23", "24"],
    }


def test_copies_count_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "Actor_01/03-01-03-01-01-01-01.wav"
    touch(tmp_path, name, f"audio_speech_actors_01-24/{name}", "Actor_01/03-01-04-01-01-01-01.wav")
    with caplog.at_level(logging.WARNING, logger="emostream"):
        examples = read_dataset("ravdess", tmp_path, "train").examples
    assert [example.recording for example in examples] == [
        tmp_path / "Actor_01/03-01-03-01-01-01-01.wav",
        tmp_path / "Actor_01/03-01-04-01-01-01-01.wav",
    ]
    assert "of 3 recordings 1 are copies" in caplog.text


def test_tess_labels_and_speakers(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "OAF_Fear/OAF_back_fear.wav",
        "OAF_Pleasant_surprise/OAF_back_ps.wav",
        "OAF_neutral/OA_bite_neutral.wav",
        "YAF_angry/YAF_back_angry.wav",
        "YAF_disgust/YAF_back_disgust.wav",
        "YAF_happy/YAF_back_happy.wav",
        "YAF_pleasant_surprised/YAF_dog_ps.wav",
        "YAF_sad/yaf_back_SAD.Mp3",
    )
    assert answers(read_dataset("tess", tmp_path, "test")) == [
        ("OAF_back_fear.wav", "fear", "OAF"),
        ("OAF_back_ps.wav", "surprise", "OAF"),
        ("OA_bite_neutral.wav", "neutral", "OAF"),
        ("YAF_back_angry.wav", "anger", "YAF"),
        ("YAF_back_disgust.wav", "disgust", "YAF"),
        ("YAF_back_happy.wav", "joy", "YAF"),
        ("YAF_dog_ps.wav", "surprise", "YAF"),
        ("yaf_back_SAD.Mp3", "sadness", "YAF"),
    ]


def test_tess_takes_the_emotion_from_the_folder_where_the_name_has_none(tmp_path: Path) -> None:
    touch(tmp_path, *(f"tess/{folder}/{folder[:3]}_back.wav" for folder in TESS_FOLDERS), "other/OAF_back.wav")
    emotions = [emotion for _, emotion, _ in answers(read_dataset("tess", tmp_path, "test"))]
    assert emotions == ["fear", "surprise", "anger", "neutral", "surprise", "sadness"]


def test_tess_is_split_by_word(tmp_path: Path) -> None:
    words = [f"word{place}" for place in range(200)]
    touch(tmp_path, *(f"{speaker}_x/{speaker}_{word}_fear.wav" for speaker in ("OAF", "YAF") for word in words))
    heard = {
        split: Counter(name.split("_")[1] for name, *_ in answers(read_dataset("tess", tmp_path, split)))
        for split in ("train", "dev", "test")
    }
    assert not heard["train"].keys() & heard["dev"].keys()
    assert heard["train"] + heard["dev"] == heard["test"] == dict.fromkeys(words, 2)
    assert 0.5 < len(heard["dev"]) * TESS_DEV_SHARE / len(words) < 2


def test_emodb(tmp_path: Path) -> None:
    touch(tmp_path, *(f"wav/{name}.wav" for name in ("03a01Wa", "03a01La", "08b09Ec", "09a02Ac", "16b10Tb")))
    touch(tmp_path, "wav/10a01Fa.flac", "wav/10a01N.flac", "lablaut/03a01Fa.lablaut", "readme.wav")
    whole = answers(read_dataset("emodb", tmp_path, "test"))
    assert whole == [
        ("03a01Wa.wav", "anger", "03"),
        ("08b09Ec.wav", "disgust", "08"),
        ("09a02Ac.wav", "fear", "09"),
        ("10a01Fa.flac", "joy", "10"),
        ("10a01N.flac", "neutral", "10"),
        ("16b10Tb.wav", "sadness", "16"),
    ]
    assert answers(read_dataset("emodb", tmp_path, "train")) == whole[:3], "speakers 03, 08 and 09"
    assert answers(read_dataset("emodb", tmp_path, "dev")) == whole[3:], "the last two, 10 and 16"


def test_meld_without_recordings(tmp_path: Path) -> None:
    write(tmp_path / "test_sent_emo.csv", MELD_HEADER + MELD_ROWS)
    assert read_dataset("meld", tmp_path, "test").examples == (
        Example(text="Well, look who it is!", labels=(LABELS.index("joy"),), group="test dialogue 0"),
        Example(text="Hm.", labels=(LABELS.index("neutral"),), group="test dialogue 0"),
        Example(text="No!", labels=(LABELS.index("anger"),), group="test dialogue 7"),
    )


@pytest.mark.parametrize(
    ("split", "clips"),
    [
        ("train", "data/train_splits"),
        ("dev", "data/dev_splits_complete"),
        ("test", "data/output_repeated_splits_test"),
        ("train", "train_splits"),
        ("train", "MELD.Raw/train_splits"),
        ("train", "data/MELD.Raw/train_splits"),
        ("dev", "MELD.Raw/dev/dev_splits_complete"),
    ],
)
def test_meld_with_recordings(tmp_path: Path, split: str, clips: str, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / f"data/{split}_sent_emo.csv", MELD_HEADER + MELD_ROWS)
    touch(tmp_path / clips, "dia0_utt0.mp4", "dia7_utt0.wav", "._dia0_utt1.mp4", "final_videos_testdia0_utt1.mp4")
    with caplog.at_level(logging.WARNING, logger="emostream"):
        examples = read_dataset("meld", tmp_path / "data", split).examples
    found = [example.recording for example in examples]
    assert found == [tmp_path / clips / "dia0_utt0.mp4", None, tmp_path / clips / "dia7_utt0.wav"]
    assert f"meld {split}: 1 of 3 utterances have no usable recording" in caplog.text


@pytest.mark.parametrize("place", ["train", "MELD.Raw", "MELD.Raw/train"])
def test_meld_as_its_archives_unpack(tmp_path: Path, place: str) -> None:
    write(tmp_path / place / "train_sent_emo.csv", MELD_HEADER + MELD_ROWS)
    touch(tmp_path / place / "train_splits", "dia0_utt0.mp4")
    examples = read_dataset("meld", tmp_path, "train").examples
    assert [example.recording is not None for example in examples] == [True, False, False]


def test_meld_leaves_the_broken_clip(tmp_path: Path) -> None:
    for split, folder in (("train", "train_splits"), ("dev", "dev_splits_complete")):
        write(tmp_path / f"{split}_sent_emo.csv", MELD_HEADER + "1,Hm.,Bo,neutral,neutral,125,3\n")
        touch(tmp_path / folder, "dia125_utt3.mp4")
    assert read_dataset("meld", tmp_path, "train").examples[0].recording is None
    assert read_dataset("meld", tmp_path, "dev").examples[0].recording


def test_meld_without_numbers_is_text(tmp_path: Path) -> None:
    write(tmp_path / "dev_sent_emo.csv", "Utterance,Emotion\nhi,joy\n")
    assert read_dataset("meld", tmp_path, "dev").examples == (Example(text="hi", labels=(LABELS.index("joy"),)),)


def test_meld_in_windows_own_encoding(tmp_path: Path) -> None:
    (tmp_path / "dev_sent_emo.csv").write_bytes(b"Utterance,Emotion\nI don\x92t\x85,joy\n")
    assert read_dataset("meld", tmp_path, "dev").texts == ["I don’t…"]


def test_meld_in_two_encodings(tmp_path: Path) -> None:
    table = "Utterance,Emotion\nhe’s,joy\n".encode() + "“Hm”,joy\n".encode("cp1252")
    (tmp_path / "dev_sent_emo.csv").write_bytes(table)
    assert read_dataset("meld", tmp_path, "dev").texts == ["he’s", "“Hm”"]


def test_meld_says_nothing_in_a_line(tmp_path: Path) -> None:
    write(tmp_path / "dev_sent_emo.csv", MELD_HEADER + "1,,Bo,neutral,neutral,0,0\n2,Hm.,Bo,joy,positive,0,1\n,,,,,,\n")
    assert read_dataset("meld", tmp_path, "dev").texts == ["", "Hm."]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"dev_sent_emo\.csv is missing"),
        ("a,b\n1,2\n", "Utterance and Emotion"),
        ("Utterance,Emotion\nhi,joy\nho,glee\n", "line 3.*glee"),
    ],
)
def test_what_is_wrong_with_meld_is_said(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        write(tmp_path / "dev_sent_emo.csv", content)
    with pytest.raises(DatasetError, match=said):
        read_dataset("meld", tmp_path, "dev")


def write_iemocap(release: Path, *, sessions: range = range(1, 6), codes: tuple[str, ...] = tuple(CODES)) -> None:
    """One dialogue a session: a turn per code, and a turn that raters disagreed on, with no transcript and no wav."""
    for n in sessions:
        dialogue, session = f"Ses0{n}F_impro01", release / f"Session{n}"
        turns = [f"[6.2901 - 8.2357]\t{dialogue}_F00{i}\t{code}\t[2.5, 2.5, 2.5]" for i, code in enumerate(codes)]
        turns.append(f"[9.0000 - 9.5000]\t{dialogue}_M000\txxx\t[2.5, 2.5, 2.5]")
        raters = "\nC-E1:\tNeutral;\t()\nA-E1:\tval 3; act 2; dom  2;\t()\n\n"
        header = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        write(session / f"dialog/EmoEvaluation/{dialogue}.txt", header + raters.join(turns) + raters)
        touch(session / "dialog/EmoEvaluation", f"._{dialogue}.txt", f"Categorical/{dialogue}_e1_cat.txt")
        said = [SAID.format(n=n, turn=i, text=f"this is {code}: yes") for i, code in enumerate(codes)]
        lines = [*said, f"{dialogue}_FXX0 [008.2357-008.5000]: [LAUGHTER]", "M: aside"]
        write(session / f"dialog/transcriptions/{dialogue}.txt", "\n".join(lines) + "\n")
        touch(session / f"sentences/wav/{dialogue}", *(f"{dialogue}_F00{i}.wav" for i in range(len(codes))))


@pytest.mark.parametrize(("name", "codes"), [("iemocap", 4), ("iemocap-merged", 5)])
@pytest.mark.parametrize("inside", ["", "IEMOCAP_full_release"])
def test_iemocap(tmp_path: Path, name: str, codes: int, inside: str) -> None:
    write_iemocap(tmp_path / inside)
    dataset = read_dataset(name, tmp_path, "test")
    wavs = tmp_path / inside / "Session5/sentences/wav/Ses05F_impro01"
    assert (dataset.name, dataset.classes) == (name, {EMOTION: LABELS})
    assert dataset.examples == tuple(
        Example(
            labels=(LABELS.index(emotion),),
            text=f"this is {code}: yes",
            recording=wavs / f"Ses05F_impro01_F00{i}.wav",
            group="Session5",
        )
        for i, (code, emotion) in enumerate(list(CODES.items())[:codes])
    )


def test_iemocap_is_split_and_folded_by_session(tmp_path: Path) -> None:
    write_iemocap(tmp_path)
    splits = {split: read_dataset("iemocap", tmp_path, split).examples for split in ("train", "dev", "test")}
    assert {split: sorted({e.group for e in examples}) for split, examples in splits.items()} == {
        "train": ["Session1", "Session2", "Session3"],
        "dev": ["Session4"],
        "test": ["Session5"],
    }
    everything = [example for examples in splits.values() for example in examples]
    held_out = [{example.group for example in divide(everything, fold=k, folds=5)[1]} for k in range(5)]
    assert held_out == [{f"Session{k}"} for k in range(1, 6)]


def test_what_is_wrong_with_a_split_that_joins_the_folds_is_said(tmp_path: Path) -> None:
    write_iemocap(tmp_path)
    next(tmp_path.rglob("Ses05F_impro01_F000.wav")).unlink()
    with pytest.raises(DatasetError, match=r"Ses05F_impro01_F000\.wav is missing"):
        read_splits("iemocap", tmp_path, fold=(0, 4))


@pytest.mark.parametrize(
    ("damaged", "content", "said"),
    [
        (
            "sentences/wav/Ses04F_impro01/Ses04F_impro01_F002.wav",
            None,
            r"Session4/sentences/wav/Ses04F_impro01/Ses04F_impro01_F002\.wav is missing",
        ),
        (
            "dialog/transcriptions/Ses04F_impro01.txt",
            None,
            r"Session4/dialog/transcriptions/Ses04F_impro01\.txt is missing",
        ),
        (
            "dialog/transcriptions/Ses04F_impro01.txt",
            SAID.format(n=4, turn=0, text="hello"),
            r"transcriptions/Ses04F_impro01\.txt has no line for Ses04F_impro01_F001",
        ),
        (
            "dialog/EmoEvaluation/Ses04F_impro01.txt",
            "%\n[6.2 - 8.2] Ses04F_impro01_F000\n",
            r"EmoEvaluation/Ses04F_impro01\.txt, line 2: expected \[start - end\]",
        ),
        ("dialog/EmoEvaluation/Ses04F_impro01.txt", None, "Session4/dialog/EmoEvaluation: expected there.*found none"),
    ],
)
def test_what_is_wrong_with_iemocap_is_said(tmp_path: Path, damaged: str, content: str | None, said: str) -> None:
    write_iemocap(tmp_path, sessions=range(4, 5))
    if content is None:
        (tmp_path / "Session4" / damaged).unlink()
    else:
        (tmp_path / "Session4" / damaged).write_text(content)
    with pytest.raises(DatasetError, match=said):
        read_dataset("iemocap", tmp_path, "dev")


def test_a_missing_session_of_iemocap_is_named(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=range(1, 3))
    with pytest.raises(DatasetError, match="Session3/dialog/EmoEvaluation"):
        read_dataset("iemocap", tmp_path, "train")


def test_a_dialogue_that_nothing_is_labelled_in_needs_no_transcript(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=range(5, 6))
    evaluation = tmp_path / "Session5/dialog/EmoEvaluation/Ses05M_impro02.txt"
    write(evaluation, "[6.2901 - 8.2357]\tSes05M_impro02_F000\tfru\t[2.5, 2.5, 2.5]\n")
    assert len(read_dataset("iemocap", tmp_path, "test").examples) == 4


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("ravdess", "03-01-EE-II-SS-RR-AA"),
        ("tess", "OAF_back_fear"),
        ("emodb", "03a01Fa"),
        ("iemocap", "IEMOCAP_full_release"),
    ],
)
@pytest.mark.parametrize(
    ("files", "found"),
    [
        (None, "place is missing"),
        ((), "place is empty"),
        (("b.csv", "a.csv"), r"place has no audio files, only a\.csv, b\.csv;"),
        (("x/two.wav", "x/one.wav"), r"place has 2 audio files with other names, one\.wav for one"),
    ],
)
def test_what_was_expected_and_what_found_is_said(
    tmp_path: Path, name: str, layout: str, files: tuple[str, ...] | None, found: str
) -> None:
    if files is not None:
        (tmp_path / "place").mkdir()
        touch(tmp_path / "place", *files)
    with pytest.raises(DatasetError, match=f"{found}.*expected there: .*{layout}"):
        read_dataset(name, tmp_path / "place", "train")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    touch(tmp_path, "ravdess.zip")
    with pytest.raises(DatasetError, match=r"ravdess\.zip is a file; expected there"):
        read_dataset("ravdess", tmp_path / "ravdess.zip", "train")


def test_the_actors_found_and_expected_are_said(tmp_path: Path) -> None:
    touch(tmp_path, "03-01-03-01-01-01-07.wav", "03-01-03-01-01-01-19.wav")
    with pytest.raises(DatasetError, match="has actors 07, 19; split 'test' is actors 21 to 24"):
        read_dataset("ravdess", tmp_path, "test")
