"""Posts and clips meet here, by post id. Filled by the Faust agents, emptied into the batchers.

There is no state store: a half that waits is a record that is not acknowledged yet, and Kafka delivers it again after a
crash. A post that announces no clip goes on at once. A clip, or a post that announces one, waits for its other half, but
not for ever: after the grace it goes on alone, and the pipeline looks in Redis for a partner that was answered before.

While an id is being answered, further records of it wait for their turn: two answers of one id are never under way at
once, and the later one finds in Redis what the earlier one left there.

Memory is bounded for posts and clips each. A post that finds no room sends the oldest waiting one on, alone: a flood of
posts whose clips never come delays nobody. A clip that finds no room waits, and its topic is not read on; posts are.
"""

import asyncio
import contextlib
import itertools
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from emostream.connectors.messages import Clip, Post
from emostream.streams.metrics import Metrics
from emostream.streams.records import (
    Item,
    Record,
    Taken,
    clip_item,
    decode_clips_record,
    decode_posts_record,
    post_item,
)

_RECORD_BYTES = 1024
"""What a waiting record costs on top of its own bytes."""

Half = TypeVar("Half", Post, Clip)
Put = Callable[[Item], Awaitable[None]]


class Join:
    """Matches posts with clips.

    Args:
        texts: Takes items without a clip; its waiting is what stops the reading of `posts`.
        voices: Takes items with a clip; its waiting is what stops the reading of `clips`, in the end.
        grace_s: How long a half waits for the other.
        most_bytes: Of posts that wait, and of clips that wait or are on their way to a batch: so many of each.
        metrics: What is observed.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        *,
        texts: Put,
        voices: Put,
        grace_s: float,
        most_bytes: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grace_s = grace_s
        self._most_bytes = most_bytes
        self._metrics = metrics
        self._clock = clock
        self._posts: _Waiting[Post] = _Waiting()
        self._clips: _Waiting[Clip] = _Waiting()
        self._texts, self._voices = _Outbox(texts), _Outbox(voices)
        self._put_text = texts
        self._under_way: Counter[str] = Counter()
        self._change = asyncio.Event()

    async def take_post(self, record: Record) -> None:
        """Take a record of `posts`; waits while its batcher has no room."""
        post = decode_posts_record(record, clock=self._clock)
        if isinstance(post, Item):
            await self._put_text(post)
        elif clip := self._clips.pop(post.content.id):
            self._observe_wait(clip, "joined")
            self._release(self._voices, clip_item(clip.half, post, taken_s=post.taken_s))
        elif post.content.clip or post.content.id in self._under_way:
            while self._posts.bytes + self._texts.bytes > self._most_bytes:
                if oldest := self._posts.oldest():
                    self._release_post(oldest, "no_room")
                await self._texts.wait_forwarded()
            self._posts.add(_Wait(half=post, id=post.content.id, bytes=_bytes(record)))
            self._change.set()
        else:
            self._under_way[post.content.id] += 1
            await self._put_text(post_item(post))

    async def take_clip(self, record: Record) -> None:
        """Take a record of `clips`; waits while too many are held."""
        while self._clips.bytes + self._voices.bytes > self._most_bytes:
            await self._voices.wait_forwarded()
        clip = decode_clips_record(record, clock=self._clock)
        if isinstance(clip, Item):
            await self._put_text(clip)  # nothing in it is to be scored: it need not queue behind what is
        elif post := self._posts.pop(clip.content.post_id):
            self._observe_wait(post, "joined")
            self._release(self._voices, clip_item(clip, post.half, taken_s=clip.taken_s))
        else:
            self._clips.add(_Wait(half=clip, id=clip.content.post_id, bytes=_bytes(record)))
            self._change.set()

    def carried(self, item: Item) -> None:
        """Note that an item is answered: what waited for its turn, or for this very partner, goes on."""
        id_ = item.post_id
        if id_ is None:
            return
        self._under_way[id_] -= 1
        if self._under_way[id_] > 0:
            return
        del self._under_way[id_]
        post, clip = self._posts.find(id_), self._clips.find(id_)
        if clip is not None and item.post is not None:
            self._release_clip(clip, "answered_before")
        elif post is not None and (item.clip is not None or not post.half.content.clip):
            self._release_post(post, "answered_before")

    def close(self) -> None:
        """Send on what waits, and let nothing wait from now on: no partner is going to be read any more."""
        self._grace_s = 0.0
        self._change.set()

    async def run(self) -> None:
        """Send on whatever has waited long enough, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._texts.forward())
            tasks.create_task(self._voices.forward())
            tasks.create_task(self._end_waits())

    @property
    def waiting(self) -> dict[str, int]:
        """How many posts and clips wait for their other half."""
        return {"post": len(self._posts), "clip": len(self._clips)}

    def _release_post(self, wait: "_Wait[Post]", outcome: str) -> None:
        self._observe_wait(self._posts.remove(wait), outcome)
        self._release(self._texts, post_item(wait.half, taken_s=self._clock()))

    def _release_clip(self, wait: "_Wait[Clip]", outcome: str) -> None:
        self._observe_wait(self._clips.remove(wait), outcome)
        self._release(self._voices, clip_item(wait.half, taken_s=self._clock()))

    def _release(self, outbox: "_Outbox", item: Item) -> None:
        assert item.post_id is not None  # noqa: S101  # what is no post and no clip never waits
        self._under_way[item.post_id] += 1
        outbox.add(item)

    def _observe_wait(self, wait: "_Wait[Post] | _Wait[Clip]", outcome: str) -> None:
        self._metrics.join_wait.labels(outcome).observe(max(0.0, self._clock() - wait.half.taken_s))

    async def _end_waits(self) -> None:
        while True:
            self._change.clear()
            due_s = self._clock() - self._grace_s
            for post in self._posts.taken_until(due_s):
                self._release_post(post, "alone")
            for clip in self._clips.taken_until(due_s):
                self._release_clip(clip, "alone")
            oldest = [wait.half.taken_s for wait in (self._posts.oldest(), self._clips.oldest()) if wait]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(oldest) - due_s if oldest else None):
                    await self._change.wait()


class _Outbox:
    """Items on their way to a batcher; whoever adds to it never waits, whoever must not add too much asks before."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._forwarded = asyncio.Event()
        self.bytes = 0

    def add(self, item: Item) -> None:
        """Add an item."""
        self.bytes += sum(map(_bytes, item.records))
        self._items.put_nowait(item)

    async def forward(self) -> None:
        """Hand items over, in order, until cancelled."""
        while True:
            item = await self._items.get()
            await self._put(item)
            self.bytes -= sum(map(_bytes, item.records))
            self._forwarded.set()

    async def wait_forwarded(self) -> None:
        """Wait until one more item was handed over."""
        self._forwarded.clear()
        await self._forwarded.wait()


class _Wait(msgspec.Struct, Generic[Half], frozen=True, eq=False):
    """A half that waits, under the id that it waits for."""

    half: Taken[Half]
    id: str
    bytes: int


class _Waiting(Generic[Half]):
    """Halves of one kind that wait: oldest first, and by id."""

    def __init__(self) -> None:
        self._by_age: OrderedDict[_Wait[Half], None] = OrderedDict()
        self._by_id: dict[str, deque[_Wait[Half]]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_age)

    def oldest(self) -> _Wait[Half] | None:
        """Return the one that was taken first."""
        return next(iter(self._by_age), None)

    def add(self, wait: _Wait[Half]) -> None:
        """Add the newest."""
        self._by_age[wait] = None
        self._by_id.setdefault(wait.id, deque()).append(wait)
        self.bytes += wait.bytes

    def find(self, id_: str) -> _Wait[Half] | None:
        """Return the oldest with an id."""
        same = self._by_id.get(id_)
        return same[0] if same else None

    def pop(self, id_: str) -> _Wait[Half] | None:
        """Remove and return the oldest with an id."""
        found = self.find(id_)
        return found and self.remove(found)

    def remove(self, wait: _Wait[Half]) -> _Wait[Half]:
        """Remove one."""
        del self._by_age[wait]
        same = self._by_id[wait.id]
        same.remove(wait)
        if not same:
            del self._by_id[wait.id]
        self.bytes -= wait.bytes
        return wait

    def taken_until(self, time_s: float) -> list[_Wait[Half]]:
        """Return those that were taken at or before a time, oldest first."""
        return list(itertools.takewhile(lambda wait: wait.half.taken_s <= time_s, self._by_age))


def _bytes(record: Record) -> int:
    return len(record.value or b"") + _RECORD_BYTES
