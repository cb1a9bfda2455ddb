"""The checkpoint that ships, at work: order, padding, windows, paths, flags. Its accuracy stands in the model card."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.model.audio import Recording, decode_recording
from emostream.model.checkpoint import SHIPPED, load_checkpoint
from emostream.model.errors import CheckpointError
from emostream.model.language import LanguageDetector
from emostream.model.network import TextBranch
from emostream.model.samples import (
    ATTRIBUTES,
    FLAG_LANGUAGE,
    FLAG_LOW_QUALITY,
    FLAG_NO_WORDS,
    FLAG_TRUNCATED,
    FLAG_UNKNOWN_TOKENS,
    FLAG_WINDOWED,
    LABELS,
    Scored,
    Unscorable,
)
from emostream.model.scorer import EmotionScorer, Item

CLIP = Path(__file__).parents[2] / "docs/examples/clips/parcel.ogg"

PLAIN = {
    "i am so happy for you, congratulations!": "joy",
    "this makes me furious, i hate it": "anger",
    "i'm scared, please don't leave me alone in here": "fear",
    "she died last night and i can't stop crying": "sadness",
    "wow, i did not expect that at all!": "surprise",
    "that is disgusting, i am going to throw up": "disgust",
    "the shop opens at nine": "neutral",
}


def outcomes(scorer: EmotionScorer, items: list[Item]) -> list[Scored]:
    given_outcomes = scorer.score(items).outcomes
    assert all(isinstance(outcome, Scored) for outcome in given_outcomes)
    return list(given_outcomes)


def scores(scorer: EmotionScorer, texts: list[str]) -> list[tuple[float, ...]]:
    return [outcome.scores for outcome in outcomes(scorer, [Item(text=text) for text in texts])]


def flags(scorer: EmotionScorer, *texts: str) -> list[tuple[str, ...]]:
    return [outcome.flags for outcome in outcomes(scorer, [Item(text=text) for text in texts])]


def test_plain_texts_get_the_emotion_they_name(shipped_scorer: EmotionScorer) -> None:
    for text, given_scores in zip(PLAIN, scores(shipped_scorer, list(PLAIN)), strict=True):
        assert LABELS[given_scores.index(max(given_scores))] == PLAIN[text], text


@settings(max_examples=15)
@given(st.lists(st.text(max_size=400), min_size=1, max_size=12))
def test_neighbours_and_padding_never_change_a_score(shipped_scorer: EmotionScorer, texts: list[str]) -> None:
    together = torch.tensor(scores(shipped_scorer, texts))
    alone = torch.tensor([scores(shipped_scorer, [text])[0] for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)
    torch.testing.assert_close(together.sum(1), torch.ones(len(texts)), rtol=0, atol=1e-5)


def test_a_mixed_batch_answers_each_item_as_alone(shipped_scorer: EmotionScorer, recordings: list[Recording]) -> None:
    happy, furious, sad = "we got the flat!", "give me my money back", "she left this morning"
    items = [
        Item(recording=recordings[2]),
        Item(text=happy, recording=recordings[0]),
        Item(text=sad),
        Item(recording=recordings[0]),
        Item(text=furious, recording=recordings[1]),
        Item(text=happy),
    ]
    together = outcomes(shipped_scorer, items)
    alone = [outcomes(shipped_scorer, [item])[0] for item in items]
    for one, other in zip(together, alone, strict=True):
        assert one.modalities == other.modalities
        assert one.attributes.keys() == other.attributes.keys()
        np.testing.assert_allclose(one.scores, other.scores, atol=2e-5)
    assert [outcome.modalities for outcome in together] == [
        ("voice",), ("text", "voice"), ("text",), ("voice",), ("text", "voice"), ("text",),
    ]  # fmt: skip


def test_both_halves_count(shipped_scorer: EmotionScorer, recordings: list[Recording]) -> None:
    text, other_text = "i am so happy for you", "i hate you, go away"
    first, another_voice, another_text = outcomes(
        shipped_scorer,
        [
            Item(text=text, recording=recordings[0]),
            Item(text=text, recording=recordings[1]),
            Item(text=other_text, recording=recordings[0]),
        ],
    )
    assert np.abs(np.subtract(first.scores, another_voice.scores)).max() > 1e-3
    assert np.abs(np.subtract(first.scores, another_text.scores)).max() > 1e-3


def test_attributes_come_from_text_and_are_probabilities(
    shipped_scorer: EmotionScorer, recordings: list[Recording]
) -> None:
    texts = ("what a lovely day, thank you all", "shut up you stupid idiot")
    good, rude, spoken = outcomes(shipped_scorer, [*(Item(text=text) for text in texts), Item(recording=recordings[0])])
    assert tuple(good.attributes) == ATTRIBUTES
    assert good.attributes["sentiment"].label == "positive"
    assert rude.attributes["sentiment"].label == "negative"
    assert (good.attributes["offensive"].label, rude.attributes["offensive"].label) == ("not-offensive", "offensive")
    assert all(0 < answer.confidence <= 1 for answer in rude.attributes.values())
    assert spoken.attributes == {}


def test_other_attributes_can_be_asked_for() -> None:
    scorer = EmotionScorer.load(SHIPPED, device="cpu", attributes=("stance/climate", "emoji"))
    (answer,) = outcomes(scorer, [Item(text="we must act on climate change now, for our children")])
    assert tuple(answer.attributes) == ("stance/climate", "emoji")
    with pytest.raises(CheckpointError, match="no head 'mood'"):
        EmotionScorer.load(SHIPPED, device="cpu", attributes=("mood",))


def test_all_heads_are_answered_from_one_pass_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    forward = TextBranch.forward

    def counted(branch: TextBranch, ids: torch.Tensor) -> torch.Tensor:
        passes.append(len(ids))
        return forward(branch, ids)

    monkeypatch.setattr(TextBranch, "forward", counted)
    every_head = tuple(load_checkpoint(SHIPPED).config.attributes)
    for attributes in (every_head[:1], every_head):
        scorer = EmotionScorer.load(SHIPPED, device="cpu", attributes=attributes)
        passes.clear()
        (answer,) = outcomes(scorer, [Item(text="so good to see you")])
        assert tuple(answer.attributes) == attributes
        assert passes == [1]


def test_emoji_are_not_lost(shipped_scorer: EmotionScorer) -> None:
    laughing, weeping = scores(shipped_scorer, ["😂😂😂", "😭💔"])
    assert LABELS[laughing.index(max(laughing))] == "joy"
    assert LABELS[weeping.index(max(weeping))] == "sadness"


def test_a_long_text_is_read_in_windows_and_says_so(shipped_scorer: EmotionScorer) -> None:
    assert flags(shipped_scorer, "what a day", "a calm sentence about trains. " * 60, "word " * 20_000) == [
        (), (FLAG_WINDOWED,), (FLAG_WINDOWED, FLAG_TRUNCATED),
    ]  # fmt: skip


def test_what_is_behind_the_first_window_counts(shipped_scorer: EmotionScorer) -> None:
    calm = "the train leaves at nine from platform two. " * 30
    first, second = scores(shipped_scorer, [calm, calm + "i am furious, i hate this, i hate you all! " * 30])
    assert second[LABELS.index("anger")] > first[LABELS.index("anger")] + 0.2


def test_what_cannot_be_read_is_answered_and_flagged(shipped_scorer: EmotionScorer) -> None:
    assert flags(shipped_scorer, "@anna (@ben) https://example.org 12:30 (www.a.org) !!!", "🎉", "ok") == [
        (FLAG_NO_WORDS,),
        (),
        (),
    ]
    (german,) = flags(shipped_scorer, "Ich bin heute so traurig, niemand hat an meinen Geburtstag gedacht")
    assert german == (FLAG_LANGUAGE,)
    (cherokee,) = flags(shipped_scorer, "ᎣᏏᏲ ᏙᎯᏧ ᎠᏂᎦᏔᎲ")
    assert FLAG_UNKNOWN_TOKENS in cherokee
    assert FLAG_LANGUAGE in cherokee


def test_what_is_wrong_with_a_recording_is_flagged(shipped_scorer: EmotionScorer, recordings: list[Recording]) -> None:
    clean = recordings[0]
    minute = Recording(np.tile(clean.waveform, 20)[: 60 * 16_000], 60.0, truncated=True, damaged=False)
    broken = msgspec.structs.replace(clean, damaged=True)
    clipped = msgspec.structs.replace(clean, waveform=np.clip(clean.waveform * 40, -1, 1))
    answers = outcomes(shipped_scorer, [Item(recording=each) for each in (clean, minute, broken, clipped)])
    assert [answer.flags for answer in answers] == [(), (FLAG_TRUNCATED,), (FLAG_LOW_QUALITY,), (FLAG_LOW_QUALITY,)]


def test_an_empty_batch_is_an_empty_answer(shipped_scorer: EmotionScorer) -> None:
    assert shipped_scorer.score([]).outcomes == ()


def test_an_item_without_text_and_recording_is_refused(shipped_scorer: EmotionScorer) -> None:
    with pytest.raises(ValueError, match="neither text nor recording"):
        shipped_scorer.score([Item()])


def test_bfloat16_answers_as_float32_does(shipped_scorer: EmotionScorer, recordings: list[Recording]) -> None:
    half = EmotionScorer.load(SHIPPED, device="cpu", precision="bfloat16")
    items = [*(Item(text=text) for text in PLAIN), *(Item(recording=recording) for recording in recordings)]
    for exact, rounded in zip(outcomes(shipped_scorer, items), outcomes(half, items), strict=True):
        np.testing.assert_allclose(rounded.scores, exact.scores, atol=0.06)


def test_weights_held_in_bfloat16_change_no_score(monkeypatch: pytest.MonkeyPatch, recordings: list[Recording]) -> None:
    checkpoint = load_checkpoint(SHIPPED)
    held = EmotionScorer(checkpoint, language=LanguageDetector.load(), device="cpu", precision="bfloat16")
    branches = [*checkpoint.network.text.modules(), *checkpoint.network.voice.modules()]
    weights = [each.weight for each in branches if isinstance(each, torch.nn.Linear | torch.nn.Conv2d)]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert not [each for each in branches if isinstance(each, torch.nn.BatchNorm2d)], "all folded"
    monkeypatch.setattr("emostream.model.scorer.hold_in", lambda *_: None)
    converted = EmotionScorer.load(SHIPPED, device="cpu", precision="bfloat16")
    items = [*(Item(text=text) for text in PLAIN), *(Item(recording=recording) for recording in recordings)]
    for one, other in zip(outcomes(held, items), outcomes(converted, items), strict=True):
        assert (one.scores, one.attributes) == (other.scores, other.attributes)


def test_a_score_that_is_no_number_is_named_not_sent() -> None:
    checkpoint = load_checkpoint(SHIPPED)
    with torch.no_grad():
        checkpoint.network.fusion.head.classify.bias.fill_(float("nan"))
    scorer = EmotionScorer(checkpoint, language=LanguageDetector.load(), device="cpu", precision="float32")
    (outcome,) = scorer.score([Item(text="hello")]).outcomes
    assert isinstance(outcome, Unscorable)
    assert outcome.reason == "not_a_number"
    with pytest.raises(CheckpointError, match="not a number, whatever is asked"):
        scorer.warm_up()


@pytest.mark.parametrize("warm", ["text", "voice", "fused", "irony"])
def test_each_path_and_head_has_its_own_temperature(shipped_scorer: EmotionScorer, warm: str) -> None:
    """A higher one flattens its own scores, changes no answer, and leaves all others alone."""
    checkpoint = load_checkpoint(SHIPPED)
    temperatures = {**checkpoint.config.temperatures, warm: checkpoint.config.temperatures[warm] * 4}
    config = msgspec.structs.replace(checkpoint.config, temperatures=temperatures)
    flat = EmotionScorer(
        msgspec.structs.replace(checkpoint, config=config), language=LanguageDetector.load(), device="cpu",
        precision="float32", attributes=("irony", "hate"),
    )  # fmt: skip
    text, clip = "i am so happy for you, congratulations!", decode_recording(CLIP)
    items = [Item(text=text), Item(recording=clip), Item(text=text, recording=clip)]
    for path, was, now in zip(
        ("text", "voice", "fused"), outcomes(shipped_scorer, items), outcomes(flat, items), strict=True
    ):
        assert was.scores.index(max(was.scores)) == now.scores.index(max(now.scores))
        assert (max(now.scores) < max(was.scores) - 1e-3) == (path == warm)
        for name, answer in now.attributes.items():
            before = was.attributes[name]
            assert answer.label == before.label
            assert (answer.confidence < before.confidence - 1e-3) == (name == warm)


@pytest.mark.parametrize("size", [1, 2, 300])
def test_padding_share_is_accounted_for(shipped_scorer: EmotionScorer, size: int) -> None:
    batch = shipped_scorer.score([Item(text="one two three")] * size)
    assert 0 < batch.tokens <= batch.padded_tokens
    assert batch.tokens == sum(outcome.tokens for outcome in batch.outcomes)


@pytest.mark.parametrize(
    "full",
    [torch.OutOfMemoryError("none left"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `create`")],
    ids=["torch", "cuBLAS"],
)
def test_a_device_that_is_full_gets_half_from_then_on(
    shipped_scorer: EmotionScorer, monkeypatch: pytest.MonkeyPatch, full: RuntimeError
) -> None:
    texts = [Item(text=f"what a day, number {number}") for number in range(200)]
    expected = [outcome.scores for outcome in outcomes(shipped_scorer, texts)]
    forward, sizes = TextBranch.forward, []

    def forward_or_raise(self: TextBranch, ids_WT: torch.Tensor) -> torch.Tensor:
        sizes.append(ids_WT.numel())
        if ids_WT.numel() > 300:
            raise full
        return forward(self, ids_WT)

    monkeypatch.setattr(TextBranch, "forward", forward_or_raise)
    scorer = EmotionScorer.load(SHIPPED, device="cpu", precision="float32")
    first, second = scorer.score(texts), scorer.score(texts)
    assert [first.halvings, second.halvings] == [2, 0]
    assert max(sizes[-10:]) <= 256
    np.testing.assert_allclose([outcome.scores for outcome in second.outcomes], expected, atol=1e-5)
    monkeypatch.setattr(TextBranch, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError, match="none at all"):
        scorer.score(texts[:1])
