"""Text -> windows of token ids. Called by the scorer and by training, so that both see the same tokens."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from emostream.model.normalise import Normalisation, has_words


class TokenLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an encoder wants its tokens; a part of a checkpoint's configuration.

    Attributes:
        start_id: Token before each window ([CLS], <s>).
        end_id: Token after each window ([SEP], </s>).
        pad_id: Token that fills a row up.
        unknown_id: Token for what the vocabulary does not hold; None if it holds everything, byte by byte.
        window_tokens: Longest row the encoder takes, start and end included.
        overlap_tokens: Tokens that two neighbouring windows share, so that no phrase is only seen cut.
        most_windows: Windows read of one text; what lies behind them is not read, and flagged.
    """

    start_id: int
    end_id: int
    pad_id: int
    unknown_id: int | None = None
    window_tokens: int = 256
    overlap_tokens: int = 32
    most_windows: int = 16


class Windows(msgspec.Struct, frozen=True):
    """One text as the encoder reads it.

    Attributes:
        rows: Token ids per window, special tokens included, no padding.
        truncated: Whether the text went on behind the last window.
        has_words: Whether there is a word in it, beside mentions and links.
        unknown_share: Share of its tokens that the vocabulary does not hold.
    """

    rows: tuple[tuple[int, ...], ...]
    truncated: bool
    has_words: bool = True
    unknown_share: float = 0.0


class TextTokenizer:
    """Normalises and tokenises. Not for several threads at once: the tokenizer underneath is not."""

    def __init__(self, tokenizer: Tokenizer, *, normalisation: Normalisation, layout: TokenLayout) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.normalisation = normalisation
        self.layout = layout

    @classmethod
    def load(cls, file: Path, *, normalisation: Normalisation, layout: TokenLayout) -> "TextTokenizer":
        """Read a `tokenizer.json`."""
        return cls(Tokenizer.from_file(str(file)), normalisation=normalisation, layout=layout)

    def save(self, file: Path) -> None:
        """Write the `tokenizer.json` that `load` reads."""
        self._tokenizer.save(str(file))

    def windows(self, texts: Sequence[str]) -> list[Windows]:
        """Return each text's windows, in order."""
        normalised = [self.normalisation.apply(text) for text in texts]
        encodings = self._tokenizer.encode_batch(normalised, add_special_tokens=False)
        return [self._cut(text, encoding.ids) for text, encoding in zip(normalised, encodings, strict=True)]

    def _cut(self, text: str, ids: list[int]) -> Windows:
        layout = self.layout
        width = layout.window_tokens - 2
        step = width - layout.overlap_tokens
        last_start = max(len(ids) - layout.overlap_tokens, 1)
        starts = range(0, last_start, step)
        rows = tuple(
            (layout.start_id, *ids[start : start + width], layout.end_id) for start in starts[: layout.most_windows]
        )
        return Windows(
            rows=rows,
            truncated=len(starts) > layout.most_windows,
            has_words=has_words(text),
            unknown_share=ids.count(layout.unknown_id) / len(ids) if ids and layout.unknown_id is not None else 0.0,
        )
