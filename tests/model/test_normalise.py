"""Social text as the encoder is meant to see it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.model.normalise import Normalisation

WORDS = Normalisation(emoji_to_words=True)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("@sam_01 hi @kim!", "@user hi @user!"),
        ("mail me@home.example", "mail me@home.example"),
        ("see https://example.com/a?b=1 now", "see http now"),
        ("see WWW.example.com now", "see http now"),
        ("love it😂😂", "love it face with tears of joy face with tears of joy"),
        ("ok 👍🏽", "ok thumbs up medium skin tone"),
        ("us 👩‍👩‍👧!", "us family woman woman girl !"),
        ("go 🇫🇷", "go France"),
        ("  two\n\nlines\t", "two lines"),
        ("plain", "plain"),
        (r"it\u2019s here\u002c \uD83D\uDE02", "it’s here, face with tears of joy"),
        ("don\x92t \x85 \x93so\x94 \x81", "don’t … “so” \N{REPLACEMENT CHARACTER}"),
        (r"half of one: \ud83d", "half of one: \N{REPLACEMENT CHARACTER}"),
        (r"no escape: \u20 \x41 C:\users", r"no escape: \u20 \x41 C:\users"),
        ("you &amp; me &amp;amp;lt;3 &#39;now&#x27;", "you & me <3 'now'"),
        ("AT&T; Q&A &copy &region; &nosuch; &#0;", "AT&T; Q&A &copy &region; &nosuch; \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_known_texts(text: str, normalised: str) -> None:
    assert WORDS.apply(text) == normalised


def test_a_checkpoint_may_keep_emoji_and_links() -> None:
    assert Normalisation(mask_users_and_links=False).apply("@sam 😂 https://example.com") == (
        "@sam 😂 https://example.com"
    )


@given(st.text(st.characters(exclude_characters="&\\"), max_size=300))  # what was escaped twice is not read to its end
def test_any_text_is_taken_and_a_second_pass_changes_nothing(text: str) -> None:
    once = WORDS.apply(text)
    assert "\n" not in once
    assert WORDS.apply(once) == once
