"""Readers of the public data sets of recordings, with and without texts. Called through `datasets.read_dataset`.

RAVDESS, TESS and EmoDB say in a file's name what it holds, and are searched for such names; MELD and IEMOCAP have
tables of their own beside the recordings. Files are found and labelled here and opened elsewhere.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from zlib import crc32

from emostream.model.datasets import Dataset, Example, Reader, existing_file
from emostream.model.errors import DatasetError, NoSuchSplit
from emostream.model.samples import EMOTION, LABELS

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".webm"})
"""What counts as a recording, whatever the case of its letters."""

RAVDESS_ACTORS = {"train": range(1, 17), "dev": range(17, 21), "test": range(21, 25)}
"""Ours, for none is published. Odd actors are men, even ones women: half and half in each split."""

TESS_DEV_SHARE = 10
"""One word in so many is for `dev`, chosen by its checksum."""

IEMOCAP_SESSIONS = {"train": (1, 2, 3), "dev": (4,), "test": (5,)}
"""For a single run, ours as well; the usual figure is the mean over five folds, one session held out in each."""

MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
"""Where the published archive has the clips of each split."""

_MELD_BROKEN = frozenset({("train", "dia125_utt3")})
"""Published, but no decoder opens it (github.com/declare-lab/MELD, issue 39)."""

_RAVDESS_NAME = re.compile(r"03-01-(?P<emotion>0[1-8])-\d\d-\d\d-\d\d-(?P<actor>\d\d)")
_RAVDESS_EMOTIONS = {
    "01": "neutral",
    "02": "neutral",  # calm
    "03": "joy",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}

_TESS_NAME = re.compile(r"(?P<speaker>OAF?|YAF)_(?P<word>[^_]+)(?:_(?P<emotion>.+))?", re.IGNORECASE)
_TESS_EMOTIONS = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "joy",
    "neutral": "neutral",
    "sad": "sadness",
    "ps": "surprise",
    "pleasant_surprise": "surprise",
    "pleasant_surprised": "surprise",
}

EMODB_DEV_SPEAKERS = 2
"""Speakers of EmoDB's dev split, the last by number."""

_EMODB_NAME = re.compile(r"(?P<speaker>\d\d)[a-z]\d\d(?P<emotion>[WEAFTN])[a-z]?", re.IGNORECASE)
_EMODB_EMOTIONS = {"W": "anger", "E": "disgust", "A": "fear", "F": "joy", "T": "sadness", "N": "neutral"}

_IEMOCAP_EMOTIONS = {"ang": "anger", "hap": "joy", "neu": "neutral", "sad": "sadness"}
_IEMOCAP_TURN = re.compile(r"\[[^\]]*\]\s+(?P<utterance>\S+)\s+(?P<emotion>\w+)\s+\[")
_IEMOCAP_SAID = re.compile(r"(?P<utterance>\S+)\s+\[[^\]]*\]:\s*(?P<text>.*)")

_log = logging.getLogger(__name__)


def speech_readers() -> dict[str, Reader]:
    """Return the readers of this module by name, for `datasets.readers`."""
    return {
        "emodb": read_emodb,
        "iemocap": partial(_read_iemocap, "iemocap", _IEMOCAP_EMOTIONS),
        "iemocap-merged": partial(_read_iemocap, "iemocap-merged", {**_IEMOCAP_EMOTIONS, "exc": "joy"}),
        "meld": read_meld,
        "ravdess": read_ravdess,
        "tess": read_tess,
    }


def read_ravdess(folder: Path, split: str) -> Dataset:
    """Read the spoken audio of RAVDESS: `03-01-EE-II-SS-RR-AA.*`, EE the emotion and AA the actor, who is the group.

    Songs (second field 02) and videos (first field 01 or 02) are passed over; calm counts as neutral. `RAVDESS_ACTORS`
    says who is in which split.

    Raises:
        DatasetError: No such name under the folder, or none by an actor of the split.

    Source: Livingstone and Russo 2018, PLoS ONE 13(5), e0196391.
    """
    found = _labelled(folder, _label_ravdess, expected="RAVDESS's names, 03-01-EE-II-SS-RR-AA, in folders Actor_AA")
    actors = RAVDESS_ACTORS[split]
    examples = tuple(example for example in found.values() if int(example.group) in actors)
    if not examples:
        there = ", ".join(sorted({example.group for example in found.values()}))
        raise NoSuchSplit(f"{folder} has actors {there}; split {split!r} is actors {actors[0]} to {actors[-1]}")
    return Dataset("ravdess", split, {EMOTION: LABELS}, examples)


def _label_ravdess(file: Path) -> Example | None:
    name = _RAVDESS_NAME.fullmatch(file.stem)
    return name and _example(file, _RAVDESS_EMOTIONS[name["emotion"]], group=name["actor"])


def read_tess(folder: Path, split: str) -> Dataset:
    """Read TESS: `OAF_back_fear.*`, speaker, word, emotion; its folder's name (`OAF_Fear`) counts where it has none.

    No split is published, and there are two speakers, the groups. `dev` is a tenth of the words, `train` the others,
    and `test` everything: no unseen data for a model that learned from TESS.

    Raises:
        DatasetError: No such name under the folder.

    Source: Pichora-Fuller and Dupuis 2020, doi:10.5683/SP2/E8H2MF.
    """
    found = _labelled(folder, _label_tess, expected="TESS's names, like OAF_back_fear, in folders like OAF_Fear")
    examples = tuple(example for file, example in found.items() if split in (_tess_split(file), "test"))
    return Dataset("tess", split, {EMOTION: LABELS}, examples)


def _label_tess(file: Path) -> Example | None:
    name = _TESS_NAME.fullmatch(file.stem)
    if not name:
        return None
    folder_emotion = file.parent.name.partition("_")[2]
    said = (emotion.lower() for emotion in (name["emotion"] or "", folder_emotion))
    label = next((_TESS_EMOTIONS[emotion] for emotion in said if emotion in _TESS_EMOTIONS), None)
    # One file of the older speaker is published as OA_bite_neutral.
    speaker = f"{name['speaker'][0].upper()}AF"
    return _example(file, label, group=speaker) if label else None


def _tess_split(file: Path) -> str:
    word = file.stem.split("_")[1].lower()
    return "train" if crc32(word.encode()) % TESS_DEV_SHARE else "dev"


def read_emodb(folder: Path, split: str) -> Dataset:
    """Read EmoDB: `03a01Fa.*`, two digits for the speaker, who is the group, three for the text, one for the emotion.

    Boredom (L) is left out, having no label of ours, and nobody in EmoDB is surprised. No split is published: dev is
    the last two speakers found, train the others, test everything (we do not learn from EmoDB). The texts, ten German
    sentences said with every emotion, are not given.

    Raises:
        DatasetError: No such name under the folder.

    Source: Burkhardt et al. 2005, A database of German emotional speech, Interspeech.
    """
    found = _labelled(folder, _label_emodb, expected="EmoDB's names, like 03a01Fa, of another emotion than L")
    dev_speakers = sorted({example.group for example in found.values()})[-EMODB_DEV_SPEAKERS:]
    examples = tuple(
        example for example in found.values() if split == "test" or (example.group in dev_speakers) == (split == "dev")
    )
    return Dataset("emodb", split, {EMOTION: LABELS}, examples)


def _label_emodb(file: Path) -> Example | None:
    name = _EMODB_NAME.fullmatch(file.stem)
    return name and _example(file, _EMODB_EMOTIONS[name["emotion"].upper()], group=name["speaker"])


def read_meld(folder: Path, split: str) -> Dataset:
    """Read `SPLIT_sent_emo.csv` as published, with the clips `diaD_uttU.*` where they are; a dialogue is a group.

    Archives lie inside the published archive: the table is found as each unpacks, in `folder` or `folder/train` and so
    on, or in a `MELD.Raw` there. The clips' folder, one of `MELD_FOLDERS`, may be in any of these, or one level up.
    Utterances without a clip keep their text: one is missing and one broken as published.

    Raises:
        DatasetError: No table, or one without Utterance and Emotion, or an emotion that is none of ours.

    Source: Poria et al. 2019, arXiv:1810.02508.
    """
    name = f"{split}_sent_emo.csv"
    file = next((place / name for place in _meld_places(folder, split) if (place / name).is_file()), folder / name)
    existing_file(file, "MELD's CSV with columns Utterance and Emotion", error=NoSuchSplit)
    clips = {stem: clip for stem, clip in _meld_clips(folder, split).items() if (split, stem) not in _MELD_BROKEN}
    rows = csv.DictReader(
        io.StringIO("".join(map(_utf8_or_windows, file.read_bytes().splitlines(keepends=True))), newline="")
    )
    if not {"Utterance", "Emotion"} <= set(rows.fieldnames or ()):
        raise DatasetError(f"{file}: expected columns Utterance and Emotion, found {rows.fieldnames}")
    examples = tuple(
        _meld_example(row, clips, split=split, where=f"{file}, line {rows.line_num}")
        for row in rows
        if any(row.values())  # spreadsheets leave rows of commas at the end
    )
    without = sum(example.recording is None for example in examples)
    if clips and without:
        _log.warning("meld %s: %d of %d utterances have no usable recording", split, without, len(examples))
    return Dataset("meld", split, {EMOTION: LABELS}, examples)


def _utf8_or_windows(line: bytes) -> str:
    """Decode a line of a table, of which copies are about in either, or in both."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return line.decode("cp1252")


def _meld_clips(folder: Path, split: str) -> dict[str, Path]:
    for place in (*_meld_places(folder, split), *_meld_places(folder.absolute().parent, split)):
        if clips := _recordings_by_stem(place / MELD_FOLDERS[split]):
            return clips
    return {}


def _meld_places(folder: Path, split: str) -> tuple[Path, ...]:
    """Return where a release may have been unpacked to, under a folder."""
    release = folder / "MELD.Raw"
    return folder, folder / split, release, release / split


def _meld_example(row: Mapping[str, str], clips: Mapping[str, Path], *, split: str, where: str) -> Example:
    emotion = (row["Emotion"] or "").strip().lower()
    if emotion not in LABELS:
        raise DatasetError(f"{where}: Emotion is {emotion!r}, expected one of {', '.join(LABELS)}")
    dialogue, utterance = row.get("Dialogue_ID"), row.get("Utterance_ID")
    return Example(
        labels=(LABELS.index(emotion),),
        text=row["Utterance"] or "",
        recording=clips.get(f"dia{dialogue}_utt{utterance}"),
        group=f"{split} dialogue {dialogue}" if dialogue else "",
    )


def _read_iemocap(name: str, emotions: Mapping[str, str], folder: Path, split: str) -> Dataset:
    """Read IEMOCAP's utterances of four emotions, with what was said; a session, of two speakers, is a group.

    Args:
        name: What the data set is called: with excitement or without.
        emotions: Our label for each of IEMOCAP's codes that counts; utterances of others are left out.
        folder: `IEMOCAP_full_release` or the folder it lies in.
        split: `IEMOCAP_SESSIONS` says which sessions it is.

    Raises:
        DatasetError: A session, or a labelled utterance's transcript or recording, is missing.

    Source: Busso et al. 2008, Language Resources and Evaluation 42, 335-359.
    """
    releases = (folder, folder / "IEMOCAP_full_release")
    release = next((place for place in releases if any(place.glob("Session[1-5]"))), None)
    if release is None:
        raise DatasetError(f"{_found_in(folder)}; expected there: IEMOCAP_full_release or its Session1 to Session5")
    examples = tuple(
        example
        for number in IEMOCAP_SESSIONS[split]
        for example in _iemocap_session(release / f"Session{number}", emotions)
    )
    return Dataset(name, split, {EMOTION: LABELS}, examples)


def _iemocap_session(session: Path, emotions: Mapping[str, str]) -> Iterator[Example]:
    tables = sorted((session / "dialog/EmoEvaluation").glob("[!.]*.txt"))
    if not tables:
        error = DatasetError if session.exists() else NoSuchSplit
        raise error(f"{session / 'dialog/EmoEvaluation'}: expected there: IEMOCAP's Ses….txt, found none")
    for table in tables:
        turns = [(utterance, emotions[code]) for utterance, code in _iemocap_turns(table) if code in emotions]
        if not turns:
            continue
        transcript, wavs = session / "dialog/transcriptions" / table.name, session / "sentences/wav" / table.stem
        texts, recordings = _iemocap_texts(transcript), _recordings_by_stem(wavs)
        for utterance, emotion in turns:
            if utterance not in texts:
                raise DatasetError(f"{transcript} has no line for {utterance}, which {table} labels")
            if utterance not in recordings:
                raise DatasetError(f"{wavs / utterance}.wav is missing; {table} labels it")
            yield _example(recordings[utterance], emotion, group=session.name, text=texts[utterance])


def _iemocap_turns(table: Path) -> Iterator[tuple[str, str]]:
    """Yield utterance and emotion code from the lines that open with a time; the raters' own lines follow each."""
    for number, line in enumerate(table.read_text("utf-8", errors="replace").splitlines(), start=1):
        if not line.startswith("["):
            continue
        turn = _IEMOCAP_TURN.match(line)
        if not turn:
            raise DatasetError(f"{table}, line {number}: expected [start - end], utterance, emotion and [V, A, D]")
        yield turn["utterance"], turn["emotion"]


def _iemocap_texts(transcript: Path) -> dict[str, str]:
    file = existing_file(transcript, "an utterance a line: Ses01F_impro01_F000 [start-end]: what was said")
    lines = map(_IEMOCAP_SAID.match, file.read_text("utf-8", errors="replace").splitlines())
    return {said["utterance"]: said["text"].strip() for said in lines if said}


def _example(recording: Path, emotion: str, *, group: str, text: str | None = None) -> Example:
    return Example(labels=(LABELS.index(emotion),), text=text, recording=recording, group=group)


def _labelled(folder: Path, label: Callable[[Path], Example | None], *, expected: str) -> dict[Path, Example]:
    """Return the recordings under a folder that `label` knows, sorted by path.

    Of files with one name and one label the first stands for all: copies of RAVDESS and TESS go about that hold every
    recording twice.
    """
    found: dict[tuple[str, tuple[int, ...]], tuple[Path, Example]] = {}
    known = 0
    for file in _recordings_under(folder):
        example = label(file)
        if example:
            known += 1
            found.setdefault((file.stem.lower(), example.labels), (file, example))
    if not found:
        raise DatasetError(f"{_found_in(folder)}; expected there: {expected}, as audio files")
    if known > len(found):
        _log.warning("%s: of %d recordings %d are copies, left out", folder, known, known - len(found))
    return dict(found.values())


def _recordings_under(folder: Path) -> list[Path]:
    """Return them sorted by path; folders that are links are searched, each place once."""
    found: list[Path] = []
    searched: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in searched:
            folders.clear()
            continue
        searched.add(real)
        folders.sort()
        found += [Path(place, name) for name in names if _is_recording(name)]
    return sorted(found)


def _recordings_by_stem(folder: Path) -> dict[str, Path]:
    """Return the recordings that lie in one folder, none where there is no such folder."""
    names = filter(_is_recording, os.listdir(folder)) if folder.is_dir() else ()
    return {file.stem: file for file in (folder / name for name in sorted(names, reverse=True))}


def _is_recording(name: str) -> bool:
    # Archives packed on a Mac hold a "._name" beside each file.
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES and not name.startswith(".")


def _found_in(folder: Path) -> str:
    """Return a clause on what lies in a folder where no reader found its own."""
    if not folder.is_dir():
        return f"{folder} is {'a file' if folder.exists() else 'missing'}"
    if others := _recordings_under(folder):
        return f"{folder} has {len(others)} audio files with other names, {others[0].name} for one"
    entries = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} has no audio files, only {', '.join(entries[:3])}" if entries else f"{folder} is empty"
