"""How answers, and what strangers wrote, look on a terminal. Used by `watch`, `dlq` and the demo."""

from rich.cells import set_cell_size
from rich.console import Console
from rich.text import Text

from emostream.connectors.messages import Emotion
from emostream.model.samples import FLAG_CLIP_MISSING, FUSED, MODALITIES, TEXT, VOICE

EMOTION_STYLES = {
    "anger": "bright_red",
    "disgust": "green",
    "fear": "magenta",
    "joy": "bright_yellow",
    "neutral": "white",
    "sadness": "bright_blue",
    "surprise": "bright_cyan",
}

PATH_MARKS = {TEXT: "", VOICE: "♪", FUSED: "+♪"}
"""What an answer rests on, as a line shows it: nothing for a text, notes for a voice."""

_MARKS = {MODALITIES[path]: mark for path, mark in PATH_MARKS.items()}

_MARK_CELLS, _EMOTION_CELLS, _CONFIDENCE_CELLS, _BAR_CELLS = 3, 9, 5, 10
_ANSWER_CELLS = 2 + _MARK_CELLS + _EMOTION_CELLS + _CONFIDENCE_CELLS + 1 + _BAR_CELLS + len(f"  {FLAG_CLIP_MISSING}")
_FEWEST_TEXT_CELLS = 32
"""A post's id as `publish` makes it."""

_JOINERS = "\u200c\u200d"
"""Not printable by themselves, harmless, and part of many emoji and scripts."""


def printable(text: str, *, keep: str = "") -> str:
    """Spell out what would not show, or would make a terminal do something: controls, escapes, directions of writing.

    Args:
        text: What strangers wrote.
        keep: Characters that may stay, such as line breaks.
    """
    return "".join(each if each.isprintable() or each in keep or each in _JOINERS else _spelt(each) for each in text)


def _spelt(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def text_cells(console: Console) -> int:
    """Return how many cells of a line the text may take, so that the answer fits beside it."""
    return max(_FEWEST_TEXT_CELLS, console.width - _ANSWER_CELLS)


def answer_line(answer: Emotion, text: str | None = None, *, text_cells: int) -> Text:
    """Return one aligned line.

    It shows the post (its text where known, else its id), what the answer rests on, the emotion, the confidence, what
    to know about it, and which revision it is, if it is not the first.
    """
    notes = [*answer.flags, *([f"revision {answer.revision}"] if answer.revision > 1 else [])]
    style = EMOTION_STYLES[answer.emotion]
    filled = round(answer.confidence * _BAR_CELLS)
    return Text.assemble(
        _cells(text if text is not None else answer.post_id, text_cells),
        "  ",
        (_cells(_MARKS[tuple(answer.modalities)], _MARK_CELLS), "dim"),
        (_cells(answer.emotion, _EMOTION_CELLS), style),
        f"{answer.confidence:{_CONFIDENCE_CELLS}.2f} ",
        ("█" * filled + "░" * (_BAR_CELLS - filled), style),
        (f"  {' '.join(notes)}", "dim"),
    )


def dead_letter_line(text: str, *, reason: str, error: str, text_cells: int) -> Text:
    """Return one aligned line for a record that became a dead letter."""
    return Text.assemble((_cells(text, text_cells), "dim"), "  ", ("dead letter", "red"), f"  {reason}: {error}")


def _cells(text: str, width: int) -> str:
    """Return the text on one line, cut or filled to so many terminal cells."""
    line = printable(" ".join(text.split()))
    cut = set_cell_size(line, width)
    return cut if cut.rstrip() == line or len(line) <= width // 2 else set_cell_size(line, width - 1) + "…"
