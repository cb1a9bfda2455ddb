"""What failed, published once more: which letters may be, and doing it. Called by `emostream dlq replay`.

The record of a letter is published and confirmed first, its mark written then: a crash between the two replays it once
more, and none is marked that was not replayed.
"""

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from emostream.connectors.dead_letters import Letter, Mark, Place, spans_of
from emostream.connectors.errors import BrokerError
from emostream.connectors.messages import REPLAYED, UNREADABLE_REASON
from emostream.connectors.producer import Delivery
from emostream.connectors.reader import Span


class Refusal(enum.StrEnum):
    """Why a letter is not replayed."""

    NO_ORIGIN = "it does not say where it came from"
    OTHER_TOPIC = "it says that it came from a topic that is not ours"
    CUT = "it was too large to be kept whole"
    UNREADABLE = "it could not be read: it stands where it came from, and nowhere else"
    ATTEMPTS = "it was replayed as often as it may be"
    REPLAYED = "it was replayed before"


class Rules(msgspec.Struct, frozen=True):
    """What may be replayed.

    Attributes:
        targets: Topics that it may go to.
        most_attempts: How often a record may be replayed.
        again: Whether letters may be replayed that were replayed before.
    """

    targets: frozenset[str]
    most_attempts: int
    again: bool = False

    def refusal(self, letter: Letter) -> Refusal | None:
        """Return what is against replaying a letter, as far as it shows in itself."""
        if not letter.origin_topic:
            return Refusal.NO_ORIGIN
        if letter.origin_topic not in self.targets:
            return Refusal.OTHER_TOPIC
        if letter.whole_bytes is not None:
            return Refusal.CUT
        if letter.reason == UNREADABLE_REASON:
            return Refusal.UNREADABLE
        return Refusal.ATTEMPTS if letter.attempts >= self.most_attempts else None


class Chosen(msgspec.Struct, frozen=True):
    """A letter that is to be replayed: why it failed, where it goes, and which attempt that is."""

    reason: str
    topic: str
    attempt: int


class Plan(msgspec.Struct):
    """What a replay will do: some 300 bytes for each letter, whatever its size."""

    chosen: dict[Place, Chosen]
    refused: dict[Place, Refusal]

    @property
    def spans(self) -> list[Span]:
        """The stretches of `dead-letters` that hold what was chosen."""
        return spans_of(self.chosen, to_the_end=False)


class Publisher(Protocol):
    """What a replay needs of a producer."""

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        partition: int | None,
    ) -> Delivery:
        """Hand one record over."""

    def settle(self) -> None:
        """Wait until every record handed over is confirmed or has failed."""


_UNCONFIRMED = 200
"""Letters replayed between two confirmations: after a crash, so many may be replayed once more."""


def plan_replay(letters: Iterable[Letter | Mark], *, admits: Callable[[Letter], bool], rules: Rules) -> Plan:
    """Decide about each letter that is meant.

    Args:
        letters: What stands on `dead-letters`, up to its end: the marks stand behind their letters.
        admits: Says which are meant.
        rules: What may be replayed.
    """
    plan = Plan({}, {})
    for letter in letters:
        if isinstance(letter, Mark):
            if letter.place in plan.chosen and not rules.again:
                del plan.chosen[letter.place]
                plan.refused[letter.place] = Refusal.REPLAYED
        elif admits(letter):
            refusal = rules.refusal(letter)
            if refusal:
                plan.refused[letter.place] = refusal
            else:
                plan.chosen[letter.place] = Chosen(letter.reason, letter.origin_topic, letter.attempts + 1)
    return plan


def replay(
    letters: Iterable[Letter],
    producer: Publisher,
    *,
    dead_letters_topic: str,
    on_failed: Callable[[Place, BaseException | None], None],
) -> Iterator[int]:
    """Publish the records of letters to where they came from, and mark each letter once its record is confirmed.

    A record goes to the partition that it came from, so that it meets its other half there.

    Args:
        letters: What to replay.
        producer: What to publish with.
        dead_letters_topic: Where the marks go.
        on_failed: Told of each letter whose record Kafka does not take, and why; the others go on.

    Yields:
        How many are replayed and marked so far.

    Raises:
        BrokerError: Kafka is away, lets us not write there, or takes no marks. What is not marked then may have been
            replayed.
    """
    done = 0
    unconfirmed: dict[Place, Delivery] = {}

    def confirm() -> int:
        confirmed = _confirm(unconfirmed, producer, dead_letters_topic, on_failed)
        unconfirmed.clear()
        return confirmed

    for letter in letters:
        try:
            unconfirmed[letter.place] = producer.publish(
                letter.origin_topic,
                key=letter.key,
                value=letter.value,
                headers=letter.replay_headers,
                partition=letter.origin_partition,
            )
        except BrokerError:
            yield done + confirm()
            raise
        if len(unconfirmed) == _UNCONFIRMED:
            yield (done := done + confirm())
    yield done + confirm()


def _confirm(
    deliveries: Mapping[Place, Delivery],
    producer: Publisher,
    topic: str,
    on_failed: Callable[[Place, BaseException | None], None],
) -> int:
    """Wait for the records of letters, then mark the letters whose record arrived; return how many these are."""
    producer.settle()
    marks = []
    for place, delivery in deliveries.items():
        if delivery.failed():
            on_failed(place, delivery.exception)
            continue
        header = (REPLAYED, str(place).encode())
        marks.append(producer.publish(topic, key=None, value=b"", headers=[header], partition=place.partition))
    producer.settle()
    if faults := [mark.exception for mark in marks if mark.failed()]:
        raise BrokerError(f"{len(faults)} letters are replayed and cannot be marked as such: {faults[0]!r}")
    return len(marks)
