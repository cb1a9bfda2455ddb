"""Whatever order records are done in, they are acknowledged in the order of their offsets, each once."""

import asyncio
import functools

from hypothesis import given
from hypothesis import strategies as st

from emostream.streams.offsets import OffsetOrder
from emostream.streams.records import Record


def make_records(partitions: list[int], log: list[tuple[int, int]]) -> list[Record]:
    def acknowledged(partition: int, offset: int) -> bool:
        log.append((partition, offset))
        return True

    records = []
    for offset, partition in enumerate(partitions):
        records.append(
            Record(
                topic="posts",
                partition=partition,
                offset=offset,
                timestamp_s=0.0,
                key=None,
                value=None,
                headers=(),
                acknowledge=functools.partial(acknowledged, partition, offset),
            )
        )
    return records


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.data())
def test_acknowledged_is_always_a_done_prefix(partitions: list[int], data: st.DataObject) -> None:
    log: list[tuple[int, int]] = []
    records = make_records(partitions, log)
    order = OffsetOrder()
    for record in records:
        order.take(record)
    done: set[int] = set()
    for record in data.draw(st.permutations(records)):
        order.done([record])
        done.add(record.offset)
        for partition in set(partitions):
            taken = [r.offset for r in records if r.partition == partition]
            acknowledged = [offset for p, offset in log if p == partition]
            prefix = next((i for i, offset in enumerate(taken) if offset not in done), len(taken))
            assert acknowledged == taken[:prefix]


def test_uncommitted_time_counts_from_the_first_record_that_waits() -> None:
    now = [100.0]
    order = OffsetOrder(clock=lambda: now[0])
    order.assigned([("posts", 0)])
    records = make_records([0, 0, 0], [])
    for record in records:
        order.take(record)
    assert order.uncommitted_s == 0
    order.done(records[:2])
    now[0] = 107.0
    assert order.uncommitted_s == 7
    order.committed(("posts", 0), 1)  # progress, but not all of it
    now[0] = 109.0
    assert order.uncommitted_s == 2
    order.committed(("posts", 0), 2)
    assert order.uncommitted_s == 0


def test_revoked_partitions_are_no_longer_waited_for() -> None:
    now = [0.0]
    order = OffsetOrder(clock=lambda: now[0])
    (record,) = make_records([0], [])
    order.assigned([("posts", 0), ("posts", 1)])
    order.take(record)
    order.done([record])
    now[0] = 50.0
    order.revoked([("posts", 0)])
    assert order.uncommitted_s == 0
    assert order.partitions == {("posts", 1)}


def test_a_record_that_is_done_after_its_partition_went_is_not_waited_for() -> None:
    now = [0.0]
    order = OffsetOrder(clock=lambda: now[0])
    (record,) = make_records([0], [])
    order.assigned([("posts", 0)])
    order.take(record)
    order.revoked([("posts", 0)])
    order.done([record])
    now[0] = 50.0
    assert order.uncommitted_s == 0


def test_of_a_record_delivered_again_after_a_rebalance_only_the_new_copy_is_acknowledged() -> None:
    """The old copy's acknowledgement would let Faust commit past what stood before it and was never answered."""
    log: list[tuple[int, int]] = []
    old, new = make_records([0, 0], log), make_records([0, 0], log)
    order = OffsetOrder()
    for record in old:
        order.take(record)
    order.revoked([("posts", 0)])
    for record in new:
        order.take(record)
    order.done([old[1]])
    assert log == []
    order.done(new)
    assert log == [(0, 0), (0, 1)]
    order.done([old[0]])
    assert log == [(0, 0), (0, 1)]


async def test_behind_a_record_that_takes_its_time_only_so_many_are_taken() -> None:
    order = OffsetOrder(most_taken=3)
    records = make_records([0, 0, 0, 0, 0, 1], [])
    for record in records[:3]:
        order.take(record)
        await asyncio.wait_for(order.room(record), 1)
    order.take(records[3])
    waiting = asyncio.create_task(order.room(records[3]))
    order.take(records[5])
    await asyncio.wait_for(order.room(records[5]), 1)  # another partition
    order.done(records[1:3])
    await asyncio.sleep(0)
    assert not waiting.done(), "the first holds up the others"
    order.done(records[:1])
    await asyncio.wait_for(waiting, 1)


async def test_nobody_waits_for_room_in_a_partition_that_is_gone() -> None:
    order = OffsetOrder(most_taken=0)
    (record,) = make_records([0], [])
    order.take(record)
    waiting = asyncio.create_task(order.room(record))
    await asyncio.sleep(0)
    assert not waiting.done()
    order.revoked([("posts", 0)])
    await asyncio.wait_for(waiting, 1)
