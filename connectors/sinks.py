"""Where answers go: small protocols, implemented by `kafka_sink` and `redis_sink`. Written to by the pipeline.

A sink promises: when `write` returns, every answer is there to stay; writing the same answers again changes
nothing that a reader would count twice.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from emostream.connectors.messages import DeadLetter, Emotion


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer on its way out, and what is kept of its halves for a partner that comes later.

    Attributes:
        emotion: The answer itself.
        post_ms: Kafka's timestamp of the post that it answers, in milliseconds; None where it answers none.
        clip_ms: Likewise of the clip.
        text_vector: The pooled text, as the model gave it.
        voice_vector: The pooled recording, likewise.
    """

    emotion: Emotion
    post_ms: int | None = None
    clip_ms: int | None = None
    text_vector: bytes | None = None
    voice_vector: bytes | None = None

    @property
    def newest_ms(self) -> int:
        """Timestamp of its newer half: which of two answers as rich is the newer one."""
        return max(ms for ms in (self.post_ms, self.clip_ms, 0) if ms is not None)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an id.

    Attributes:
        emotion: The best answer so far.
        post_ms: Timestamp of the newest post that was answered.
        clip_ms: Timestamp of the newest clip that was.
        text_vector: The pooled text of that post, while it is kept and of the same model.
        voice_vector: The pooled recording of that clip, likewise.
    """

    emotion: Emotion | None = None
    post_ms: int | None = None
    clip_ms: int | None = None
    text_vector: bytes | None = None
    voice_vector: bytes | None = None


@runtime_checkable
class AnswerSink(Protocol):
    """Takes answers.

    Attributes:
        name: Metric label: `kafka`, `redis`.
    """

    name: str

    async def write(self, answers: Sequence[Answer]) -> None:
        """Write answers and return once they are safe.

        Raises:
            SinkUnavailable: Some may be missing; write all of them again.
            RecordRefused: The answers at `positions` can never be written; some others may be missing.
        """

    async def close(self) -> None:
        """Let go of connections."""


class AnswerStore(AnswerSink, Protocol):
    """An answer sink that remembers: where halves find what was said of their partners."""

    async def look_up(self, post_ids: Sequence[str]) -> Sequence[Known | None]:
        """Return what is known of each id, in order; None where nobody is to be asked just now.

        Raises:
            SinkUnavailable: It cannot be asked just now.
        """


class DeadLetterSink(Protocol):
    """Takes what cannot be answered.

    Attributes:
        name: Metric label.
    """

    name: str

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Write dead letters and return once they are safe.

        Raises:
            SinkUnavailable: Some may be missing; write all of them again.
        """

    async def close(self) -> None:
        """Let go of connections."""


_HALF_FIELDS = ("post_ms", "clip_ms", "text_vector", "voice_vector")


class ListSink:
    """An answer store that is a list, for tests and for trying the pipeline out; it keeps what was written last."""

    name = "list"

    def __init__(self) -> None:
        self.answers: dict[str, Emotion] = {}
        self._known: dict[str, Known] = {}

    async def write(self, answers: Sequence[Answer]) -> None:
        """Keep the newest answer of each post."""
        for answer in answers:
            id_ = answer.emotion.post_id
            self.answers[id_] = answer.emotion
            halves = {name: half for name in _HALF_FIELDS if (half := getattr(answer, name)) is not None}
            self._known[id_] = msgspec.structs.replace(self._known.get(id_, Known()), emotion=answer.emotion, **halves)

    async def look_up(self, post_ids: Sequence[str]) -> list[Known]:
        """Return what is known of each id."""
        return [self._known.get(id_, Known()) for id_ in post_ids]

    async def close(self) -> None:
        """Nothing to let go of."""


class ListDeadLetters:
    """A dead-letter sink that is a list."""

    name = "dead_letters"

    def __init__(self) -> None:
        self.letters: dict[str, DeadLetter] = {}

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Keep one letter for each place a record came from."""
        self.letters.update({letter.why.origin: letter for letter in letters})

    async def close(self) -> None:
        """Nothing to let go of."""
