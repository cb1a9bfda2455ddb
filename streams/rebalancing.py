"""Faust's part in a rebalance, mended where it loses records or stands still. Used by `app`.

Read in faust-streaming 0.15.3 and aiokafka 0.14.0, and seen in tests/streams/test_app.py (docs/decisions/0006).
"""

from collections.abc import Mapping
from typing import Any

from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers import aiokafka as driver


def _logs_as_before(service: Any) -> Any:
    """Have a service log under the name that Faust's own logs under."""
    service.logger = service.__base__.logger
    return service


@_logs_as_before
class _Consumer(driver.Consumer):  # type: ignore[misc]  # faust is untyped
    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Commit, and only then forget what was acknowledged, which Faust does at once."""
        await self.commit()
        await super().on_partitions_revoked(revoked)

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


class Transport(driver.Transport):  # type: ignore[misc]  # faust is untyped
    """aiokafka's transport with our consumer."""

    Consumer = _Consumer


@_logs_as_before
class _Recovery(Recovery):  # type: ignore[misc]  # faust is untyped
    async def _wait(self, coro: Any, timeout: Any = None) -> None:  # noqa: ARG002, ASYNC109
        """Wait for as long as it takes, or until the next rebalance.

        Faust takes a timeout for a stop: a broker that is away while positions are sought would leave the worker in its
        group, where it would never fetch again.
        """
        await super()._wait(coro)


@_logs_as_before
class Tables(TableManager):  # type: ignore[misc]  # faust is untyped
    """There are none, but after a rebalance it is their manager who lets records flow again."""

    @property
    def recovery(self) -> Recovery:
        """The service that does so."""
        if self._recovery is None:  # type: ignore[has-type]
            self._recovery = _Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery
