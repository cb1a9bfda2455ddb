"""Answers, made without a model."""

import datetime as dt

import msgspec

from emostream.connectors.messages import Emotion, Model, Scores
from emostream.connectors.sinks import Answer

INGESTED = dt.datetime(2026, 3, 1, 12, 30, 15, tzinfo=dt.UTC)


def make_answer(post_id: str, **changes: object) -> Emotion:
    answer = Emotion(
        v=1,
        post_id=post_id,
        revision=1,
        emotion="joy",
        confidence=0.7,
        scores=Scores(anger=0.05, disgust=0.05, fear=0.05, joy=0.7, neutral=0.05, sadness=0.05, surprise=0.05),
        modalities=["text"],
        attributes={},
        flags=[],
        model=Model(name="m", version="1"),
        ingested_at=INGESTED,
        scored_at=INGESTED + dt.timedelta(seconds=1),
        source="tests",
    )
    return msgspec.structs.replace(answer, **changes)


def written(*emotions: Emotion) -> list[Answer]:
    """Return answers as they are written, each with the halves that its modalities speak of."""
    return [
        Answer(
            emotion=emotion,
            post_ms=round(emotion.ingested_at.timestamp() * 1000) if "text" in emotion.modalities else None,
            clip_ms=round(emotion.ingested_at.timestamp() * 1000) if "voice" in emotion.modalities else None,
            text_vector=b"text of " + emotion.post_id.encode() if "text" in emotion.modalities else None,
            voice_vector=b"voice of " + emotion.post_id.encode() if "voice" in emotion.modalities else None,
        )
        for emotion in emotions
    ]
