"""From the model's words to the wire's: an outcome becomes an answer or a dead letter. Called by the pipeline."""

import datetime as dt
from collections.abc import Callable
from typing import Any, cast

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
    Scores,
)
from emostream.connectors.sinks import Answer, Known
from emostream.model.samples import (
    FLAG_CLIP_FAILED,
    FLAG_CLIP_MISSING,
    FLAG_PARTNER_UNKNOWN,
    LABELS,
    VOICE,
    ModelInfo,
    Scored,
    Unscorable,
)
from emostream.streams.records import Item, Record

FLAG_CLOCK = "clock"
"""The record's timestamp is no time of this age; `ingested_at` is when it was answered."""

_FLAGS_OF_ONE_HALF = (FLAG_CLIP_FAILED, FLAG_CLIP_MISSING, FLAG_PARTNER_UNKNOWN)
"""What said that an answer rested on one half alone: no longer true when the other one has come."""

_DECIMALS = 6
"""Digits kept of a score: beyond them bfloat16 has nothing to say, and messages grow by half."""

_LATEST_S = dt.datetime(9999, 1, 1, tzinfo=dt.UTC).timestamp()

Now = Callable[[], dt.datetime]


def now_utc() -> dt.datetime:
    """Return the time of day."""
    return dt.datetime.now(dt.UTC)


def to_answer(item: Item, scored: Scored, known: Known | None, *, model: ModelInfo, now: Now = now_utc) -> Answer:
    """Return the answer for an item.

    Args:
        item: A post, a clip or both.
        scored: What the model said, of a partner that was read before, too.
        known: What is known of the id; None where nobody could be asked.
        model: Which model said it.
        now: Tells the time.
    """
    known_or_nothing = known or Known()
    before = known_or_nothing.emotion
    first_record = item.records[0]  # the post's, where there is one
    scores = [round(score, _DECIMALS) for score in scored.scores]
    confidence = max(scores)
    scored_at = now()
    ingested_at = before.ingested_at if item.post is None and before is not None else _instant(first_record.timestamp_s)
    heard = scored.clip_fault is None
    emotion = Emotion(
        v=VERSION,
        post_id=item.post_id or "",
        revision=_revision(item, known_or_nothing),
        emotion=cast(EmotionLabel, LABELS[scores.index(confidence)]),
        confidence=confidence,
        scores=Scores(*scores),
        modalities=[cast(Modality, name) for name in scored.modalities],
        attributes={
            name: Attribute(label=answer.label, confidence=round(answer.confidence, _DECIMALS))
            for name, answer in scored.attributes.items()
        },
        flags=_flags(item, scored, known),
        model=Model(name=model.name, version=model.version),
        ingested_at=ingested_at or scored_at,
        scored_at=scored_at,
        **_context(item, before),
    )
    return Answer(
        emotion=emotion,
        post_ms=item.post.record.timestamp_ms if item.post is not None else known_or_nothing.post_ms,
        clip_ms=item.clip.record.timestamp_ms if item.clip is not None and heard else known_or_nothing.clip_ms,
        text_vector=scored.text_vector,
        voice_vector=scored.voice_vector,
    )


def _context(item: Item, before: Emotion | None) -> dict[str, Any]:
    """Return what is known of the post beside its text: from itself, or from an answer that it had before."""
    if item.post is not None:
        post = item.post.content
        return {
            "source": post.source, "author": post.author, "topics": post.topics, "lang": post.lang,
            "posted_at": post.created_at,
        }  # fmt: skip
    if before is None:
        return {}
    return {name: getattr(before, name) for name in ("source", "author", "topics", "lang", "posted_at")}


def _revision(item: Item, known: Known) -> int:
    """Return the next revision of an id; a record that is delivered again gets the one that it had."""
    if known.emotion is None:
        return 1
    again = (item.post is None or item.post.record.timestamp_ms == known.post_ms) and (
        item.clip is None or item.clip.record.timestamp_ms == known.clip_ms
    )
    return known.emotion.revision if again else known.emotion.revision + 1


def _flags(item: Item, scored: Scored, known: Known | None) -> list[str]:
    flags = [*scored.flags]
    if known is not None and known.emotion is not None and len(item.records) < len(scored.modalities):
        flags += [flag for flag in known.emotion.flags if flag not in _FLAGS_OF_ONE_HALF]  # the partner's own
    if any(_instant(record.timestamp_s) is None for record in item.records):
        flags.append(FLAG_CLOCK)
    if scored.clip_fault is not None:
        flags.append(FLAG_CLIP_FAILED)
    elif VOICE not in scored.modalities and item.post is not None and item.post.content.clip:
        flags.append(FLAG_CLIP_MISSING)
    if known is None and (item.post is None or (item.clip is None and item.post.content.clip)):
        flags.append(FLAG_PARTNER_UNKNOWN)
    return list(dict.fromkeys(flags))


def to_dead_letter(record: Record, fault: MalformedRecord | Unscorable, *, now: Now = now_utc) -> DeadLetter:
    """Return the dead letter for a record that cannot be answered."""
    error = fault.error if isinstance(fault, Unscorable) else str(fault)
    return DeadLetter(
        key=record.key,
        value=record.value,
        original_headers=record.headers,
        why=DeadLetterHeaders(
            reason=fault.reason,
            error=error,
            origin=record.origin,
            failed_at=now(),
            whole_bytes=record.whole_bytes,
        ),
    )


def _instant(timestamp_s: float) -> dt.datetime | None:
    """Return a Kafka timestamp as a time, or None if it is none: Kafka writes -1 for unknown."""
    if not 0 <= timestamp_s < _LATEST_S:
        return None
    return dt.datetime.fromtimestamp(timestamp_s, dt.UTC)
