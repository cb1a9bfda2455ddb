"""Acknowledges records in the order of their offsets, partition by partition. Called by the app and the pipeline.

Faust commits past a record that is not acknowledged when a later one is (its consumer allows a gap of one at the
head, and any gap before the first commit), so a record that is done waits here until all before it are. Only its place
is kept, not what it says: behind a clip that takes its time, thousands of posts may be done. From a bound on, no more
are taken.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from emostream.streams.records import Record

Partition = tuple[str, int]

_MOST_TAKEN = 16_384
"""Records of a partition that are taken and not acknowledged, some 1 KB of Faust's and ours each."""


class _Place(msgspec.Struct):
    offset: int
    done: bool = False


class _Uncommitted(msgspec.Struct):
    newest_offset: int
    since_s: float


class OffsetOrder:
    """Which records of each partition are with the pipeline, done, and committed.

    Args:
        rebalanced: Told each time that partitions were shared out anew.
        most_taken: Records of a partition that may be taken and not acknowledged; `room` waits while there are more.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        *,
        rebalanced: Callable[[], None] = lambda: None,
        most_taken: int = _MOST_TAKEN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rebalanced = rebalanced
        self._most_taken = most_taken
        self._clock = clock
        self._taken: dict[Partition, OrderedDict[Callable[[], bool], _Place]] = {}
        """By what acknowledges it: two deliveries of one record are told apart by that."""
        self._fewer = asyncio.Event()
        self._uncommitted: dict[Partition, _Uncommitted] = {}
        self.partitions: set[Partition] = set()

    def take(self, record: Record) -> None:
        """Note that a record was taken; records of a partition come in the order of their offsets."""
        taken = self._taken.setdefault((record.topic, record.partition), OrderedDict())
        taken[record.acknowledge] = _Place(record.offset)

    async def room(self, record: Record) -> None:
        """Wait while more records of a partition are taken than may be; this one counts as taken all the while."""
        partition = (record.topic, record.partition)
        while len(self._taken.get(partition, ())) > self._most_taken:
            self._fewer.clear()
            await self._fewer.wait()

    def done(self, records: Sequence[Record]) -> None:
        """Note that records need nothing more, and acknowledge every record that only they held back."""
        for record in records:
            partition = (record.topic, record.partition)
            taken = self._taken.get(partition)
            if taken and (place := taken.get(record.acknowledge)):
                place.done = True
                self._acknowledge(partition)

    def committed(self, partition: Partition, next_offset: int) -> None:
        """Note that everything before an offset is committed."""
        waiting = self._uncommitted.get(partition)
        if waiting is None:
            return
        if next_offset > waiting.newest_offset:
            del self._uncommitted[partition]
        else:
            waiting.since_s = self._clock()

    def assigned(self, partitions: Sequence[Partition]) -> None:
        """Note which partitions this worker reads from now on."""
        self.partitions = set(partitions)
        self._rebalanced()

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Note that partitions are given up; whoever reads them next commits them.

        What was taken from them and is not done is delivered again, to this worker or to another: only that copy may
        be acknowledged.
        """
        self.partitions.difference_update(partitions)
        for partition in partitions:
            self._uncommitted.pop(partition, None)
            self._taken.pop(partition, None)
        self._fewer.set()

    @property
    def uncommitted_s(self) -> float:
        """How long the partition that waits longest has been waiting for a commit; 0 when none is."""
        oldest_s = min((waiting.since_s for waiting in self._uncommitted.values()), default=None)
        return 0.0 if oldest_s is None else self._clock() - oldest_s

    def _acknowledge(self, partition: Partition) -> None:
        taken = self._taken[partition]
        while taken and next(iter(taken.values())).done:
            acknowledge, place = taken.popitem(last=False)
            to_commit = acknowledge()
            self._fewer.set()
            if to_commit and partition in self.partitions:  # one that was given up meanwhile another worker commits
                self._await_commit(partition, place.offset)

    def _await_commit(self, partition: Partition, offset: int) -> None:
        waiting = self._uncommitted.setdefault(partition, _Uncommitted(newest_offset=offset, since_s=self._clock()))
        waiting.newest_offset = offset  # lower than before where a log has begun anew
