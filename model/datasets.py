"""Readers of the public data sets. Called by training and by `emostream evaluate`.

A missing or malformed file says which file, which line and what was expected there.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from emostream.model.errors import DatasetError
from emostream.model.samples import LABELS

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


class Example(msgspec.Struct, frozen=True):
    """One labelled text; `labels` are indices into `samples.LABELS`, more than one where raters named more."""

    text: str
    labels: tuple[int, ...]


class TextDataset(msgspec.Struct, frozen=True):
    """One split of one data set."""

    name: str
    split: str
    examples: tuple[Example, ...]


def read_dataset(name: str, folder: Path, split: str) -> TextDataset:
    """Read one split of a data set.

    Args:
        name: One of `READERS`.
        folder: Where its files lie.
        split: `train`, `dev` or `test`.

    Raises:
        DatasetError: Unknown name, missing file or malformed row.
    """
    if name not in READERS:
        raise DatasetError(f"no reader for {name!r}; there are: {', '.join(READERS)}")
    examples = tuple(READERS[name](folder, split))
    if not examples:
        raise DatasetError(f"{name}: no example in split {split!r} under {folder}")
    return TextDataset(name=name, split=split, examples=examples)


def _read_goemotions(folder: Path, split: str) -> Iterator[Example]:
    """Read `SPLIT.tsv` (text, comma-separated label ids, comment id) and `labels.txt`, 7 or 28 labels."""
    names = _existing(folder / "labels.txt", "one label a line").read_text("utf-8").split()
    ids = _label_ids(names, folder / "labels.txt")
    file = _existing(folder / f"{split}.tsv", "text, label ids and comment id, tab-separated")
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        fields = line.split("\t")
        try:
            text, marked = fields[0], [ids[int(field)] for field in fields[1].split(",")]
        except (IndexError, ValueError) as error:
            raise DatasetError(
                f"{file}, line {number}: expected text, label ids from 0 to {len(ids) - 1} and comment id, "
                f"tab-separated"
            ) from error
        yield Example(text=text, labels=tuple(sorted(set(marked))))


def _read_meld(folder: Path, split: str) -> Iterator[Example]:
    """Read `SPLIT_sent_emo.csv` as published (columns Utterance and Emotion are used)."""
    file = _existing(folder / f"{split}_sent_emo.csv", "MELD's CSV with columns Utterance and Emotion")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"Utterance", "Emotion"} <= set(rows.fieldnames or ()):
            raise DatasetError(f"{file}: expected columns Utterance and Emotion, found {rows.fieldnames}")
        for row in rows:
            emotion = (row["Emotion"] or "").strip().lower()
            if emotion not in LABELS:
                raise DatasetError(
                    f"{file}, line {rows.line_num}: Emotion is {emotion!r}, expected one of {', '.join(LABELS)}"
                )
            yield Example(text=row["Utterance"], labels=(LABELS.index(emotion),))


READERS: dict[str, Callable[[Path, str], Iterator[Example]]] = {
    "goemotions": _read_goemotions,
    "meld": _read_meld,
}
"""Data sets by the name that recipes and `emostream evaluate --task` use."""


def _label_ids(names: Sequence[str], file: Path) -> list[int]:
    """Return our label index for each of a file's labels."""
    unknown = [name for name in names if name not in _TO_EKMAN]
    if unknown or not names:
        raise DatasetError(f"{file}: expected GoEmotions' 28 labels or the seven of its Ekman map; {unknown}")
    return [LABELS.index(_TO_EKMAN[name]) for name in names]


def _existing(file: Path, expected: str) -> Path:
    if not file.is_file():
        raise DatasetError(f"{file} is missing; expected there: {expected}")
    return file
