"""Social text -> the words an encoder was trained on. Called by `tokenise` and by training, never apart.

Which steps are taken belongs to a checkpoint: a RoBERTa tokenizer reads emoji byte by byte, an uncased
WordPiece vocabulary has none and would answer [UNK] for every one of them.
"""

import html
import re
from html.entities import html5

import emoji
import msgspec

_MENTION = re.compile(r"(?<!\S)@\w+")
_LINK = re.compile(r"https?://\S+|www\.\S+", re.IGNORECASE)
_MASKS = re.compile(r"(?<!\w)(@\w+|http)(?!\w)")
_SPACES = re.compile(r"\s+")
_ESCAPED = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|&(?:amp;)*(\w{2,31}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
_MISREAD = {code: bytes([code]).decode("cp1252", errors="replace") for code in range(0x80, 0xA0)}
"""Control characters that nobody types: Windows-1252 read as Latin-1, as in MELD's first release (U+0092 for ’)."""

_EMOJI_WORD_SEPARATORS = str.maketrans({"_": " ", "-": " "})


class Normalisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The steps to take before tokenising; a part of a checkpoint's configuration.

    Attributes:
        mask_users_and_links: Mentions become `@user` and links `http`, as TweetEval publishes its tweets
            (Barbieri et al. 2020, https://github.com/cardiffnlp/tweeteval).
        emoji_to_words: An emoji becomes its CLDR short name in words: 😂 -> face with tears of joy.
    """

    mask_users_and_links: bool = True
    emoji_to_words: bool = False

    def apply(self, text: str) -> str:
        """Return the text without escapes, with each step of this configuration taken and white space folded."""
        text = unescape(text)
        if self.mask_users_and_links:
            text = _LINK.sub("http", _MENTION.sub("@user", text))
        if self.emoji_to_words and not text.isascii():
            text = emoji.replace_emoji(text, replace=_emoji_words)
        return _SPACES.sub(" ", text).strip()


def unescape(text: str) -> str:
    r"""Return a text with what was escaped once too often, or misread, as what it stands for: `\u2019`, `&amp;`."""
    text = _ESCAPED.sub(_unescaped, text)
    return text if text.isascii() else text.translate(_MISREAD)


def has_words(normalised: str) -> bool:
    """Return whether a normalised text holds a word: a letter outside of masked mentions and links."""
    return any(map(str.isalpha, _MASKS.sub("", normalised)))


def _unescaped(escape: re.Match[str]) -> str:
    if number_or_name := escape[1]:
        known = number_or_name.startswith("#") or f"{number_or_name};" in html5
        return html.unescape(f"&{number_or_name};") if known else escape[0]
    return bytes.fromhex(escape[0].replace("\\u", "")).decode("utf-16-be", errors="replace")


def _emoji_words(_symbol: str, data: dict[str, str]) -> str:
    """Return an emoji's English name as plain words, set apart by spaces."""
    name = data["en"].strip(":").translate(_EMOJI_WORD_SEPARATORS)
    return f" {name} "
