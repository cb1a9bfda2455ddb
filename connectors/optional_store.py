"""An answer store that may be away while answers go on: for operators to whom answers in Kafka matter more than Redis.

Wrapped around the store by the worker when EMOSTREAM_REDIS_OUTAGE is `skip`; the pipeline notices nothing.
"""

import logging
import time
from collections.abc import Callable, Sequence

from emostream.connectors.errors import SinkUnavailable
from emostream.connectors.sinks import Answer, AnswerStore, Known

_log = logging.getLogger(__name__)

_PAUSE_S = 5.0
"""How long a store that failed is left alone: a store that hangs costs one batch its timeout in so many seconds."""


class OptionalStore:
    """Passes answers on to a store while it is there, and skips them while it is not.

    Args:
        store: Where answers go and partners are looked up.
        skipped: Told how many answers the store never got.
        clock: Seconds that only go forward.
    """

    def __init__(
        self, store: AnswerStore, *, skipped: Callable[[int], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._skipped = skipped
        self._clock = clock
        self._away_until_s = float("-inf")
        self.name = store.name

    async def write(self, answers: Sequence[Answer]) -> None:
        """Write answers, or skip them.

        Raises:
            RecordRefused: The answers at `positions` can never be written.
        """
        if self._clock() < self._away_until_s:
            self._skipped(len(answers))
            return
        try:
            await self._store.write(answers)
        except SinkUnavailable as fault:
            self._leave_alone(fault)
            self._skipped(len(answers))

    async def look_up(self, post_ids: Sequence[str]) -> Sequence[Known | None]:
        """Return what is known of each id; None of all while the store is away."""
        if self._clock() >= self._away_until_s:
            try:
                return await self._store.look_up(post_ids)
            except SinkUnavailable as fault:
                self._leave_alone(fault)
        return [None] * len(post_ids)

    async def close(self) -> None:
        """Let go of the store's connections."""
        await self._store.close()

    def _leave_alone(self, fault: SinkUnavailable) -> None:
        self._away_until_s = self._clock() + _PAUSE_S
        _log.warning("%s is away, answers go to Kafka alone; next try in %.0f s: %s", self.name, _PAUSE_S, fault)
