"""Batches cover the input in order, within their bounds, and leave on time."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.connectors.messages import Post
from emostream.streams.batcher import Batcher
from emostream.streams.records import Item, Record, Taken


def make_item(offset: int, tokens: int, taken_s: float = 0.0, headers: tuple[tuple[str, bytes], ...] = ()) -> Item:
    record = Record(
        topic="posts", partition=0, offset=offset, timestamp_s=0.0, key=None, value=None, headers=headers,
        acknowledge=lambda: True,
    )  # fmt: skip
    post = Taken(record, Post(id=str(offset), text="x"), taken_s)
    return Item(post=post, taken_s=taken_s, cost=tokens)


def offsets(batch: list[Item]) -> list[int]:
    return [record.offset for item in batch for record in item.records]


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 10), st.integers(10, 100))
def test_batches_cover_the_input_in_order_within_bounds(costs: list[int], most_items: int, most_cost: int) -> None:
    async def scenario() -> list[list[Item]]:
        batcher = Batcher(most_items=most_items, most_cost=most_cost, max_wait_s=0, queue_items=1000)
        for offset, tokens in enumerate(costs):
            await batcher.put(make_item(offset, tokens))
        batches = []
        while len(batcher):
            batches.append(await batcher.take())
        return batches

    batches = asyncio.run(scenario())
    assert [offset for batch in batches for offset in offsets(batch)] == list(range(len(costs)))
    for batch in batches:
        assert len(batch) <= most_items
        assert len(batch) == 1 or sum(item.cost for item in batch) <= most_cost


async def test_a_full_batch_does_not_wait() -> None:
    batcher = Batcher(most_items=2, most_cost=1000, max_wait_s=3600, queue_items=10, clock=lambda: 0.0)
    for offset in range(3):
        await batcher.put(make_item(offset, 1))
    assert offsets(await asyncio.wait_for(batcher.take(), 5)) == [0, 1]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(batcher.take(), 0.05)


async def test_a_batch_leaves_when_its_oldest_item_has_waited() -> None:
    now = [10.0]
    batcher = Batcher(most_items=100, most_cost=1000, max_wait_s=0.02, queue_items=10, clock=lambda: now[0])
    await batcher.put(make_item(0, 1, taken_s=9.99))
    await batcher.put(make_item(1, 1, taken_s=10.0))
    waiting = asyncio.create_task(batcher.take())
    await asyncio.sleep(0)
    now[0] = 10.011
    assert offsets(await asyncio.wait_for(waiting, 5)) == [0, 1]


async def test_a_full_queue_makes_its_source_wait() -> None:
    batcher = Batcher(most_items=2, most_cost=1000, max_wait_s=0, queue_items=4)
    for offset in range(4):
        await batcher.put(make_item(offset, 1))
    fifth = asyncio.create_task(batcher.put(make_item(4, 1)))
    await asyncio.sleep(0.01)
    assert not fifth.done()
    await batcher.take()
    await asyncio.wait_for(fifth, 5)
    assert len(batcher) == 3


async def test_memory_bounds_queue_and_batches_whatever_the_model_pays() -> None:
    """Two empty headers are four bytes on the wire, and some hundred each in memory; a record takes 1 KiB itself."""
    batcher = Batcher(most_items=100, most_cost=1000, max_wait_s=3600, queue_items=100, queue_bytes=40_000)
    for offset in range(12):
        headers = (("", b""),) * 20 + (("a", b"x" * 299),)
        await asyncio.wait_for(batcher.put(make_item(offset, 0, headers=headers)), 5)
    thirteenth = asyncio.create_task(batcher.put(make_item(12, 0)))
    await asyncio.sleep(0.01)
    assert not thirteenth.done(), "3,424 bytes each, 40,000 and more in all"
    assert offsets(await asyncio.wait_for(batcher.take(), 5)) == [0, 1], "no more than 10,000 together"
    await asyncio.wait_for(thirteenth, 5)
    large = Batcher(most_items=100, most_cost=1000, max_wait_s=3600, queue_items=100, queue_bytes=40_000)
    for offset in range(2):
        await large.put(make_item(offset, 0, headers=(("a", b"x" * 20_000),)))
    assert offsets(await asyncio.wait_for(large.take(), 5)) == [0], "what is too large for a batch is one"


async def test_cancelled_take_loses_nothing() -> None:
    batcher = Batcher(most_items=10, most_cost=1000, max_wait_s=3600, queue_items=10)
    await batcher.put(make_item(0, 1, taken_s=float("inf")))
    waiting = asyncio.create_task(batcher.take())
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for offset in range(1, 10):
        await batcher.put(make_item(offset, 1))
    assert offsets(await asyncio.wait_for(batcher.take(), 5)) == list(range(10))
