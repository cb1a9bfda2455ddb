"""Queries as they come over a wire -> what the scorer takes, and its outcomes back in their places.

Called by the GPU worker's process. A clip that cannot be heard is no fault of its text: the text is answered, and the
answer says what was wrong with the clip.
"""

from collections.abc import Generator, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from emostream.model.audio import Recording, decode_in_steps, require_whole
from emostream.model.errors import AudioError
from emostream.model.samples import BatchOutcome, Outcome, Query, Scored, Unscorable
from emostream.model.scorer import EmotionScorer, Item, PreparedBatch


class PreparedQueries(msgspec.Struct, frozen=True, eq=False):
    """Queries as the network reads them.

    Attributes:
        batch: Those of which something is left to score.
        faults: What was wrong with the clip of each query; None where nothing was.
        scored: Which queries are in the batch.
    """

    batch: PreparedBatch
    faults: tuple[Unscorable | None, ...]
    scored: tuple[bool, ...]


def prepare_in_steps(scorer: EmotionScorer, queries: Sequence[Query]) -> Generator[None, None, PreparedQueries]:
    """Decode clips, tokenise texts, pausing after some seconds of sound; may run in threads of its own."""
    read: list[tuple[Item | None, Unscorable | None]] = []
    for query in queries:
        read += [(yield from _read(query, scorer))]
    return PreparedQueries(
        batch=scorer.prepare([item for item, _ in read if item is not None]),
        faults=tuple(fault for _, fault in read),
        scored=tuple(item is not None for item, _ in read),
    )


def answer_in_steps(scorer: EmotionScorer, prepared: PreparedQueries) -> Generator[None, None, BatchOutcome]:
    """Run the network, pausing as `EmotionScorer.steps` does.

    Returns:
        One outcome per query, in order.
    """
    computed = yield from scorer.steps(prepared.batch)
    outcomes = iter(computed.outcomes)
    answers = [
        _with_fault(next(outcomes) if scored else None, fault)
        for scored, fault in zip(prepared.scored, prepared.faults, strict=True)
    ]
    return msgspec.structs.replace(computed, outcomes=tuple(answers))


def _read(query: Query, scorer: EmotionScorer) -> Generator[None, None, tuple[Item | None, Unscorable | None]]:
    """Return, in steps, what is to be scored of a query, and what is wrong with its clip."""
    recording: Recording | None = None
    fault: Unscorable | None = None
    if query.clip is not None:
        try:
            recording = require_whole((yield from decode_in_steps(query.clip)))
        except AudioError as error:
            fault = Unscorable(error.reason, str(error))
    if query.text is None and recording is None and (fault is not None or query.voice_vector is None):
        return None, fault
    text_D = _vector(query.text_vector, scorer.text_width)
    voice_V = _vector(query.voice_vector, scorer.voice_width)
    return Item(text=query.text, recording=recording, text_D=text_D, voice_V=voice_V), fault


def _vector(stored: bytes | None, width: int) -> Tensor | None:
    """Return a stored vector; None if it cannot have been stored by this model."""
    if stored is None or len(stored) != width * np.dtype("<f2").itemsize:
        return None
    vector = np.frombuffer(stored, dtype="<f2").astype(np.float32)
    return torch.from_numpy(vector) if np.isfinite(vector).all() else None


def _with_fault(outcome: Outcome | None, fault: Unscorable | None) -> Outcome:
    if outcome is None:
        assert fault is not None  # noqa: S101  # only what is at fault is not scored
        return fault
    return msgspec.structs.replace(outcome, clip_fault=fault) if isinstance(outcome, Scored) else outcome
