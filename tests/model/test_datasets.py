"""Readers of texts, and folds, on small folders in the published layouts; sentences are ours."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.model.datasets import (
    EKMAN,
    STANCE_TARGETS,
    TWEET_EMOTION,
    TWEETEVAL_TASKS,
    Dataset,
    Example,
    divide,
    read_dataset,
    read_fold,
    read_splits,
    readers,
)
from emostream.model.errors import DatasetError
from emostream.model.samples import EMOTION, LABELS

ANGER, JOY, NEUTRAL, SADNESS, SURPRISE = map(LABELS.index, ("anger", "joy", "neutral", "sadness", "surprise"))
TWEET_EMOTIONS = "0\tanger\n1\tjoy\n2\toptimism\n3\tsadness"
STANCES = "0\tnone\n1\tagainst\n2\tfavor"
E_C_HEADER = "ID\tTweet\tanger\tjoy\ttrust\n"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def test_a_blank_tweet_at_the_end_is_a_tweet(tmp_path: Path) -> None:
    for ending in ("\n", "\n\n", "\n \n"):
        write(
            tmp_path / "hate",
            {"mapping.txt": "0\tno\n1\tyes", "val_text.txt": f"a\n\nb\n{ending}", "val_labels.txt": "0\n1\n1\n0\n"},
        )
        assert read_dataset("tweeteval/hate", tmp_path, "dev").texts == ["a", "", "b", ""]
    (tmp_path / "hate" / "val_text.txt").write_text("a\n\nb\n")
    with pytest.raises(DatasetError, match=r"has 3 lines and .* 4"):
        read_dataset("tweeteval/hate", tmp_path, "dev")


def test_goemotions_with_seven_labels(tmp_path: Path) -> None:
    write(tmp_path, {"labels.txt": "\n".join(LABELS) + "\n", "dev.tsv": "so glad\t3\tx1\nwhat, really?! ok\t6,3\tx2\n"})
    dataset = read_dataset("goemotions", tmp_path, "dev")
    assert dataset.classes == {EMOTION: LABELS}
    assert dataset.examples == (
        Example(text="so glad", labels=(JOY,)),
        Example(text="what, really?! ok", labels=(JOY, SURPRISE)),
    )


def test_goemotions_with_fine_labels_is_folded(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "labels.txt": "annoyance\ngratitude\nlove\nneutral\n",
            "test.tsv": "grr\t0\tx\nthanks, love you\t1,2\ty\nfine\t3\tz\n",
        },
    )
    labels = [example.labels for example in read_dataset("goemotions", tmp_path, "test").examples]
    assert labels == [(ANGER,), (JOY,), (NEUTRAL,)]
    (tmp_path / "labels.txt").rename(tmp_path / "emotions.txt")  # as its authors call it
    assert [example.labels for example in read_dataset("goemotions", tmp_path, "test").examples] == labels
    write(tmp_path, {"labels.txt": "joy\nanger\nsadness\nneutral\n"})  # somebody's own grouping, beside theirs
    assert [example.labels for example in read_dataset("goemotions", tmp_path, "test").examples] == [
        (JOY,), (ANGER, SADNESS), (NEUTRAL,)
    ]  # fmt: skip


def test_ids_of_the_wrong_labels_are_noticed(tmp_path: Path) -> None:
    lines = [f"text {number}\t{number % 7}\tx" for number in range(100)]
    write(tmp_path, {"labels.txt": "\n".join(" ".join(EKMAN.values()).split()), "test.tsv": "\n".join(lines)})
    with pytest.raises(DatasetError, match=r"labels\.txt names 28 labels, but .*test\.tsv looks as if .* of 7"):
        read_dataset("goemotions", tmp_path, "test")
    write(tmp_path, {"test.tsv": "\n".join([*lines, "thanks\t27\ty"])})
    assert len(read_dataset("goemotions", tmp_path, "test").examples) == 101


def test_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    hate = {"mapping.txt": "0\tno\n1\tyes", "val_text.txt": "a\nb\n", "val_labels.txt": "0\n1\n"}
    goemotions = {"labels.txt": "\n".join(LABELS), "dev.tsv": "so glad\t3\tx1\n"}
    write(tmp_path / "hate", {name: f"\ufeff{content}" for name, content in hate.items()})
    write(tmp_path, {name: f"\ufeff{content}" for name, content in goemotions.items()})
    tweets = read_dataset("tweeteval/hate", tmp_path, "dev")
    assert (tweets.classes, tweets.texts) == ({"hate": ("no", "yes")}, ["a", "b"])
    assert read_dataset("goemotions", tmp_path, "dev").examples == (Example(text="so glad", labels=(JOY,)),)


def test_tweeteval(tmp_path: Path) -> None:
    write(
        tmp_path / "emotion",
        {
            "mapping.txt": TWEET_EMOTIONS,
            "train_text.txt": 'grr @user\nwe "will" get there\x85\n',  # a next-line character ends no tweet
            "train_labels.txt": "0\n2\n",
        },
    )
    dataset = read_dataset("tweeteval/emotion", tmp_path, "train")
    assert (dataset.name, dataset.split) == ("tweeteval/emotion", "train")
    assert dataset.classes == {TWEET_EMOTION: ("anger", "joy", "optimism", "sadness")}
    assert dataset.texts == ["grr @user", 'we "will" get there\x85']
    assert dataset.examples[1] == Example(text='we "will" get there\x85', labels=(2,), head=TWEET_EMOTION)


@pytest.mark.parametrize("split", ["dev", "val"])
def test_tweeteval_calls_dev_val(tmp_path: Path, split: str) -> None:
    mapping = "0\tnon_irony\n1\tirony"
    write(tmp_path / "irony", {"mapping.txt": mapping, "val_text.txt": "so\n", "val_labels.txt": "1\n"})
    dataset = read_dataset("tweeteval/irony", tmp_path, split)
    assert dataset.split == "dev"
    assert dataset.examples == (Example(text="so", labels=(1,), head="irony"),)


def test_tweeteval_stance_is_a_head_per_target(tmp_path: Path) -> None:
    write(tmp_path / "stance", {"mapping.txt": STANCES})
    for place, target in enumerate(STANCE_TARGETS):
        files = {"test_text.txt": f"about {target}\nand more\n", "test_labels.txt": f"{place % 3}\n0\n"}
        write(tmp_path / "stance" / target, files)
    dataset = read_dataset("tweeteval/stance", tmp_path, "test")
    assert dataset.classes == {f"stance/{target}": ("none", "against", "favor") for target in STANCE_TARGETS}
    (tmp_path / "stance" / "hillary").rename(tmp_path / "stance" / "hilary")  # as early releases have it
    assert read_dataset("tweeteval/stance", tmp_path, "test") == dataset
    assert len(STANCE_TARGETS) == 5
    assert Counter(example.head for example in dataset.examples) == dict.fromkeys(dataset.classes, 2)
    assert [example.labels for example in dataset.examples if example.text != "and more"] == [
        (0,),
        (1,),
        (2,),
        (0,),
        (1,),
    ]


def test_semeval2018_ec(tmp_path: Path) -> None:
    write(tmp_path, {"dev.txt": E_C_HEADER + "1\tgrr, ha\t1\t1\t0\n2\tit rains\t0\t0\t0\n3\tsure\t0\t0\t1\n"})
    dataset = read_dataset("semeval2018_ec", tmp_path, "dev")
    assert dataset.classes == {"semeval2018_ec": ("anger", "joy", "trust")}
    assert dataset.examples == (
        Example(text="grr, ha", labels=(0, 1), head="semeval2018_ec"),
        Example(text="sure", labels=(2,), head="semeval2018_ec"),
    )


def test_every_reader_is_listed() -> None:
    recorded = {"emodb", "iemocap", "iemocap-merged", "meld", "ravdess", "tess"}
    assert set(readers()) == {f"tweeteval/{task}" for task in TWEETEVAL_TASKS} | recorded | {
        "goemotions",
        "semeval2018_ec",
    }


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("unheard", {}, "goemotions, semeval2018_ec"),
        ("goemotions", {}, "labels.txt is missing"),
        ("goemotions", {"labels.txt": "joy"}, "dev.tsv is missing"),
        ("goemotions", {"labels.txt": "bliss"}, "bliss"),
        ("goemotions", {"labels.txt": "joy", "dev.tsv": "fine\t0\tx\nhm\t1\ty\n"}, "line 2"),
        ("goemotions", {"labels.txt": "joy", "dev.tsv": "no tabs here\n"}, "line 1"),
        ("goemotions", {"labels.txt": "joy", "dev.tsv": ""}, "no example"),
        ("tweeteval/hate", {}, r"mapping\.txt is missing.*label number and name"),
        ("tweeteval/hate", {"hate/mapping.txt": "0 hate"}, r"mapping\.txt: expected.*tab-separated"),
        ("tweeteval/hate", {"hate/mapping.txt": "0\thate"}, r"val_text\.txt is missing.*one tweet a line"),
        ("tweeteval/hate", {"hate/mapping.txt": "0\thate", "hate/val_text.txt": "a\n"}, r"val_labels\.txt is missing"),
        (
            "tweeteval/hate",
            {"hate/mapping.txt": "0\tno\n1\tyes", "hate/val_text.txt": "a\nb\n", "hate/val_labels.txt": "1\n2\n"},
            r"val_labels\.txt, line 2: '2'; expected 0 to 1",
        ),
        (
            "tweeteval/hate",
            {"hate/mapping.txt": "0\tno\n1\tyes", "hate/val_text.txt": "a\n", "hate/val_labels.txt": "-1\n"},
            "line 1: '-1'; expected 0 to 1",
        ),
        (
            "tweeteval/hate",
            {"hate/mapping.txt": "0\tno\n1\tyes", "hate/val_text.txt": "a\nb\nc\n", "hate/val_labels.txt": "1\n0\n"},
            r"val_text\.txt has 3 lines and .*val_labels\.txt 2",
        ),
        (
            "tweeteval/stance",
            {
                "stance/mapping.txt": STANCES,
                "stance/abortion/val_text.txt": "a\n",
                "stance/abortion/val_labels.txt": "1\n",
            },
            r"stance/atheism/val_text\.txt is missing",
        ),
        ("tweeteval/irony", {"irony/mapping.txt": "0\tno\n1\tyes"}, r"mapping\.txt: expected irony.*found no, yes"),
        ("semeval2018_ec", {}, r"dev\.txt is missing.*a header line"),
        ("semeval2018_ec", {"dev.txt": E_C_HEADER}, "no example"),
        ("semeval2018_ec", {"dev.txt": E_C_HEADER + "1\ta\t0\t1\t0\n2\tb\t0\t2\t0\n"}, "line 3.*3 columns of 0 or 1"),
        ("semeval2018_ec", {"dev.txt": E_C_HEADER + "1\ta\t0\t1\n"}, "line 2.*3 columns of 0 or 1"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, files: dict[str, str], said: str) -> None:
    write(tmp_path, files)
    with pytest.raises(DatasetError, match=said):
        read_dataset(name, tmp_path, "dev")


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'final'.*train, dev, test"):
        read_dataset("goemotions", tmp_path, "final")


def spoken(*groups: str) -> tuple[Example, ...]:
    return tuple(Example(labels=(0,), text=str(place), group=group) for place, group in enumerate(groups))


def test_with_as_many_groups_as_folds_they_are_held_out_in_turn() -> None:
    examples = spoken("Session3", "Session1", "Session2", "Session1")
    for place, session in enumerate(("Session1", "Session2", "Session3")):
        learned_from, held_out = divide(examples, fold=place, folds=3)
        assert held_out == tuple(example for example in examples if example.group == session)
        assert learned_from == tuple(example for example in examples if example.group != session)


def test_folds_of_many_groups_are_of_about_one_size() -> None:
    examples = spoken(*(f"{actor:02}" for actor in range(24) for _ in range(60)))
    held_out = [divide(examples, fold=place, folds=5)[1] for place in range(5)]
    assert sorted(len({example.group for example in held}) for held in held_out) == [4, 5, 5, 5, 5]


@given(groups=st.lists(st.sampled_from("abcdefg"), min_size=1), folds=st.integers(2, 5), rotation=st.integers(0, 20))
def test_folds_cover_the_examples_and_cut_no_group(groups: list[str], folds: int, rotation: int) -> None:
    examples = spoken(*groups)
    if len(set(groups)) < folds:
        with pytest.raises(DatasetError, match=f"{folds} folds need as many groups"):
            divide(examples, fold=0, folds=folds)
        return
    divided = [divide(examples, fold=place, folds=folds) for place in range(folds)]
    assert sorted(e.text or "" for _, held_out in divided for e in held_out) == sorted(e.text or "" for e in examples)
    turned = examples[rotation % len(examples) :] + examples[: rotation % len(examples)]
    for place, (learned_from, held_out) in enumerate(divided):
        assert learned_from
        assert held_out
        assert not {example.group for example in learned_from} & {example.group for example in held_out}
        assert set(divide(turned, fold=place, folds=folds)[1]) == set(held_out), "the order of examples decides nothing"


@pytest.mark.parametrize(("which", "folds"), [(5, 5), (-1, 5), (0, 1), (0, 0)])
def test_there_is_no_such_fold(which: int, folds: int) -> None:
    with pytest.raises(DatasetError, match=f"no fold {which} of {folds}"):
        divide(spoken("a", "b"), fold=which, folds=folds)


def test_examples_without_groups_have_no_folds() -> None:
    with pytest.raises(DatasetError, match="2 folds need as many groups; found 1: ''"):
        divide(spoken("", ""), fold=0, folds=2)


def test_a_text_that_judges_is_not_learned_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However it is masked, quoted or escaped: SemEval's sentiment data gives train and val such twins."""
    task = tmp_path / "irony"
    other = "what a very long and different day it was"
    write_task(task, "train", ['"@ann so that’s how my whole monday went http"', other, "ok"])
    write_task(
        task, "val", [r"@user So that\u2019s how my whole Monday went&#33;", "ok", "nothing like that at all, no"]
    )
    with caplog.at_level("WARNING"):
        learned, held = read_splits("tweeteval/irony", tmp_path)
    assert learned.texts == [other, "ok"], "short ones are alike by chance"
    assert len(held.examples) == 3
    assert "1 texts of train stand in dev as well" in caplog.text


def write_task(task: Path, split: str, texts: list[str]) -> None:
    task.mkdir(exist_ok=True)
    (task / "mapping.txt").write_text("0\tnon_irony\n1\tirony\n")
    (task / f"{split}_text.txt").write_text("\n".join(texts) + "\n")
    (task / f"{split}_labels.txt").write_text("0\n" * len(texts))


def test_mapping_goes_by_number(tmp_path: Path) -> None:
    write_task(tmp_path / "irony", "test", ["one", "two"])
    (tmp_path / "irony" / "mapping.txt").write_text("1\tirony\n0\tnon_irony\n")
    assert read_dataset("tweeteval/irony", tmp_path, "test").classes["irony"] == ("non_irony", "irony")


def test_a_mapping_with_names_the_wrong_way_round_is_put_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As TweetEval first published the task: 0 was, and is, what does not offend."""
    write_task(tmp_path / "offensive", "test", ["one"])
    (tmp_path / "offensive" / "mapping.txt").write_text("0\toffensive\n1\tnot-offensive\n")
    classes = read_dataset("tweeteval/offensive", tmp_path, "test").classes
    assert classes == {"offensive": ("not-offensive", "offensive")}
    assert "wrong order" in caplog.text


def test_folds_divide_all_splits_and_leave_no_twin_of_what_judges(tmp_path: Path) -> None:
    said = "well well, look who finally made it to the party"
    for split, dialogues in {"train": "012", "dev": "34", "test": "5"}.items():
        rows = [f"line {split} {number} and nothing else,joy,{number},0\n" for number in dialogues]
        rows.append(f'"{said}",joy,{dialogues[0]},1\n')
        (tmp_path / f"{split}_sent_emo.csv").write_text("Utterance,Emotion,Dialogue_ID,Utterance_ID\n" + "".join(rows))
    held_out = []
    for fold in range(6):
        learned, held = read_splits("meld", tmp_path, fold=(fold, 6))
        held_out += held.texts
        assert not {example.group for example in learned.examples} & {example.group for example in held.examples}
        assert not (said in learned.texts and said in held.texts)
        assert len(learned.examples) + len(held.examples) == (7 if said in held.texts else 9)
        judged = read_fold("meld", tmp_path, fold=(fold, 6))
        assert (judged.split, judged.examples) == (f"fold {fold + 1} of 6", held.examples)
    assert len(held_out) == 9


def test_a_fold_of_what_cannot_be_divided_is_an_error(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_task(tmp_path / "irony", split, ["one", "two"])
    with pytest.raises(DatasetError, match="tweeteval/irony has no speakers, sessions or dialogues"):
        read_fold("tweeteval/irony", tmp_path, fold=(0, 2))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "test_sent_emo.csv").write_bytes(b"Utterance,Emotion\n\x81,joy\n")
    with pytest.raises(DatasetError, match="meld: a file of split 'test'"):
        read_dataset("meld", tmp_path, "test")


def test_texts_of_a_set_without_texts_are_an_error() -> None:
    with pytest.raises(DatasetError, match="1 examples have no text"):
        _ = Dataset("made", "train", {EMOTION: LABELS}, (Example(labels=(0,)),)).texts
