"""Faust's consumer, mended where it loses records or stands still. Used by `app`.

Read in faust-streaming 0.15.3 and aiokafka 0.14.0; what was seen is in tests/streams/test_app.py and
docs/decisions/0015. Each class changes as little of Faust's as it can.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiokafka.errors import IllegalStateError
from faust.assignor import PartitionAssignor
from faust.tables.manager import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery
from faust.transport.drivers import aiokafka as driver
from mode import Service

from emostream.streams.errors import StreamError

_WATCH_S = 1.0


def _logs_as_before(service: Any) -> Any:
    """Have a service log under the name that Faust's own logs under."""
    service.logger = service.__base__.logger
    return service


@_logs_as_before
class _Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # faust is untyped
    async def _commit(self, offsets: Mapping[Any, int]) -> bool:
        """Commit, or give up after a while: for a topic that was deleted aiokafka would try for ever."""
        if not self.assignment().intersection(offsets):  # aiokafka would take it for a mistake, and Faust for an end
            return False
        try:
            async with asyncio.timeout(self.app.conf.broker_request_timeout):
                return bool(await super()._commit(offsets))
        except TimeoutError:
            return False

    def fault(self) -> str:
        """Return which task of aiokafka's has ended or given up; they do so in silence, and nothing is read then."""
        consumer = self._consumer
        if consumer is None or consumer._closed:
            return ""
        coordinator, fetcher = consumer._coordinator, consumer._fetcher
        if coordinator._pending_exception is not None:
            return f"the group: {coordinator._pending_exception!r}"
        ended = {"the group": coordinator._coordination_task.done(), "fetching": fetcher._fetch_task.done()}
        return ", ".join(name for name, done in ended.items() if done)


@_logs_as_before
class _Consumer(driver.Consumer):  # type: ignore[misc]  # faust is untyped
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._begun: Counter[Any] = Counter()
        """How often the log of a partition has begun anew; a message bears the number that it was read at."""
        self._given_up = 0
        """How often partitions were given up; what was not committed by then is read again, by whoever gets them."""

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    # A rebalance: what is acknowledged is committed, records stop flowing, positions are sought, records flow.

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Commit, and only then forget what was acknowledged, which Faust does at once.

        What cannot be committed by then stays so: others may answer and commit more, which would be wound back. A
        worker that is to stop seeks no more, and so keeps it.
        """
        await self._commit_all()
        await super().on_partitions_revoked(revoked)
        await self._commit_all()
        self._given_up += 1
        if not self.app.should_stop:
            self._acked.clear()
            self._acked_index.clear()

    async def _commit_all(self) -> None:
        if not await self.commit():  # one may have been under way
            await self.commit()

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """Let no record flow until positions are sought; whoever had no partitions before is not stopped by Faust."""
        self.stop_flow()
        self.app.flow_control.suspend()
        await super().on_partitions_assigned(assigned, generation_id)

    async def seek_to_committed(self) -> Mapping[Any, int | None]:
        """Go back to what is committed, and to the beginning where nothing is.

        A fetch that waited through a rebalance may bring records of the new assignment before the flow is resumed.
        Faust drops them and seeks; aiokafka leaves a partition without a commit where it is, which is behind them.
        """
        committed: Mapping[Any, int | None] = await super().seek_to_committed()
        uncommitted = [partition for partition, offset in committed.items() if not offset]
        if uncommitted:  # none would mean all
            await self._thread.seek_to_beginning(*uncommitted)
        return committed

    async def perform_seek(self) -> None:
        """Seek, or end the worker: after a seek that failed, Faust reads on behind the records that it dropped."""
        try:
            await super().perform_seek()
        except IllegalStateError:  # the partitions are no longer ours: the next assignment seeks
            raise
        except Exception as error:
            if not self.assignment():  # so it is now; aiokafka says it by an AssertionError, which Faust ends of
                raise IllegalStateError("there is nothing to seek: no partition is assigned") from error
            await self.crash(error)
            raise

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:  # noqa: ASYNC109
        """Yield what comes; a partition whose log ends before what was read begins anew, and Faust would skip that.

        So it is after an unclean election, or where a topic was deleted and created again.
        """
        async for partition, message in super().getmany(timeout):
            read = self._read_offset[partition]
            if read is not None and message.offset < read:
                self._begun[partition] += 1
                self._read_offset[partition] = self._committed_offset[partition] = None
                self._acked[partition] = [message.offset - 1]  # or Kafka keeps an offset that the new log may grow past
                self._acked_index.pop(partition, None)
            message.log = self._begun[partition]
            yield partition, message
            if self._read_offset[partition] == message.offset:  # Faust notes the last one, and the next after a seek
                self._read_offset[partition] = message.offset + 1

    def ack(self, message: Any) -> bool:
        """Acknowledge; of a log that has ended, nothing is committed any more."""
        if message.log == self._begun[message.tp]:
            return bool(super().ack(message))
        message.acked = True
        self._unacked_messages.discard(message)
        return False

    # Commits: `OffsetOrder` acknowledges in order, so all before the newest acknowledged offset is done or not there.

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """Do nothing: Faust would note each offset that is not there, which after an outage can be many millions."""

    def _new_offset(self, tp: Any) -> int | None:
        acked = self._acked[tp]
        if not acked:
            return None
        newest: int = max(acked)
        acked.clear()
        self._acked_index[tp].clear()
        return newest + 1

    async def _commit_offsets(self, offsets: Mapping[Any, int], start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Commit; what Kafka does not take is committed next time, and not counted as committed, as Faust does."""
        given_up, ours, begun = self._given_up, self._ours(offsets), self._begun.copy()
        if not ours:
            return False
        taken: bool = await self._commit(ours)
        of_this_log = {each: offset for each, offset in ours.items() if self._begun[each] == begun[each]}
        if taken:
            self._committed_offset.update(of_this_log)
            for partition, offset in of_this_log.items():
                self.app.offsets.committed((partition.topic, partition.partition), offset)
        elif given_up == self._given_up:
            for partition, offset in self._ours(of_this_log).items():
                self._acked[partition].append(offset - 1)
        return taken

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Do nothing.

        Faust would call a partition slow that is not fetched because its queue is full, thirteen lines several times a
        second, and would crash on one whose position is being sought. What waits, and for how long, is in the metrics.
        """

    def _ours(self, offsets: Mapping[Any, int]) -> dict[Any, int]:
        assigned = self.assignment()
        return {partition: offset for partition, offset in offsets.items() if partition in assigned}

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch(self) -> None:
        """End the worker when aiokafka has given up."""
        while not self.should_stop:
            await self.sleep(_WATCH_S)
            if not self.app.should_stop and (fault := self._thread.fault()):
                await self.crash(StreamError(f"Kafka's client has given up: {fault}"))


class Transport(driver.Transport):  # type: ignore[misc]  # faust is untyped
    """aiokafka's transport with our consumer."""

    Consumer = _Consumer


@_logs_as_before
class _Recovery(Recovery):  # type: ignore[misc]  # faust is untyped
    _rebalance = 0

    async def on_rebalance(self, *arguments: Any, **named: Any) -> None:
        """Remember which rebalance it is that positions are sought after."""
        self._rebalance = self.app.rebalancing_count
        await super().on_rebalance(*arguments, **named)

    async def _wait(self, coro: Any, timeout: Any = None) -> None:  # noqa: ARG002, ASYNC109
        """Wait for as long as it takes, or until the next rebalance.

        Faust takes a timeout for a stop: a broker that is away while positions are sought would leave the worker in its
        group, where it would never fetch again. And it lets records flow when another rebalance has begun meanwhile.
        """
        await super()._wait(coro)
        if self._rebalance != self.app.rebalancing_count:
            raise RebalanceAgain


@_logs_as_before
class Tables(TableManager):  # type: ignore[misc]  # faust is untyped
    """There are none, but after a rebalance it is their manager who lets records flow again."""

    @property
    def recovery(self) -> Recovery:
        """The service that does so."""
        if self._recovery is None:  # type: ignore[has-type]
            self._recovery = _Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class Assignor(PartitionAssignor):  # type: ignore[misc]  # faust is untyped
    """Gives every worker a partition while there are enough.

    Faust counts with a standby of each table, whether there are tables or not, and gives the workers that came first as
    many partitions as they may have at most: of eight, a fifth worker would get none.
    """

    def __init__(self, app: Any, replicas: int = 0) -> None:  # noqa: ARG002
        super().__init__(app, replicas=0)
