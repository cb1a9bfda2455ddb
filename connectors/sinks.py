"""Where answers go: one small protocol, implemented by `kafka_sink` and `redis_sink`. Written to by the pipeline.

A sink promises: when `write` returns, every answer is there to stay; writing the same answers again changes
nothing that a reader would count twice.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from emostream.connectors.messages import DeadLetter, Emotion


@runtime_checkable
class AnswerSink(Protocol):
    """Takes answers.

    Attributes:
        name: Metric label: `kafka`, `redis`.
    """

    name: str

    async def write(self, answers: Sequence[Emotion]) -> None:
        """Write answers and return once they are safe.

        Raises:
            SinkUnavailable: Some may be missing; write all of them again.
            RecordRefused: The answer at `position` can never be written; some others may be missing.
        """

    async def close(self) -> None:
        """Let go of connections."""


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


class ListSink:
    """An answer sink that is a list, for tests and for trying the pipeline out."""

    name = "list"

    def __init__(self) -> None:
        self.answers: dict[str, Emotion] = {}

    async def write(self, answers: Sequence[Emotion]) -> None:
        """Keep the newest answer of each post."""
        self.answers.update({answer.post_id: answer for answer in answers})

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
