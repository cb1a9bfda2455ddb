"""Readers of the public data sets of texts, and what every reader gives. Called by training and by evaluation.

`read_dataset` finds the reader; those of recordings are in `speech_datasets`. A missing or malformed file says which
file, which line and what was expected there.
"""

import contextlib
import csv
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
from sklearn.model_selection import GroupKFold

from emostream.model.errors import DatasetError, NoSuchSplit
from emostream.model.normalise import unescape
from emostream.model.samples import EMOTION, LABELS

_log = logging.getLogger(__name__)

EKMAN = {
    "anger": "anger annoyance disapproval",
    "disgust": "disgust",
    "fear": "fear nervousness",
    "joy": "admiration amusement approval caring desire excitement gratitude joy love optimism pride relief",
    "neutral": "neutral",
    "sadness": "disappointment embarrassment grief remorse sadness",
    "surprise": "confusion curiosity realization surprise",
}
"""GoEmotions' 28 labels folded to seven, as its authors do (Demszky et al. 2020, arXiv:2005.00547)."""

_TO_EKMAN = {fine: label for label, fines in EKMAN.items() for fine in fines.split()}

_ENOUGH_LINES = 100
"""Among so many lines with ids of the 28 labels, some id is above 6: neutral, 27, stands in a quarter of them."""

_UTF8 = "utf-8-sig"
"""Some editors put a byte order mark first."""

TWEETEVAL_TASKS = ("emotion", "hate", "irony", "offensive", "sentiment", "stance", "emoji")
STANCE_TARGETS = ("abortion", "atheism", "climate", "feminist", "hillary")
_STANCE_HILLARY_ONCE = "hilary"
"""The fifth target's folder in early releases of TweetEval."""

_TWEETEVAL_CLASSES = {"offensive": ("not-offensive", "offensive")}
"""An early `mapping.txt` of this task has the two names the wrong way round; the labels mean this."""

_TWEETEVAL_JUDGED = {"irony": frozenset({"irony"}), "stance": frozenset({"against", "favor"})}
"""Classes that a task's official metric is of, where it is not of all."""

TWEET_EMOTION = "tweet_emotion"
"""Head of TweetEval's emotion task, whose four classes are not our seven."""

SPLITS = ("train", "dev", "test")

_UNDIVIDED = "has no speakers, sessions or dialogues to be divided into folds by"

PAIRS = "pairs"
"""Name under which figures of texts and recordings that were matched by label are reported."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled text, recording, or both.

    Attributes:
        labels: Indices into the classes of `head`; more than one where raters named more.
        text: What was written or said, if known.
        recording: File of the recording, if there is one.
        head: Which question the labels answer.
        group: Speaker or session; a fold never cuts a group in two.
    """

    labels: tuple[int, ...]
    text: str | None = None
    recording: Path | None = None
    head: str = EMOTION
    group: str = ""


class Dataset(msgspec.Struct, frozen=True):
    """One split of one data set.

    Attributes:
        name: As recipes call it.
        split: The published one, or which fold it is.
        classes: The classes of each head that its labels speak of.
        examples: In the order of the files.
        is_fold: Whether it is one of the folds that the data set was divided into.
    """

    name: str
    split: str
    classes: dict[str, tuple[str, ...]]
    examples: tuple[Example, ...]
    is_fold: bool = False

    @property
    def texts(self) -> list[str]:
        """Return the texts of a data set all of whose examples have one.

        Raises:
            DatasetError: One has none.
        """
        texts = [example.text for example in self.examples if example.text is not None]
        if len(texts) != len(self.examples):
            raise DatasetError(f"{self.name}: {len(self.examples) - len(texts)} examples have no text to learn from")
        return texts


Reader = Callable[[Path, str], Dataset]


def read_dataset(name: str, folder: Path, split: str) -> Dataset:
    """Read one split of a data set.

    Args:
        name: One of `readers()`.
        folder: Where its files lie.
        split: `train`, `dev` (or `val`, which means the same) or `test`.

    Raises:
        DatasetError: Unknown name or split, missing file or malformed row; `NoSuchSplit` if nothing else is wrong.
    """
    split = "dev" if split == "val" else split
    if name not in readers():
        raise DatasetError(f"no reader for {name!r}; there are: {', '.join(readers())}")
    if split not in SPLITS:
        raise DatasetError(f"there is no split {split!r}; there are: {', '.join(SPLITS)}")
    try:
        dataset = readers()[name](folder, split)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{name}: a file of split {split!r} under {folder} cannot be read: {error}") from error
    if not dataset.examples:
        raise NoSuchSplit(f"{name}: no example in split {split!r} under {folder}")
    return dataset


def read_splits(name: str, folder: Path, *, fold: tuple[int, int] | None = None) -> tuple[Dataset, Dataset]:
    """Read what is learned from and what judges it: the published splits, or one fold.

    Args:
        name: One of `readers()`.
        folder: Where its files lie.
        fold: (which fold is held out, how many there are). All published splits, `test` among them, are divided anew
            by their groups; a data set without groups keeps its splits.

    Returns:
        What is learned from, without any text that also stands in the other, however it is masked or punctuated; and
        what judges. Published sets overlap: 844 of TweetEval's 2,000 sentiment tweets of val stand in SemEval-2017's
        training data.
    """
    learned, held = _read_both(name, folder, fold)
    return _without_twins(learned, held), held


def _read_both(name: str, folder: Path, fold: tuple[int, int] | None) -> tuple[Dataset, Dataset]:
    """Read what is learned from, twins and all, and what judges it."""
    learned, held = read_dataset(name, folder, "train"), read_dataset(name, folder, "dev")
    everything = [*learned.examples, *held.examples]
    if fold is None or not all(example.group for example in everything):
        return learned, held
    with contextlib.suppress(NoSuchSplit):  # the published test split joins where it is there
        everything += read_dataset(name, folder, "test").examples
    if all(example.group for example in everything):
        # Where splits overlap (EmoDB publishes none), a recording still counts once.
        once = {example.recording or number: example for number, example in enumerate(everything)}
        train_part, dev_part = divide(list(once.values()), fold=fold[0], folds=fold[1])
        learned = msgspec.structs.replace(learned, examples=train_part)
        split = f"fold {fold[0] + 1} of {fold[1]}"
        held = msgspec.structs.replace(held, examples=dev_part, split=split, is_fold=True)
    return learned, held


def read_fold(name: str, folder: Path, *, fold: tuple[int, int]) -> Dataset:
    """Read one fold: what a training that was divided so has not learned from.

    Raises:
        DatasetError: There is no such fold, or nothing that the data set could be divided by.
    """
    _, held = _read_both(name, folder, fold)
    if not held.is_fold:
        raise DatasetError(f"{name} {_UNDIVIDED}")
    return held


def require_folds(judging: Sequence[Dataset]) -> None:
    """Find out whether any of what judges was divided.

    Raises:
        DatasetError: None was: every fold would learn from the same, and be judged by the same.
    """
    if not any(dataset.is_fold for dataset in judging):
        raise DatasetError(f"{', '.join(dataset.name for dataset in judging)}: each {_UNDIVIDED}")


def _without_twins(learned: Dataset, held: Dataset) -> Dataset:
    """Leave out what is learned from and also judges. The same words recorded twice are no twins."""
    known = {_bare(example.text) for example in held.examples if example.text}
    kept = tuple(e for e in learned.examples if e.recording is not None or not _is_known(e.text, known))
    if twins := len(learned.examples) - len(kept):
        _log.warning("%s: %d texts of train stand in dev as well; they are left out", learned.name, twins)
    return msgspec.structs.replace(learned, examples=kept)


_MASKED = re.compile(r"@\w+|https?://\S+|\bhttp\b")
_MARKS = re.compile(r"[\W_]+")

_LEAST_BARE_CHARACTERS = 20
"""Shorter texts stand in many places by chance ("thank you so much"): they are no leak."""


def _bare(text: str) -> str:
    """Return a text without escapes, mentions, links and marks, to be compared."""
    return _MARKS.sub("", _MASKED.sub("", unescape(text).lower()))


def _is_known(text: str | None, known: set[str]) -> bool:
    bare = _bare(text or "")
    return len(bare) > _LEAST_BARE_CHARACTERS and bare in known


def readers() -> dict[str, Reader]:
    """Return the readers by the name that recipes and `emostream evaluate --task` use."""
    # Not above: the readers of recordings are made of this module's words.
    from emostream.model.speech_datasets import speech_readers

    tweeteval = {f"tweeteval/{task}": partial(_read_tweeteval, task) for task in TWEETEVAL_TASKS}
    return {
        **tweeteval,
        "goemotions": _read_goemotions,
        "semeval2018_ec": _read_semeval2018_ec,
        **speech_readers(),
    }


def divide(
    dataset_examples: Sequence[Example], *, fold: int, folds: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide examples into those learned from and those held out, no group in both.

    With as many groups as folds, fold k holds out the k-th group in sorted order: IEMOCAP's sessions, one by one.
    With more, groups are dealt out so that folds are of about one size.

    Args:
        dataset_examples: Examples whose `group` is set.
        fold: Which fold is held out, from 0.
        folds: How many there are, at least 2.

    Returns:
        Learned from and held out, each in the order given.

    Raises:
        DatasetError: No such fold, or fewer groups than folds.
    """
    groups = [example.group for example in dataset_examples]
    names = sorted(set(groups))
    if not 0 <= fold < folds or folds < 2:
        raise DatasetError(f"there is no fold {fold} of {folds}; folds are 2 or more and counted from 0")
    if len(names) < folds:
        raise DatasetError(f"{folds} folds need as many groups; found {len(names)}: {', '.join(map(repr, names))}")
    if len(names) == folds:
        held = {names[fold]}
    else:
        divided = list(GroupKFold(folds).split(groups, groups=groups))
        held = {groups[i] for i in divided[fold][1]}
    learned_from = tuple(example for example in dataset_examples if example.group not in held)
    return learned_from, tuple(example for example in dataset_examples if example.group in held)


def _read_tweeteval(task: str, folder: Path, split: str) -> Dataset:
    """Read `TASK/SPLIT_text.txt`, `TASK/SPLIT_labels.txt` and `TASK/mapping.txt`; stance has a folder per target."""
    head = TWEET_EMOTION if task == "emotion" else task
    if task != "stance":
        classes = {head: _tweeteval_classes(folder, task)}
        examples = tuple(_tweeteval_examples(folder / task, split, head, classes[head]))
    else:
        names = _tweeteval_classes(folder, task)
        places = {target: folder / task / target for target in STANCE_TARGETS}
        if not places["hillary"].is_dir() and (once := folder / task / _STANCE_HILLARY_ONCE).is_dir():
            places["hillary"] = once
        classes = {f"stance/{target}": names for target in STANCE_TARGETS}
        examples = tuple(
            example
            for target in STANCE_TARGETS
            for example in _tweeteval_examples(places[target], split, f"stance/{target}", names)
        )
    return Dataset(name=f"tweeteval/{task}", split=split, classes=classes, examples=examples)


def _tweeteval_classes(folder: Path, task: str) -> tuple[str, ...]:
    file = existing_file(folder / task / "mapping.txt", "label number and name a line, tab-separated")
    lines = file.read_text(_UTF8).splitlines()
    try:
        by_number = {int(line.split("\t")[0]): line.split("\t")[1].strip() for line in lines if line.strip()}
        names = tuple(by_number[number] for number in range(len(by_number)))
    except (IndexError, ValueError, KeyError) as error:
        raise DatasetError(f"{file}: expected label number and name a line, tab-separated") from error
    if missing := _TWEETEVAL_JUDGED.get(task, frozenset()) - set(names):
        expected, found = " and ".join(sorted(missing)), ", ".join(names)
        raise DatasetError(f"{file}: expected {expected} among the names, found {found}")
    meant = _TWEETEVAL_CLASSES.get(task, names)
    if names != meant and set(names) == set(meant):
        _log.warning("%s has the names in the wrong order, as an early release had; read as %s", file, ", ".join(meant))
        return meant
    return names


def _tweeteval_examples(folder: Path, split: str, head: str, classes: tuple[str, ...]) -> Iterator[Example]:
    published = "val" if split == "dev" else split
    text_file = existing_file(folder / f"{published}_text.txt", "one tweet a line")
    label_file = existing_file(folder / f"{published}_labels.txt", "one label number a line")
    labels = label_file.read_text(_UTF8).split()
    texts = _lines(text_file, least=len(labels))
    if len(texts) != len(labels):
        raise DatasetError(f"{text_file} has {len(texts)} lines and {label_file} {len(labels)}; expected as many")
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
        if not (label.isdecimal() and int(label) < len(classes)):
            raise DatasetError(f"{label_file}, line {number}: {label!r}; expected 0 to {len(classes) - 1}")
        yield Example(text=text, labels=(int(label),), head=head)


def _read_goemotions(folder: Path, split: str) -> Dataset:
    """Read `SPLIT.tsv` (text, comma-separated label ids, comment id) and the names of its 7 or 28 labels.

    They stand in `labels.txt`, or in `emotions.txt` as the authors call it.
    """
    label_file, by_authors = folder / "labels.txt", folder / "emotions.txt"
    if by_authors.is_file() and not label_file.exists():
        label_file = by_authors
    existing_file(label_file, "one label a line")
    ids = _label_ids(label_file.read_text(_UTF8).split(), label_file)
    file = existing_file(folder / f"{split}.tsv", "text, label ids and comment id, tab-separated")
    lines = [
        _goemotions_line(line, len(ids), where=f"{file}, line {number}")
        for number, line in enumerate(_lines(file), start=1)
    ]
    highest = max((max(numbers) for _, numbers in lines), default=0)
    if len(lines) >= _ENOUGH_LINES and highest < len(EKMAN) and len(ids) == len(_TO_EKMAN):
        raise DatasetError(f"{label_file} names {len(ids)} labels, but {file} looks as if its ids were of {len(EKMAN)}")
    examples = tuple(
        Example(text=text, labels=tuple(sorted({ids[number] for number in numbers}))) for text, numbers in lines
    )
    return Dataset(name="goemotions", split=split, classes={EMOTION: LABELS}, examples=examples)


def _goemotions_line(line: str, labels: int, *, where: str) -> tuple[str, list[int]]:
    fields = line.split("\t")
    try:
        numbers = [int(field) for field in fields[1].split(",")]
        if not 0 <= min(numbers) <= max(numbers) < labels:
            raise ValueError("no such label")
    except (IndexError, ValueError) as error:
        raise DatasetError(
            f"{where}: expected text, label ids from 0 to {labels - 1} and comment id, tab-separated"
        ) from error
    return fields[0], numbers


def _read_semeval2018_ec(folder: Path, split: str) -> Dataset:
    """Read `SPLIT.txt`: tab-separated, a header line, ID, Tweet and a column of 0 or 1 per emotion.

    Tweets without any emotion are left out: there is no class for them.
    """
    file = existing_file(folder / f"{split}.txt", "a header line, then ID, Tweet and a column of 0 or 1 per emotion")
    header, *lines = _lines(file) or [""]
    classes = tuple(header.split("\t")[2:])
    examples = []
    for number, line in enumerate(lines, start=2):
        fields = line.split("\t")
        if len(fields) != len(classes) + 2 or not set(fields[2:]) <= {"0", "1"}:
            raise DatasetError(f"{file}, line {number}: expected ID, Tweet and {len(classes)} columns of 0 or 1")
        labels = tuple(i for i, mark in enumerate(fields[2:]) if mark == "1")
        if labels:
            examples.append(Example(text=fields[1], labels=labels, head="semeval2018_ec"))
    return Dataset("semeval2018_ec", split, {"semeval2018_ec": classes}, tuple(examples))


def _lines(file: Path, *, least: int = 0) -> list[str]:
    """Return a file's lines, without blank ones at its end unless fewer than `least` were left.

    Texts may hold other characters that Python takes for line ends.
    """
    text = file.read_bytes().decode(_UTF8).replace("\r\n", "\n")
    lines = text.removesuffix("\n").split("\n") if text else []
    while len(lines) > least and not lines[-1].strip():
        lines.pop()
    return lines


def _label_ids(names: Sequence[str], file: Path) -> list[int]:
    """Return our label index for each of a file's labels."""
    unknown = [name for name in names if name not in _TO_EKMAN]
    if unknown or not names:
        raise DatasetError(f"{file}: expected GoEmotions' 28 labels or the seven of its Ekman map; {unknown}")
    return [LABELS.index(_TO_EKMAN[name]) for name in names]


def existing_file(file: Path, expected: str, *, error: type[DatasetError] = DatasetError) -> Path:
    """Return the file.

    Raises:
        DatasetError: There is none; says what was `expected` there. Or another `error`.
    """
    if not file.is_file():
        raise error(f"{file} is missing; expected there: {expected}")
    return file
