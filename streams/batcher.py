"""A bounded queue whose items leave in batches. Filled by the join, emptied by the pipeline's runner.

There are two of it, one for texts and one for clips. A batch leaves when it is full, by cost, count and memory, or when
its oldest item has waited long enough. The cost is the sum of tokens, or of seconds of audio, not longest times count:
the scorer sorts a batch by length and pads in small groups, so a single long post does not make its neighbours
expensive (docs/decisions/0003-batch-cost.md).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from emostream.streams.records import Batch, Item

_BATCH_PART = 4
"""So many of the largest batches fill the queue."""


class Batcher:
    """Collects items into batches.

    Args:
        most_items: Items of a full batch.
        most_cost: Cost of a full batch; an item that costs more makes a batch of its own.
        max_wait_s: How long the oldest item of a batch waits for others.
        queue_items: Items that may wait; `put` waits while there are so many.
        queue_bytes: Memory that the records of waiting items may take: headers and malformed values cost the model
            nothing. A batch takes a quarter of it, or what a single item takes.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        *,
        most_items: int,
        most_cost: float,
        max_wait_s: float,
        queue_items: int,
        queue_bytes: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_items = most_items
        self._most_cost = most_cost
        self._max_wait_s = max_wait_s
        self._queue_items = queue_items
        self._queue_bytes = queue_bytes
        self._most_bytes = queue_bytes / _BATCH_PART
        self._clock = clock
        self._full: deque[list[Item]] = deque()
        self._open: list[Item] = []
        self._open_cost, self._open_bytes = 0.0, 0
        self._waiting, self._waiting_bytes = 0, 0
        self._arrival = asyncio.Event()
        self._space = asyncio.Event()

    def __len__(self) -> int:
        """Items that wait."""
        return self._waiting

    async def put(self, item: Item) -> None:
        """Add an item, waiting while the queue is full."""
        while self._waiting >= self._queue_items or (self._waiting and self._waiting_bytes >= self._queue_bytes):
            self._space.clear()
            await self._space.wait()
        size = item.size
        if self._open and not self._fits(item.cost, size):
            self._close_open_batch()
        self._open.append(item)
        self._open_cost += item.cost
        self._open_bytes += size
        self._waiting += 1
        self._waiting_bytes += size
        self._arrival.set()

    async def take(self) -> Batch:
        """Return the next batch, in order, as soon as it is full or has waited long enough."""
        while not self._full:
            left_s = self._left_s()
            if left_s is not None and left_s <= 0:
                self._close_open_batch()
                break
            self._arrival.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._arrival.wait()
            except TimeoutError:
                continue
        batch = self._full.popleft()
        self._waiting -= len(batch)
        self._waiting_bytes -= sum(item.size for item in batch)
        self._space.set()
        return batch

    def _fits(self, cost: float, size: int) -> bool:
        return (
            len(self._open) < self._most_items
            and self._open_cost + cost <= self._most_cost
            and self._open_bytes + size <= self._most_bytes
        )

    def _left_s(self) -> float | None:
        """Seconds until the open batch must leave; None while it is empty."""
        if not self._open:
            return None
        if (
            len(self._open) >= self._most_items
            or self._open_cost >= self._most_cost
            or self._open_bytes >= self._most_bytes
        ):
            return 0.0
        return self._open[0].taken_s + self._max_wait_s - self._clock()

    def _close_open_batch(self) -> None:
        self._full.append(self._open)
        self._open, self._open_cost, self._open_bytes = [], 0.0, 0
