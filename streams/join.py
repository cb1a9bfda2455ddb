"""Posts and clips meet here, by post id. Filled by the Faust agents, emptied into the batchers.

There is no state store: a half that waits is a record that is not acknowledged yet, and Kafka delivers it again after
a crash. A post that announces no clip goes on at once. A clip, or a post that announces one, waits for its other half,
but not for ever: after the grace it goes on alone, and the pipeline looks in Redis for a partner that was answered
before.

While an id is being answered, further records of it wait for their turn: two answers of one id are never under way at
once, and the later one finds in Redis what the earlier one left there.

Memory is bounded for posts and clips each. A post that finds no room sends the oldest waiting one on, alone: a flood of
posts whose clips never come delays nobody. A clip that finds no room waits, and its topic is not read on; posts are.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

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

_MOST_CLIPS_ON_THEIR_WAY = 16
"""Clips that wait for room in their batcher. The bound in bytes is for halves that wait for partners: small clips would
let it hold hours of speech, and a rebalance waits until all that was taken is answered."""

Half = TypeVar("Half", Post, Clip)
AnyHalf = Taken[Post] | Taken[Clip]
Put = Callable[[Item], Awaitable[None]]


class Join:
    """Matches posts with clips.

    An id is in one of three states: nothing of it is here; halves of it wait for partners; or an item of it is under
    way, and every further half waits in `_turns` until that is answered.

    Args:
        texts: Takes items without a clip; its waiting is what stops the reading of `posts`.
        voices: Takes items with a clip; its waiting is what stops the reading of `clips`, in the end.
        grace_s: How long a half waits for the other.
        most_bytes: Of posts that wait or are on their way to a batch, and of clips: so many of each.
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
        self._turns: dict[str, deque[AnyHalf]] = {}
        self._put_text = texts
        self._texts, self._voices = _Outbox(texts), _Outbox(voices)

    async def take_post(self, record: Record) -> None:
        """Take a record of `posts`; waits while its batcher has no room."""
        post = decode_posts_record(record, clock=self._clock)
        if isinstance(post, Item):
            await self._put_text(post)
        elif not post.content.clip and not self._has(post.content.id):
            self._under_way(post.content.id)
            await self._put_text(post_item(post))
        else:
            while self._texts.held_bytes > self._most_bytes:
                if oldest := self._posts.pop_oldest():
                    self._send(oldest, "no_room")
                await self._texts.wait_forwarded()
            self._texts.held_bytes += record.size
            self._admit(post.content.id, post)

    async def take_clip(self, record: Record) -> None:
        """Take a record of `clips`; waits while too many are held."""
        while self._voices.held_bytes > self._most_bytes or len(self._voices) > _MOST_CLIPS_ON_THEIR_WAY:
            await self._voices.wait_forwarded()
        clip = decode_clips_record(record, clock=self._clock)
        self._voices.held_bytes += record.size
        if isinstance(clip, Item):
            self._voices.add(clip)
        else:
            self._admit(clip.content.post_id, clip)

    def carried(self, item: Item) -> None:
        """Note that an item is answered: halves of its id that waited for their turn go on."""
        if item.post_id is None:
            return
        halves = self._turns.pop(item.post_id)
        while halves and item.post_id not in self._turns:
            self._admit(item.post_id, halves.popleft(), after=item)
        if halves:
            self._turns[item.post_id] += halves

    def close(self) -> None:
        """Send on what waits, and let nothing wait from now on: no partner is going to be read any more."""
        self._grace_s = 0.0
        for waiting in (self._posts, self._clips):
            while half := waiting.pop_oldest():
                self._send(half, "alone")

    async def run(self) -> None:
        """Hand items over to the batchers, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._texts.forward())
            tasks.create_task(self._voices.forward())

    @property
    def waiting(self) -> dict[str, int]:
        """How many posts and clips wait for their other half."""
        return {"post": len(self._posts), "clip": len(self._clips)}

    def _has(self, id_: str) -> bool:
        """Say whether anything of an id is here."""
        return id_ in self._turns or self._posts.has(id_) or self._clips.has(id_)

    def _admit(self, id_: str, half: AnyHalf, *, after: Item | None = None) -> None:
        """Send a half on with its partner or alone, or have it wait.

        Args:
            id_: The post's id.
            half: A post or a clip.
            after: The item of the same id that was answered just now: a partner in it is known to Redis.
        """
        if id_ in self._turns:
            self._turns[id_].append(half)
        elif isinstance(half.content, Post):
            self._admit_post(half, answered=after is not None and after.clip is not None)
        else:
            self._admit_clip(half, answered=after is not None and after.post is not None)

    def _admit_post(self, post: Taken[Post], *, answered: bool) -> None:
        if clip := self._clips.pop(post.content.id):
            self._send_pair(post, clip, waited=clip)
        elif post.content.clip and not answered:
            self._have_wait(post, self._posts)
        elif first := self._posts.pop(post.content.id):  # which is older: it is answered before this one
            self._send(first, "alone")
            self._turns[post.content.id].append(post)
        else:
            self._send(post, "answered_before")

    def _admit_clip(self, clip: Taken[Clip], *, answered: bool) -> None:
        if post := self._posts.pop(clip.content.post_id):
            self._send_pair(post, clip, waited=post)
        elif answered:
            self._send(clip, "answered_before")
        else:
            self._have_wait(clip, self._clips)

    def _have_wait(self, half: Taken[Half], waiting: "_Waiting[Half]") -> None:
        """Have a half wait for the rest of its grace, which begins when it is taken: waiting for its turn counts."""

        def end() -> None:
            if oldest := waiting.pop(_id_of(half)):
                self._send(oldest, "alone")

        left_s = half.taken_s + self._grace_s - self._clock()
        waiting.add(half, asyncio.get_running_loop().call_later(left_s, end))

    def _send_pair(self, post: Taken[Post], clip: Taken[Clip], *, waited: AnyHalf) -> None:
        self._observe_wait(waited, "joined")
        moved_bytes = post.record.size
        self._texts.release(moved_bytes)
        self._voices.held_bytes += moved_bytes
        self._under_way(post.content.id)
        self._voices.add(clip_item(clip, post, taken_s=self._clock()))

    def _send(self, half: AnyHalf, outcome: str) -> None:
        """Send a half on alone."""
        self._observe_wait(half, outcome)
        self._under_way(_id_of(half))
        if isinstance(half.content, Post):
            self._texts.add(post_item(half, taken_s=self._clock()))
        else:
            self._voices.add(clip_item(half, taken_s=self._clock()))

    def _under_way(self, id_: str) -> None:
        """Note that an item of an id is under way: whatever else of it is here waits for its turn."""
        self._turns[id_] = deque([*self._posts.pop_all(id_), *self._clips.pop_all(id_)])

    def _observe_wait(self, half: AnyHalf, outcome: str) -> None:
        self._metrics.join_wait.labels(outcome).observe(max(0.0, self._clock() - half.taken_s))


def _id_of(half: AnyHalf) -> str:
    return half.content.id if isinstance(half.content, Post) else half.content.post_id


class _Outbox:
    """Items on their way to a batcher; whoever adds to it never waits, whoever must not add too much asks before.

    Attributes:
        held_bytes: Bytes of the records that are here, or still wait to be added.
    """

    def __init__(self, put: Put) -> None:
        self._put = put
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._forwarded = asyncio.Event()
        self.held_bytes = 0

    def __len__(self) -> int:
        return self._items.qsize()

    def add(self, item: Item) -> None:
        """Add an item."""
        self._items.put_nowait(item)

    def release(self, size: int) -> None:
        """Note that so many bytes are no longer held."""
        self.held_bytes -= size
        self._forwarded.set()

    async def forward(self) -> None:
        """Hand items over, in order, until cancelled."""
        while True:
            item = await self._items.get()
            await self._put(item)
            self.release(item.size)

    async def wait_forwarded(self) -> None:
        """Wait until less is held."""
        self._forwarded.clear()
        await self._forwarded.wait()


class _Waiting(Generic[Half]):
    """Halves of one kind that wait, each with the timer that ends its waiting: in the order they came, and by id."""

    def __init__(self) -> None:
        self._timers: OrderedDict[Taken[Half], asyncio.TimerHandle] = OrderedDict()
        self._by_id: dict[str, deque[Taken[Half]]] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def has(self, id_: str) -> bool:
        """Say whether one with an id waits."""
        return id_ in self._by_id

    def add(self, half: Taken[Half], timer: asyncio.TimerHandle) -> None:
        """Add the newest."""
        self._timers[half] = timer
        self._by_id.setdefault(_id_of(half), deque()).append(half)

    def pop(self, id_: str) -> Taken[Half] | None:
        """Remove and return the oldest with an id."""
        return self._remove(self._by_id[id_][0]) if id_ in self._by_id else None

    def pop_oldest(self) -> Taken[Half] | None:
        """Remove and return the oldest of all."""
        return self._remove(next(iter(self._timers))) if self._timers else None

    def pop_all(self, id_: str) -> list[Taken[Half]]:
        """Remove and return all halves with an id."""
        return [self._remove(half) for half in tuple(self._by_id.get(id_, ()))]

    def _remove(self, half: Taken[Half]) -> Taken[Half]:
        self._timers.pop(half).cancel()
        same = self._by_id[_id_of(half)]
        same.remove(half)
        if not same:
            del self._by_id[_id_of(half)]
        return half
