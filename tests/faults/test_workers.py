"""Workers that are killed, told to stop, and join and leave."""

import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from accounts import FULL, ROW_S, Ledger, NoteRow, Traffic, assert_each_counts_once, read_to_the_end, settle, sized
from support import Broker, await_true, group_members, running_worker

from emostream.streams.settings import Settings


def test_killed_at_random_moments(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    """Some are killed while they start, most while they work; there is work left when the last one is."""
    kills, count = int(sized(20, 2)), int(sized(20_000, 800))
    chance = random.Random(20)
    with Traffic(settings, count, rate=sized(100, 40)) as traffic:
        for kill in range(kills):
            starting = kill % 4 == 1
            with running_worker(settings, tmp_path / f"log-{kill}", ready=not starting) as worker:
                time.sleep(chance.uniform(0.0, sized(6, 1.5)))
                worker.end(signal.SIGKILL)
        assert traffic.count().missing
        with running_worker(settings, tmp_path / "last") as last:
            ledger = traffic.settle(within_s=ROW_S)
            assert_each_counts_once(settings, last, count)
    note_row(f"worker killed (SIGKILL) at {kills} random moments", broker.name, ledger)


def test_told_to_stop(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"queue_posts": int(sized(512, 64))})  # it does not take all there are
    with Traffic(settings, int(sized(5_000, 600))) as traffic:
        with running_worker(settings, tmp_path / "first") as first:
            await_true(lambda: first.metric("emostream_answers_total") > 50, within_s=60)
            started = time.monotonic()
            code = first.end(signal.SIGTERM)
            took_s = time.monotonic() - started
        if broker.name == "kafka":  # kafka-python cannot read what the embedded one says of a group
            assert group_members(settings) == 0, "it left the group"
        assert traffic.count().missing, "the second has something to answer"
        with running_worker(settings, tmp_path / "second") as second:
            traffic.settle(within_s=ROW_S)
            await_true(second.idle, within_s=60)
    account = note_row("worker told to stop (SIGTERM)", broker.name, traffic.count(), f"it left after {took_s:.1f} s")
    assert code == 0
    assert took_s < settings.stop_grace_s
    assert account.duplicates == 0, "a worker that drains answers nothing twice"


def test_a_second_worker_joins_and_leaves(
    settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path
) -> None:
    """Posts come before it joins, and once it has its partitions; it leaves while they are worked off."""
    settings = settings.model_copy(update={"threads": 1})  # two that take all cores take them from each other
    half = int(sized(2_500, 400))
    with running_worker(settings, tmp_path / "first") as first:
        with (
            Traffic(settings, half, name="before") as before,
            running_worker(settings, tmp_path / "second") as second,
            Traffic(settings, half, name="after") as after,
        ):
            await_true(second.answers_some, within_s=60)
            assert second.end() == 0
        posts, clips = before.posts + after.posts, before.clips + after.clips
        settle(settings, posts, clips, within_s=ROW_S)
        await_true(first.idle, within_s=60)
        rebalances = first.metric("emostream_rebalances_total")
    ledger = read_to_the_end(settings, Ledger(set(posts), set(clips)))
    account = note_row("a second worker joins and leaves", broker.name, ledger, f"{rebalances:.0f} rebalances")
    assert account.duplicates == 0 or rebalances > 3, "it was in the group all the time, and gave up what was answered"


def test_one_of_three_workers_is_killed(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    """At full size all three are at work by then; in the smaller one perhaps only the one that is killed."""
    settings = settings.model_copy(update={"threads": 1})
    at_work = all if FULL else any
    with Traffic(settings, int(sized(8_000, 800)), rate=sized(60, 0)) as traffic, ExitStack() as running:
        workers = [running.enter_context(running_worker(settings, tmp_path / str(n), ready=False)) for n in range(3)]
        await_true(lambda: at_work(worker.answers_some() for worker in workers), within_s=120)
        victim = next(worker for worker in workers if worker.answers_some())
        victim.end(signal.SIGKILL)
        ledger = traffic.settle(within_s=ROW_S)
    note_row("one of three workers killed", broker.name, ledger)
