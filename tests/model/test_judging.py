"""Figures of a model on a data set: which path an example takes, and whose classes count."""

import logging
from pathlib import Path

import pytest

from emostream.model.datasets import Dataset, Example
from emostream.model.errors import DatasetError
from emostream.model.judging import judge, match_by_label
from emostream.model.samples import EMOTION, LABELS
from emostream.model.scorer import EmotionScorer

CLIPS = sorted((Path(__file__).parents[2] / "docs" / "examples" / "clips").glob("*.ogg"))
ANGER, JOY, SADNESS = (LABELS.index(name) for name in ("anger", "joy", "sadness"))


def dataset(*examples: Example) -> Dataset:
    return Dataset("made", "test", {EMOTION: LABELS}, examples)


SPOKEN = (
    Example(labels=(JOY,), text="we got the flat! i am so happy!", recording=CLIPS[0]),
    Example(labels=(SADNESS,), text="she left this morning, i miss her so much", recording=CLIPS[1]),
    Example(labels=(ANGER,), text="i am furious, give me my money back!"),
)


@pytest.mark.parametrize(
    ("path", "n", "modalities"),
    [("auto", 3, ("text", "voice")), ("text", 3, ("text",)), ("voice", 2, ("voice",)), ("fused", 2, ("text", "voice"))],
)
def test_each_example_takes_the_path_asked_for(
    shipped_scorer: EmotionScorer, path: str, n: int, modalities: tuple[str, ...]
) -> None:
    told: list[tuple[int, int]] = []
    result = judge(shipped_scorer, dataset(*SPOKEN), path=path, on_progress=lambda *step: told.append(step))
    assert (result.n, result.modalities, result.model) == (n, modalities, shipped_scorer.info)
    assert told[-1] == (3, 3)
    if path == "text":
        assert result.accuracy == 1.0


def test_a_path_that_no_example_can_take_is_an_error(shipped_scorer: EmotionScorer) -> None:
    with pytest.raises(DatasetError, match="can take the path 'voice'"):
        judge(shipped_scorer, dataset(SPOKEN[2]), path="voice")


def test_a_recording_that_cannot_be_read_leaves_the_text_or_is_counted(
    shipped_scorer: EmotionScorer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF" + bytes(50))
    examples = (
        Example(labels=(JOY,), text="i am so happy for you", recording=broken),
        Example(labels=(JOY,), recording=tmp_path / "gone.wav"),
        SPOKEN[2],
    )
    with caplog.at_level(logging.WARNING):
        result = judge(shipped_scorer, dataset(*examples))
    assert (result.n, result.n_unread, result.modalities, result.accuracy) == (2, 1, ("text",), 1.0)
    assert "2 recordings cannot be read" in caplog.text
    assert "for 1 of them there is a text to go by" in caplog.text
    assert judge(shipped_scorer, dataset(*examples, SPOKEN[1]), path="voice").n_unread == 2
    assert "broken.wav" in caplog.text


def test_texts_and_recordings_are_paired_by_label_five_to_one() -> None:
    texts = [Example(labels=(JOY,), text=f"joy {number}") for number in range(9)]
    several = Example(labels=(JOY, ANGER), text="of two minds")
    pairs = match_by_label(dataset(*texts, several), dataset(*SPOKEN))
    assert [(pair.labels, pair.recording) for pair in pairs.examples] == [((JOY,), CLIPS[0])] * 5
    assert {pair.text for pair in pairs.examples} <= {text.text for text in texts}
    assert pairs == match_by_label(dataset(*texts, several), dataset(*SPOKEN)), "the same ones each time"
    with pytest.raises(DatasetError, match="no emotion in common"):
        match_by_label(dataset(SPOKEN[2]), dataset(*SPOKEN[:2]))


def test_classes_are_matched_by_name_not_by_place(shipped_scorer: EmotionScorer) -> None:
    head = "sentiment"
    turned = tuple(reversed(shipped_scorer.head_classes[head]))
    examples = tuple(
        Example(text=text, labels=(turned.index(label),), head=head)
        for text, label in (("what a lovely day, thank you!", "positive"), ("worst service ever, awful", "negative"))
    )
    result = judge(shipped_scorer, Dataset("tweeteval/sentiment", "test", {head: turned}, examples))
    assert result.model == shipped_scorer.info
    assert result.accuracy == 1.0
    assert result.labels == turned


def test_a_head_that_is_not_there_is_named(shipped_scorer: EmotionScorer) -> None:
    example = Example(text="hm", labels=(0,), head="mood")
    with pytest.raises(DatasetError, match="no head 'mood' for good, bad"):
        judge(shipped_scorer, Dataset("moods", "test", {"mood": ("good", "bad")}, (example,)))
