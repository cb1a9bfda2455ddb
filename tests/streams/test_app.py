"""The Faust shell on real brokers: what it holds while nothing can be answered, and that it comes back."""

import asyncio
import random
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import IllegalStateError
from faust.transport.drivers.aiokafka import ensure_aiokafka_TP
from support import PARTITIONS, Broker, group_members, make_settings

from emostream.connectors.producer import MOST_REQUEST_BYTES
from emostream.connectors.topics import create_topics
from emostream.streams import app as app_module
from emostream.streams import consumer
from emostream.streams.app import build_app
from emostream.streams.offsets import OffsetOrder
from emostream.streams.records import Record
from emostream.streams.settings import Settings
from emostream.streams.stack import Stack


class Taker:
    """Takes records; holds on to each while it is closed, as the join does when nothing can be answered."""

    def __init__(self, offsets: OffsetOrder) -> None:
        self._offsets = offsets
        self.open = asyncio.Event()
        self.taken: set[tuple[int, int]] = set()
        self.deliveries = 0

    async def __call__(self, record: Record) -> None:
        self.taken.add((record.partition, record.offset))
        self.deliveries += 1
        await self.open.wait()
        self._offsets.done([record])


class HeldUpTaker(Taker):
    """Is done with each record at once, save the first of each partition: with that, once it is open."""

    def __init__(self, offsets: OffsetOrder) -> None:
        super().__init__(offsets)
        self._firsts: list[asyncio.Task[None]] = []

    async def __call__(self, record: Record) -> None:
        if record.offset == 0:
            self._firsts.append(asyncio.create_task(super().__call__(record)))
            return
        self.taken.add((record.partition, record.offset))
        self._offsets.done([record])


class Shell:
    """A running app."""

    def __init__(self, settings: Settings, scratch: Path, taker: type[Taker] = Taker) -> None:
        self.offsets = OffsetOrder()
        self.posts, self.clips = taker(self.offsets), taker(self.offsets)
        self.app = build_app(settings, posts=self.posts, clips=self.clips, offsets=self.offsets, scratch=scratch)

    def end_outage(self) -> None:
        """Let everything be answered."""
        self.posts.open.set()
        self.clips.open.set()

    def held(self, topic: str) -> int:
        """Return how many records of a topic Faust has and nobody took."""
        return sum(actor.stream.channel.queue.qsize() for actor in self.app.agents[topic]._actors)


@asynccontextmanager
async def running(settings: Settings, scratch: Path, taker: type[Taker] = Taker) -> AsyncIterator[Shell]:
    shell = Shell(settings, scratch, taker)
    await shell.app.start()
    try:
        yield shell
    finally:
        shell.end_outage()
        await shell.app.stop()


async def eventually(condition: Callable[[], bool], *, within_s: float = 150.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true"
        await asyncio.sleep(0.1)


async def publish(settings: Settings, topic: str, values: list[bytes], *, header: bytes = b"") -> None:
    """Publish with aiokafka, whose checksums of large values cost a tenth of kafka-python's."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka, max_request_size=MOST_REQUEST_BYTES)
    await producer.start()
    try:
        await asyncio.gather(*[await producer.send(topic, value, headers=[("a", header)]) for value in values])
    finally:
        await producer.stop()


async def test_large_clips_that_wait_are_few_and_hold_up_no_posts(settings: Settings, tmp_path: Path) -> None:
    clips = [random.randbytes(600_000) for _ in range(120)]  # zeros would be fetched as next to nothing
    await publish(settings, settings.clips_topic, clips, header=random.randbytes(300_000))
    async with running(settings, tmp_path) as shell:
        await eventually(lambda: shell.held(settings.clips_topic) > 35)
        shell.posts.open.set()
        await publish(settings, settings.posts_topic, [b"a post"] * 10_000)
        await eventually(lambda: len(shell.posts.taken) == 10_000)
        # 37 of them are 32 MiB; a little more was under way.
        assert shell.held(settings.clips_topic) < 50
        shell.clips.open.set()
        await eventually(lambda: len(shell.clips.taken) == 120)


async def test_what_is_done_behind_a_record_that_is_not_is_let_go(settings: Settings, tmp_path: Path) -> None:
    """Posts behind a clip that takes its time are answered, but not acknowledged: nothing of them stays in memory."""
    posts = [random.randbytes(50_000) for _ in range(600)]
    await publish(settings, settings.posts_topic, posts, header=random.randbytes(50_000))
    del posts
    tracemalloc.start()
    try:
        async with running(settings, tmp_path, HeldUpTaker) as shell:
            await eventually(lambda: len(shell.posts.taken) == len(shell.app.consumer._unacked_messages) == 600)
            held_bytes, _ = tracemalloc.get_traced_memory()
        assert held_bytes < 20_000_000  # of 60 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rebalance_s", [60.0, 2.0], ids=["waited-for", "left-behind"])
async def test_an_outage_of_hours_is_survived(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rebalance_s: float
) -> None:
    """Nothing can be answered, so nothing more is fetched; meanwhile a second worker comes and wants its share. Kafka
    waits for the first to give some up, or no longer, and shares out what there is without it."""
    idle_time = SubscriptionState.fetcher_idle_time
    hours = property(lambda self: 3600 * idle_time.fget(self))  # a second of idleness passes for an hour
    monkeypatch.setattr(SubscriptionState, "fetcher_idle_time", hours)
    monkeypatch.setattr(app_module, "_REBALANCE_TIMEOUT_S", rebalance_s)
    sources = settings.topics[:2]
    for topic in sources:
        await publish(settings, topic, [bytes(50_000)] * 1500)
    async with running(settings, tmp_path / "first") as first:
        await eventually(lambda: min(map(first.held, sources)) > 600)
        await asyncio.sleep(1)
        second = Shell(settings, tmp_path / "second")
        joining = asyncio.create_task(second.app.start())
        try:
            await asyncio.sleep(3.5)
            first.end_outage()
            second.end_outage()
            await joining
            await eventually(lambda: len(first.posts.taken | second.posts.taken) == 1500)
            await eventually(lambda: len(first.clips.taken | second.clips.taken) == 1500)
            await eventually(lambda: len(first.offsets.partitions) == len(second.offsets.partitions) > 0)
        finally:
            await second.app.stop()


@pytest.fixture
def slow_seeks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that takes its time to say what is committed."""
    seek = consumer._Consumer.perform_seek

    async def slowly(one: consumer._Consumer) -> None:
        await asyncio.sleep(1.0)
        await seek(one)
        await asyncio.sleep(1.0)

    monkeypatch.setattr(consumer._Consumer, "perform_seek", slowly)


@pytest.mark.usefixtures("slow_seeks")
async def test_what_comes_in_a_rebalance_is_read_where_nothing_was_committed(
    settings: Settings, tmp_path: Path
) -> None:
    """A fetch waits through a rebalance, and brings records of the new assignment before the flow is resumed."""
    async with running(settings, tmp_path / "first") as first:
        await publish(settings, settings.clips_topic, [b"a clip"])
        await eventually(lambda: bool(first.clips.taken))  # the rebalance waits for it
        second = Shell(settings, tmp_path / "second")
        joining = asyncio.create_task(second.app.start())
        try:
            await eventually(lambda: first.app.rebalancing)
            await publish(settings, settings.posts_topic, [b"a post"] * 100)
            await asyncio.sleep(1)
            first.end_outage()
            second.end_outage()
            await joining
            await eventually(lambda: len(first.posts.taken | second.posts.taken) == 100, within_s=30)
        finally:
            await second.app.stop()


@pytest.mark.usefixtures("slow_seeks")
@pytest.mark.filterwarnings("ignore::faust.exceptions.AlreadyConfiguredWarning")
async def test_records_flow_again_however_long_a_rebalance_takes(settings: Settings, tmp_path: Path) -> None:
    async with running(settings, tmp_path / "first") as first:
        first.app.conf.broker_request_timeout = 0.5
        first.end_outage()
        async with running(settings, tmp_path / "second") as second:
            second.app.conf.broker_request_timeout = 0.5
            second.end_outage()
            await eventually(lambda: len(first.offsets.partitions) == len(second.offsets.partitions) > 0)
            await publish(settings, settings.posts_topic, [b"a post"] * 100)
            await eventually(lambda: len(first.posts.taken | second.posts.taken) == 100, within_s=30)


@pytest.mark.usefixtures("slow_seeks")
async def test_a_worker_that_had_nothing_takes_over_all_that_is_left(
    broker: Broker, stack: Stack, tmp_path: Path
) -> None:
    """Faust does not stop the flow of a worker without partitions: records came while it sought, and were cleared."""
    settings = make_settings(broker, stack)
    create_topics(settings.kafka_access, settings.topics, partitions=1, replication=-1)
    async with running(settings, tmp_path / "second") as second, running(settings, tmp_path / "first") as first:
        await eventually(lambda: bool(first.offsets.partitions or second.offsets.partitions))
        holder, idle = (first, second) if first.offsets.partitions else (second, first)
        await publish(settings, settings.posts_topic, [b"a post"] * 1000)
        await eventually(lambda: bool(holder.posts.taken))
        await asyncio.sleep(3)  # the other has let its empty assignment flow
        holder.end_outage()
        await holder.app.stop()
        await eventually(lambda: bool(idle.posts.taken))
        await asyncio.sleep(3)  # what came while it sought would wait behind the first record
        idle.end_outage()
        await eventually(lambda: len(first.posts.taken | second.posts.taken) == 1000, within_s=30)


@pytest.mark.filterwarnings("ignore::faust.exceptions.AlreadyConfiguredWarning")
async def test_what_was_acknowledged_before_a_rebalance_is_not_committed_after_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a worker that Kafka took for dead: another has answered and committed more, and that would be wound back."""
    given_up, go_on = asyncio.Event(), asyncio.Event()
    give_up, seek = consumer._Consumer.on_partitions_revoked, consumer._Consumer.perform_seek

    async def watched(one: consumer._Consumer, revoked: set[Any]) -> None:
        await give_up(one, revoked)
        if one is first.app.consumer:
            given_up.set()

    async def slowly(one: consumer._Consumer) -> None:
        await go_on.wait()
        await seek(one)

    async def refuse(*_: object) -> bool:
        return False

    async with running(settings, tmp_path / "first", HeldUpTaker) as first:
        second = Shell(settings, tmp_path / "second")
        second.end_outage()
        await publish(settings, settings.posts_topic, [b"a post"] * 100)
        await eventually(lambda: len(first.posts.taken) == 100)
        monkeypatch.setattr(consumer._Consumer, "on_partitions_revoked", watched)
        monkeypatch.setattr(consumer._Consumer, "perform_seek", slowly)
        joining = asyncio.create_task(second.app.start())
        try:
            with monkeypatch.context() as refusing:
                refusing.setattr(first.app.consumer, "_commit", refuse)
                await eventually(lambda: first.app.rebalancing)
                await asyncio.sleep(1)  # it has forgotten what it had acknowledged, and waits for what it has taken
                first.end_outage()
                async with asyncio.timeout(60):
                    await given_up.wait()
            await eventually(lambda: bool(first.offsets.partitions))
            await asyncio.sleep(3 * settings.commit_interval_s)
            assert not any(await committed(first, settings.posts_topic))
            go_on.set()
            await joining
            await until_committed(settings.posts_topic, 100, first, second)
        finally:
            go_on.set()
            await second.app.stop()


@pytest.mark.parametrize("posts", [100, 1])
async def test_a_log_that_begins_anew_is_read_from_its_beginning(
    settings: Settings, tmp_path: Path, posts: int
) -> None:
    """As after an unclean election: aiokafka goes back to where the log begins, and Faust would skip what it knows."""
    async with running(settings, tmp_path) as shell:
        shell.end_outage()
        await publish(settings, settings.posts_topic, [b"a post"] * posts)
        await eventually(lambda: len(shell.posts.taken) == posts and not shell.offsets.uncommitted_s)
        await until_committed(settings.posts_topic, posts, shell)
        shell.posts.open.clear()
        await begin_anew(shell, settings.posts_topic)
        await eventually(lambda: shell.posts.deliveries > posts)
        await until_committed(settings.posts_topic, 0, shell)  # the new log may grow past what was committed
        shell.posts.open.set()
        await until_committed(settings.posts_topic, posts, shell)
        assert shell.posts.deliveries == 2 * posts


async def test_what_waits_when_a_log_begins_anew_is_answered_and_not_acknowledged(
    settings: Settings, tmp_path: Path
) -> None:
    """Acknowledged, it would have records of the new log committed that nobody has answered."""

    class OnceThrough(Taker):
        """Answers the first hundred, once it is open, and then no more until it is told to go on."""

        async def __call__(self, record: Record) -> None:
            if self.deliveries == 100:
                self.open = asyncio.Event()
            await super().__call__(record)

    async with running(settings, tmp_path, OnceThrough) as shell:
        await publish(settings, settings.posts_topic, [b"a post"] * 100)
        await eventually(lambda: shell.posts.deliveries == 1 and shell.held(settings.posts_topic) == 99)
        await begin_anew(shell, settings.posts_topic)
        await eventually(lambda: shell.held(settings.posts_topic) == 199)
        shell.posts.open.set()
        await eventually(lambda: shell.posts.deliveries == 101)
        await asyncio.sleep(3 * settings.commit_interval_s)
        assert not any(await committed(shell, settings.posts_topic)), "those hundred were of the old log"
        assert not shell.offsets.uncommitted_s, "there is nothing to wait for"
        shell.posts.open.set()
        await eventually(lambda: shell.posts.deliveries == 200 and not shell.offsets.uncommitted_s)


async def test_a_rebalance_goes_on_once_what_was_of_a_log_that_ended_is_answered(
    settings: Settings, tmp_path: Path
) -> None:
    """Nothing is committed for it, but Faust gives partitions up once all that was taken is acknowledged."""
    async with running(settings, tmp_path / "first") as first:
        await publish(settings, settings.posts_topic, [b"a post"] * 100)
        await eventually(lambda: first.posts.deliveries == 1 and first.held(settings.posts_topic) == 99)
        await begin_anew(first, settings.posts_topic)
        await eventually(lambda: first.held(settings.posts_topic) == 199)
        second = Shell(settings, tmp_path / "second")
        joining = asyncio.create_task(second.app.start())
        try:
            await eventually(lambda: first.app.rebalancing)
            first.end_outage()
            second.end_outage()
            await joining
            await eventually(lambda: bool(first.offsets.partitions and second.offsets.partitions))
            await eventually(lambda: len(first.posts.taken | second.posts.taken) == 100)
        finally:
            await second.app.stop()


@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_commit_under_way_when_a_log_begins_anew_says_nothing_of_the_new_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeeds: bool
) -> None:
    """Brought back, the old offset would be committed over records of the new log that nobody has answered."""
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*_: object) -> bool:
        under_way.set()
        await go_on.wait()
        return succeeds

    async with running(settings, tmp_path) as shell:
        monkeypatch.setattr(shell.app.consumer, "_commit", slow)
        await publish(settings, settings.posts_topic, [b"a post"] * 100)
        shell.posts.open.set()
        await eventually(lambda: shell.posts.deliveries == 100 and under_way.is_set())
        shell.posts.open.clear()
        await begin_anew(shell, settings.posts_topic)
        await eventually(lambda: shell.posts.deliveries == 101 and shell.held(settings.posts_topic) == 99)
        monkeypatch.undo()
        go_on.set()
        await asyncio.sleep(3 * settings.commit_interval_s)
        assert not any(await committed(shell, settings.posts_topic))
        shell.end_outage()
        await eventually(lambda: shell.posts.deliveries == 200 and not shell.offsets.uncommitted_s)


async def begin_anew(shell: Shell, topic: str) -> None:
    """Have the client go back to where the logs of a topic begin, as it does when they begin anew."""
    await shell.app.consumer._thread.seek_to_beginning(*partitions_of(shell, topic))


async def committed(shell: Shell, topic: str) -> list[int]:
    """Return what Kafka holds as committed for each partition of a topic; 0 where there is nothing."""
    thread = shell.app.consumer._thread
    return [await thread.call_thread(thread._consumer.committed, each) or 0 for each in partitions_of(shell, topic)]


async def until_committed(topic: str, records: int, *shells: Shell) -> None:
    """Wait until Kafka holds that many records of a topic as committed by some workers."""
    async with asyncio.timeout(60):
        while sum([sum(await committed(shell, topic)) for shell in shells]) != records:  # noqa: ASYNC110  # nobody tells us
            await asyncio.sleep(0.1)


def partitions_of(shell: Shell, topic: str) -> list[TopicPartition]:
    return [ensure_aiokafka_TP(each) for each in shell.app.consumer.assignment() if each.topic == topic]


async def test_each_worker_gets_partitions_while_there_are_enough(settings: Settings, tmp_path: Path) -> None:
    async with AsyncExitStack() as running_ones:
        shells: list[Shell] = []
        for number in range(3):
            shells.append(await running_ones.enter_async_context(running(settings, tmp_path / str(number))))
            shells[-1].end_outage()
            await eventually(lambda: all(shell.offsets.partitions for shell in shells), within_s=30)


async def test_a_worker_without_partitions_has_nothing_to_seek_or_to_commit(settings: Settings, tmp_path: Path) -> None:
    """Both may come to pass in a rebalance, and aiokafka calls either a mistake: it is no end of a spare worker."""
    async with AsyncExitStack() as running_ones:
        shells = [
            await running_ones.enter_async_context(running(settings, tmp_path / str(number)))
            for number in range(PARTITIONS + 1)
        ]
        await eventually(lambda: sum(bool(shell.offsets.partitions) for shell in shells) == PARTITIONS, within_s=60)
        (spare,) = (shell for shell in shells if not shell.app.consumer.assignment())
        with pytest.raises(IllegalStateError):  # the one error that Faust survives wherever it seeks
            await spare.app.consumer.perform_seek()
        others = next(shell.app.consumer.assignment() for shell in shells if shell is not spare)
        assert not await spare.app.consumer._thread.commit(dict.fromkeys(others, 1))
        await asyncio.sleep(1.0)
        assert not spare.app.should_stop, spare.app.crash_reason


async def test_a_client_that_gives_up_in_silence_ends_the_worker(settings: Settings, tmp_path: Path) -> None:
    async with running(settings, tmp_path) as shell:
        thread = shell.app.consumer._thread
        await eventually(lambda: bool(shell.offsets.partitions))
        thread.thread_loop.call_soon_threadsafe(thread._consumer._fetcher._fetch_task.cancel)
        async with asyncio.timeout(30):
            await shell.app.wait_until_stopped()
        assert "has given up: fetching" in str(shell.app.crash_reason)


async def test_an_error_where_records_are_taken_in_ends_the_worker(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Faust would go on with the next record, and this one would hold up its partition for ever."""

    class Failing(Taker):
        async def __call__(self, record: Record) -> None:
            raise ValueError("what a post says")

    async with running(settings, tmp_path, Failing) as shell:
        await publish(settings, settings.posts_topic, [b"a post"])
        async with asyncio.timeout(30):
            await shell.app.wait_until_stopped()
        assert "cannot be taken in: ValueError" in str(shell.app.crash_reason)
        assert "cannot be taken in: ValueError" in caplog.text
        assert "what a post says" not in caplog.text


async def test_a_worker_stops_while_another_leaves(settings: Settings, broker: Broker, tmp_path: Path) -> None:
    """One is told to stop and still answers what it took when the other is gone, and the group shares out anew."""
    async with running(settings, tmp_path / "first") as first:
        async with running(settings, tmp_path / "second") as second:
            await eventually(lambda: len(first.offsets.partitions) == len(second.offsets.partitions) > 0)
            await publish(settings, settings.posts_topic, [b"a post"] * 1000)
            await eventually(lambda: bool(first.posts.taken and second.posts.taken))
            stopping = asyncio.create_task(first.app.stop())
            await asyncio.sleep(0.5)
        await asyncio.sleep(2.5)  # two heartbeats: it knows by then
        first.end_outage()
        async with asyncio.timeout(30):
            await stopping
    if broker.name == "kafka":  # kafka-python cannot read what the embedded one says of a group
        assert group_members(settings) == 0, "both left it"
    async with running(settings, tmp_path / "third") as third:
        third.end_outage()
        await eventually(lambda: len(first.posts.taken | second.posts.taken | third.posts.taken) == 1000)
    assert not first.posts.taken & third.posts.taken, "what it answered is committed"
