"""Long texts are cut into windows that together hold every token."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.model.checkpoint import SHIPPED, load_checkpoint
from emostream.model.encoder import load_pretrained_tokenizer
from emostream.model.normalise import Normalisation
from emostream.model.tokenise import TextTokenizer


@pytest.fixture(scope="session")
def tokenizer(tiny_bert: Path) -> TextTokenizer:
    made = load_pretrained_tokenizer(str(tiny_bert), normalisation=Normalisation(), window_tokens=16)
    made.layout = msgspec.structs.replace(made.layout, overlap_tokens=4, most_windows=5)
    return made


@given(length=st.integers(0, 120))
def test_windows_cover_the_text_in_order(tokenizer: TextTokenizer, length: int) -> None:
    letters = [chr(ord("a") + i % 26) for i in range(length)]
    (windows,) = tokenizer.windows([" ".join(letters)])
    layout = tokenizer.layout
    assert all(row[0] == layout.start_id and row[-1] == layout.end_id for row in windows.rows)
    assert all(len(row) <= layout.window_tokens for row in windows.rows)
    joined = list(windows.rows[0][1:-1])
    for row in windows.rows[1:]:
        assert list(row[1 : 1 + layout.overlap_tokens]) == joined[-layout.overlap_tokens :]
        joined += row[1 + layout.overlap_tokens : -1]
    expected = [4 + i % 26 for i in range(length)]
    assert joined == expected[: len(joined)]
    assert windows.truncated == (len(joined) < length)
    assert len(windows.rows) <= layout.most_windows


def test_a_short_text_is_one_window(tokenizer: TextTokenizer) -> None:
    (windows,) = tokenizer.windows(["the so"])
    assert windows.rows == ((2, 56, 57, 3),)
    assert not windows.truncated


def test_a_variation_selector_whose_emoji_is_gone_changes_no_token() -> None:
    """TweetEval's training tweets of ❤ and ☀ kept theirs when the emoji was cut out, its val tweets rarely."""
    with_selector, without = load_checkpoint(SHIPPED).tokenizer.windows(
        ["my dog \N{VARIATION SELECTOR-16} @ the park", "my dog @ the park"]
    )
    assert with_selector == without


def test_saved_tokenizer_gives_the_same_tokens(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = TextTokenizer.load(
        tmp_path / "tokenizer.json", normalisation=tokenizer.normalisation, layout=tokenizer.layout
    )
    texts = ["the cat", "so so so", "", "ZEBRA!"]
    assert again.windows(texts) == tokenizer.windows(texts)
