"""Whose turn it is on the device: a lane's, texts or clips. Used by `gpu_process`.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): the lane goes on that has had less of the device's time, each
second counted by its lane's price. A lane that had nothing to do is owed nothing for it. Turn by turn without a look at
the time would do while the steps of both are alike; but full batches of texts take ten times as long as a step of a
clip, and clips fell behind for good (docs/decisions/0011-two-lanes.md).
"""

import time
from collections.abc import Callable, Collection

from emostream.streams.frames import LANES, Lane

_PRICE: dict[Lane, float] = {"texts": 1.0, "clips": 3.0}
"""Of a second, for a lane that comes and goes: a burst of clips gets a quarter of the time while texts want it all."""

_BEHIND_S = 30.0
"""A lane that has had work for so long without a break is behind, and pays no more than others do until it has caught
up: half of the time is its own."""

_BREAK_S = 1.0
"""A lane without work for less than this just waits for its next batch."""


class Turns:
    """The time that each lane has had.

    Args:
        clock: Seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._paid = dict.fromkeys(LANES, 0.0)
        self._least_paid = 0.0
        """What the lane had paid whose step was last: no lane that had nothing to do is further back than this."""
        self._busy_since_s = dict.fromkeys(LANES, 0.0)
        self._idle_since_s = dict.fromkeys(LANES, float("-inf"))

    def begin(self, lane: Lane) -> None:
        """Note that a lane has a batch now, and had none."""
        self._paid[lane] = max(self._paid[lane], self._least_paid)
        if self._clock() - self._idle_since_s[lane] > _BREAK_S:
            self._busy_since_s[lane] = self._clock()

    def end(self, lane: Lane) -> None:
        """Note that a lane's batch is through."""
        self._idle_since_s[lane] = self._clock()

    def next_of(self, lanes: Collection[Lane]) -> Lane:
        """Return the lane, of those that have a batch, which takes a step now."""
        lane = min(lanes, key=self._paid.__getitem__)
        self._least_paid = self._paid[lane]
        return lane

    def pay(self, lane: Lane, seconds: float) -> None:
        """Note how long a step of a lane took."""
        behind = self._clock() - self._busy_since_s[lane] > _BEHIND_S
        self._paid[lane] += seconds * (1.0 if behind else _PRICE[lane])
