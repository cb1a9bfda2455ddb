"""The checkpoint that ships, at work: order, padding, windows, bounds. Its accuracy stands in the model card."""

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.model.checkpoint import SHIPPED, load_checkpoint
from emostream.model.samples import FLAG_TRUNCATED, FLAG_WINDOWED, LABELS, Scored, Unscorable
from emostream.model.scorer import TextScorer

PLAIN = {
    "i am so happy for you, congratulations!": "joy",
    "this makes me furious, i hate it": "anger",
    "i'm scared, please don't leave me alone in here": "fear",
    "she died last night and i can't stop crying": "sadness",
    "wow, i did not expect that at all!": "surprise",
    "that is disgusting, i am going to throw up": "disgust",
    "the shop opens at nine": "neutral",
}


def scores(scorer: TextScorer, texts: list[str]) -> list[tuple[float, ...]]:
    outcomes = scorer.score(texts).outcomes
    assert all(isinstance(outcome, Scored) for outcome in outcomes)
    return [outcome.scores for outcome in outcomes]


def test_plain_texts_get_the_emotion_they_name(shipped_scorer: TextScorer) -> None:
    for text, given_scores in zip(PLAIN, scores(shipped_scorer, list(PLAIN)), strict=True):
        assert LABELS[given_scores.index(max(given_scores))] == PLAIN[text], text


@settings(max_examples=15)
@given(st.lists(st.text(max_size=400), min_size=1, max_size=12))
def test_neighbours_and_padding_never_change_a_score(shipped_scorer: TextScorer, texts: list[str]) -> None:
    together = torch.tensor(scores(shipped_scorer, texts))
    alone = torch.tensor([scores(shipped_scorer, [text])[0] for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)
    torch.testing.assert_close(together.sum(1), torch.ones(len(texts)), rtol=0, atol=1e-5)


def test_emoji_are_not_lost(shipped_scorer: TextScorer) -> None:
    laughing, weeping = scores(shipped_scorer, ["😂😂😂", "😭💔"])
    assert LABELS[laughing.index(max(laughing))] == "joy"
    assert LABELS[weeping.index(max(weeping))] == "sadness"


def test_a_long_text_is_read_in_windows_and_says_so(shipped_scorer: TextScorer) -> None:
    short, long, endless = shipped_scorer.score(
        ["what a day", "a calm sentence about trains. " * 60, "word " * 20_000]
    ).outcomes
    assert short.flags == ()
    assert long.flags == (FLAG_WINDOWED,)
    assert endless.flags == (FLAG_WINDOWED, FLAG_TRUNCATED)


def test_what_is_behind_the_first_window_counts(shipped_scorer: TextScorer) -> None:
    calm = "the train leaves at nine from platform two. " * 30
    first, second = scores(shipped_scorer, [calm, calm + "i am furious, i hate this, i hate you all! " * 30])
    assert second[LABELS.index("anger")] > first[LABELS.index("anger")] + 0.2


def test_an_empty_batch_is_an_empty_answer(shipped_scorer: TextScorer) -> None:
    assert shipped_scorer.score([]).outcomes == ()


def test_bfloat16_answers_as_float32_does(shipped_scorer: TextScorer) -> None:
    half = TextScorer.load(SHIPPED, device="cpu", precision="bfloat16")
    difference = torch.tensor(scores(half, list(PLAIN))) - torch.tensor(scores(shipped_scorer, list(PLAIN)))
    assert difference.abs().max() < 0.03


def test_a_score_that_is_no_number_is_named_not_sent() -> None:
    checkpoint = load_checkpoint(SHIPPED)
    with torch.no_grad():
        checkpoint.network.classify.bias.fill_(float("nan"))
    (outcome,) = TextScorer(checkpoint, device="cpu", precision="float32").score(["hello"]).outcomes
    assert isinstance(outcome, Unscorable)
    assert outcome.reason == "not_a_number"


def test_temperature_flattens_without_changing_the_answer(shipped_scorer: TextScorer) -> None:
    checkpoint = load_checkpoint(SHIPPED)
    warm = msgspec.structs.replace(checkpoint.config, temperature=checkpoint.config.temperature * 4)
    flat = TextScorer(msgspec.structs.replace(checkpoint, config=warm), device="cpu", precision="float32")
    for before, after in zip(scores(shipped_scorer, list(PLAIN)), scores(flat, list(PLAIN)), strict=True):
        assert before.index(max(before)) == after.index(max(after))
        assert max(after) < max(before)


@pytest.mark.parametrize("size", [1, 2, 300])
def test_padding_share_is_accounted_for(shipped_scorer: TextScorer, size: int) -> None:
    batch = shipped_scorer.score(["one two three"] * size)
    assert 0 < batch.tokens <= batch.padded_tokens
    assert batch.tokens == sum(outcome.tokens for outcome in batch.outcomes)
