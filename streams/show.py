"""How answers look on a terminal. Used by `watch` and the demo."""

from rich.cells import set_cell_size
from rich.console import Console
from rich.text import Text

from emostream.connectors.messages import Emotion

EMOTION_STYLES = {
    "anger": "bright_red",
    "disgust": "green",
    "fear": "magenta",
    "joy": "bright_yellow",
    "neutral": "white",
    "sadness": "bright_blue",
    "surprise": "bright_cyan",
}

_EMOTION_CELLS, _CONFIDENCE_CELLS, _BAR_CELLS = 9, 5, 10
_ANSWER_CELLS = 2 + _EMOTION_CELLS + _CONFIDENCE_CELLS + 1 + _BAR_CELLS + len("  truncated")
_FEWEST_TEXT_CELLS = 32
"""A post's id as `publish` makes it."""


def text_cells(console: Console) -> int:
    """Return how many cells of a line the text may take, so that the answer fits beside it."""
    return max(_FEWEST_TEXT_CELLS, console.width - _ANSWER_CELLS)


def answer_line(answer: Emotion, text: str | None = None, *, text_cells: int) -> Text:
    """Return one aligned line: the post (its text where known, else its id), the emotion, the confidence."""
    style = EMOTION_STYLES[answer.emotion]
    filled = round(answer.confidence * _BAR_CELLS)
    return Text.assemble(
        _cells(text if text is not None else answer.post_id, text_cells),
        "  ",
        (_cells(answer.emotion, _EMOTION_CELLS), style),
        f"{answer.confidence:{_CONFIDENCE_CELLS}.2f} ",
        ("█" * filled + "░" * (_BAR_CELLS - filled), style),
        (f"  {' '.join(answer.flags)}", "dim"),
    )


def dead_letter_line(text: str, *, reason: str, error: str, text_cells: int) -> Text:
    """Return one aligned line for a record that became a dead letter."""
    return Text.assemble((_cells(text, text_cells), "dim"), "  ", ("dead letter", "red"), f"  {reason}: {error}")


def _cells(text: str, width: int) -> str:
    """Return the text on one line, cut or filled to so many terminal cells."""
    line = " ".join(text.split())
    cut = set_cell_size(line, width)
    return cut if cut.rstrip() == line or len(line) <= width // 2 else set_cell_size(line, width - 1) + "…"
