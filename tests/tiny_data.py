"""Small data sets in the published layouts, in which one letter, or one tone, gives the emotion away."""

import wave
from pathlib import Path

import numpy as np

SAMPLE_RATE_HZ = 16_000
LETTERS = {"anger": "a", "joy": "j", "neutral": "n"}
_RAVDESS = {"anger": ("05", 900), "joy": ("03", 2_000), "neutral": ("01", 300)}


def write_meld(folder: Path) -> None:
    """Write MELD's CSV files, 120 lines each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f'"{"the " * (i % 5)}{letter} so",{emotion}' for i in range(40) for emotion, letter in LETTERS.items()]
    for split in ("train", "dev", "test"):
        (folder / f"{split}_sent_emo.csv").write_text("\n".join(["Utterance,Emotion", *rows]) + "\n")


def write_irony(folder: Path) -> None:
    """Write TweetEval's irony task: a z is ironic."""
    task = folder / "irony"
    task.mkdir(parents=True, exist_ok=True)
    (task / "mapping.txt").write_text("0\tnon_irony\n1\tirony\n")
    for split in ("train", "val", "test"):
        (task / f"{split}_text.txt").write_text("so z the\nso q the\n" * 20)
        (task / f"{split}_labels.txt").write_text("1\n0\n" * 20)


def write_goemotions(folder: Path) -> None:
    """Write GoEmotions with its seven labels."""
    folder.mkdir(parents=True)
    (folder / "labels.txt").write_text("anger\ndisgust\nfear\njoy\nneutral\nsadness\nsurprise\n")
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text("so glad\t3\tx\ngrr\t0\ty\n" * 8)


def write_tweeteval(folder: Path, *, classes: dict[str, tuple[str, ...]]) -> None:
    """Write all seven tasks of TweetEval, a tweet per class and split."""
    for head, labels in classes.items():
        if head == "semeval2018_ec":
            continue
        task = folder / head.replace("tweet_emotion", "emotion")
        task.mkdir(parents=True)
        mapping = "".join(f"{number}\t{label}\n" for number, label in enumerate(labels))
        (task / "mapping.txt").write_text(mapping)
        (task.parent / "mapping.txt").write_text(mapping)  # stance has one for all its targets
        for split in ("train", "val", "test"):
            (task / f"{split}_text.txt").write_text("".join(f"what a day {label}\n" for label in labels))
            (task / f"{split}_labels.txt").write_text("".join(f"{number}\n" for number in range(len(labels))))


def write_ravdess(folder: Path, *, actors: tuple[int, ...] = (1, 2, 3, 4, 17, 18)) -> None:
    """Write recordings of a second in RAVDESS' layout: an emotion has a pitch, an actor moves it a little."""
    noise = np.random.default_rng(1)
    for actor in actors:
        place = folder / f"Actor_{actor:02d}"
        place.mkdir(parents=True, exist_ok=True)
        for code, pitch in _RAVDESS.values():
            for take in range(1, 4):
                write_tone(place / f"03-01-{code}-01-01-{take:02d}-{actor:02d}.wav", pitch * (1 + actor / 200), noise)


def write_iemocap(folder: Path) -> None:
    """Write IEMOCAP's published layout: five sessions of two dialogues, each utterance with its words and its sound."""
    noise = np.random.default_rng(2)
    codes = {"ang": ("a", 900), "hap": ("j", 2_000), "neu": ("n", 300)}
    for session in range(1, 6):
        root = folder / "IEMOCAP_full_release" / f"Session{session}"
        for place in ("dialog/EmoEvaluation", "dialog/transcriptions", "sentences/wav"):
            (root / place).mkdir(parents=True)
        for dialogue in ("impro01", "script01"):
            name = f"Ses{session:02d}F_{dialogue}"
            (root / "sentences/wav" / name).mkdir()
            turns, words = [], []
            for number, (code, (letter, pitch)) in enumerate([*codes.items()] * 2):
                utterance = f"{name}_F{number:03d}"
                turns.append(f"[6.29 - 8.23]\t{utterance}\t{code}\t[2.5, 2.5, 2.5]\n")
                words.append(f"{utterance} [006.29-008.23]: the {letter} so\n")
                wav = root / "sentences/wav" / name / f"{utterance}.wav"
                write_tone(wav, pitch * (1 + session / 100), noise)
            (root / "dialog/EmoEvaluation" / f"{name}.txt").write_text("% header\n\n" + "".join(turns))
            (root / "dialog/transcriptions" / f"{name}.txt").write_text("".join(words))


def write_tone(file: Path, pitch_hz: float, noise: np.random.Generator, *, seconds: float = 1.0) -> None:
    """Write a tone that swells and fades, with some noise."""
    time = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    swelling = 0.3 * (1 + np.sin(2 * np.pi * 3 * time + noise.uniform(0, 6)))
    tone = swelling * np.sin(2 * np.pi * pitch_hz * time) + noise.normal(0, 0.02, len(time))
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE_HZ)
        out.writeframes((np.clip(tone, -1, 1) * 32_000).astype("<i2").tobytes())
