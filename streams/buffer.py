"""Faust's queue of the records of one topic, bounded in bytes. Used by `app`.

Faust's own queue lets several thousand records in before it stops fetching, whatever their size: of the largest clips,
gigabytes. And what it does when a queue is full, which is to wait, holds up the records of all other topics. This one
never makes anybody wait: from a certain size on, none of its topic's partitions is fetched until a quarter is gone.

A quarter, because Faust may wait for records of another topic, for a second at most, before it fetches again: what is
left by then must last so long.
"""

from typing import Any

import faust
from mode.utils.queues import ThrowableQueue

from emostream.connectors.messages import size_of

_MOST_RECORDS = 8192
_MOST_BYTES = 32 * 2**20
_RESUME_AT = 0.75


class RecordBuffer(ThrowableQueue):  # type: ignore[misc]  # mode is untyped
    """A queue of events; whoever puts never waits.

    What comes after fetching has stopped is what was under way: at most what Faust takes out of its client at once.

    Args:
        app: Its consumer stops and resumes fetching.
    """

    def __init__(self, app: faust.App) -> None:
        super().__init__(maxsize=0, flow_control=app.flow_control, clear_on_resume=True)
        self._app = app
        self._bytes = 0
        self._topic: str | None = None
        """The topic whose partitions are not fetched; None while they are."""

    def clear(self) -> None:
        """Forget what is here, as Faust wishes before and after a rebalance."""
        super().clear()
        self._bytes = 0
        self._fetch_again()

    def in_pressure_high_state(self, callback: object) -> bool:  # noqa: ARG002 - Faust's bound is not used
        """Say no: Faust would stop the one partition whose record comes now."""
        return False

    def _put(self, event: Any) -> None:
        super()._put(event)
        self._bytes += _size(event)
        if self._topic is None and self._holds(1.0):
            self._topic = event.message.topic
            for partition in self._partitions():
                self._app.consumer.on_buffer_full(partition)

    def _get(self) -> Any:
        event = super()._get()
        self._bytes -= _size(event)
        if not self._holds(_RESUME_AT):
            self._fetch_again()
        return event

    def _fetch_again(self) -> None:
        if self._topic is not None:
            for partition in self._partitions():
                self._app.consumer.on_buffer_drop(partition)
            self._topic = None

    def _holds(self, share: float) -> bool:
        """Say whether it is full to such a share."""
        return self._bytes >= share * _MOST_BYTES or self.qsize() >= share * _MOST_RECORDS

    def _partitions(self) -> list[Any]:
        return [partition for partition in self._app.consumer.assignment() if partition.topic == self._topic]


def _size(event: Any) -> int:
    message = event.message
    return size_of(message.key, message.value, message.headers)
