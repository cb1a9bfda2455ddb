"""From the model's words to the wire's: an outcome becomes an answer or a dead letter. Called by the pipeline."""

import datetime as dt
from collections.abc import Callable
from typing import cast

from emostream.connectors.errors import MalformedRecord
from emostream.connectors.messages import (
    VERSION,
    Attribute,
    DeadLetter,
    DeadLetterHeaders,
    Emotion,
    EmotionLabel,
    Modality,
    Model,
    Post,
    Scores,
)
from emostream.model.samples import LABELS, ModelInfo, Scored, Unscorable
from emostream.streams.records import Record

FLAG_CLOCK = "clock"
"""The record's timestamp is no time of this age; `ingested_at` is when it was answered."""

_DECIMALS = 6
"""Digits kept of a score: beyond them bfloat16 has nothing to say, and messages grow by half."""

_LATEST_S = dt.datetime(9999, 1, 1, tzinfo=dt.UTC).timestamp()

Now = Callable[[], dt.datetime]


def now_utc() -> dt.datetime:
    """Return the time of day."""
    return dt.datetime.now(dt.UTC)


def to_answer(record: Record, post: Post, scored: Scored, *, model: ModelInfo, now: Now = now_utc) -> Emotion:
    """Return the answer for a post."""
    scores = [round(score, _DECIMALS) for score in scored.scores]
    confidence = max(scores)
    scored_at = now()
    ingested_at = _instant(record.timestamp_s)
    flags = [*scored.flags] if ingested_at else [*scored.flags, FLAG_CLOCK]
    return Emotion(
        v=VERSION,
        post_id=post.id,
        revision=1,
        emotion=cast(EmotionLabel, LABELS[scores.index(confidence)]),
        confidence=confidence,
        scores=Scores(*scores),
        modalities=[cast(Modality, name) for name in scored.modalities],
        attributes={
            name: Attribute(label=answer.label, confidence=round(answer.confidence, _DECIMALS))
            for name, answer in scored.attributes.items()
        },
        flags=flags,
        model=Model(name=model.name, version=model.version),
        ingested_at=ingested_at or scored_at,
        scored_at=scored_at,
        source=post.source,
        author=post.author,
        topics=post.topics,
        lang=post.lang,
        posted_at=post.created_at,
    )


def to_dead_letter(record: Record, fault: MalformedRecord | Unscorable, *, now: Now = now_utc) -> DeadLetter:
    """Return the dead letter for a record that cannot be answered."""
    error = fault.error if isinstance(fault, Unscorable) else str(fault)
    return DeadLetter(
        key=record.key,
        value=record.value,
        original_headers=record.headers,
        why=DeadLetterHeaders(reason=fault.reason, error=error, origin=record.origin, failed_at=now()),
    )


def _instant(timestamp_s: float) -> dt.datetime | None:
    """Return a Kafka timestamp as a time, or None if it is none: Kafka writes -1 for unknown."""
    if not 0 <= timestamp_s < _LATEST_S:
        return None
    return dt.datetime.fromtimestamp(timestamp_s, dt.UTC)
