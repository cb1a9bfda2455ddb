"""Brokers that restart, go away, hang, and are cut off. What needs data on disk or several brokers: Apache Kafka."""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from accounts import ROW_S, NoteRow, Traffic, assert_each_counts_once, sized
from faulty import Cluster, Wire, running_cluster
from support import KAFKA_SCRIPT, PARTITIONS, Broker, await_true, make_settings, publish_raw, running_worker

from emostream.connectors.errors import BrokerAway
from emostream.connectors.reader import read_records
from emostream.connectors.topics import create_topics
from emostream.streams.settings import Settings
from emostream.streams.stack import Stack, child_process, embedded_broker_command, free_port

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Clients whose broker is killed leave sockets open."""

needs_kafka = pytest.mark.skipif(not KAFKA_SCRIPT.is_file(), reason="no Apache Kafka to start and break is at hand")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An Apache Kafka to break."""
    with running_cluster(tmp_path / "kafka") as running:
        yield running


def prepared(bootstrap: str, stack: Stack, **changes: object) -> Settings:
    """Return settings for a broker of a test's own, its topics created."""
    settings = make_settings(Broker("kafka", bootstrap), stack, **changes)
    create_topics(settings.kafka_access, settings.topics, partitions=PARTITIONS, replication=-1)
    return settings


@needs_kafka
def test_restarted(cluster: Cluster, stack: Stack, note_row: NoteRow, tmp_path: Path) -> None:
    settings = prepared(cluster.bootstrap, stack)
    count = int(sized(5_000, 600))
    with running_worker(settings, tmp_path / "log") as worker, Traffic(settings, count, rate=100) as traffic:
        await_true(worker.answers_some, within_s=60)
        for kill in (False, True):
            cluster.stop(kill=kill)
            cluster.start()
            time.sleep(sized(5, 1))
        ledger = traffic.settle(within_s=ROW_S)
        assert worker.process.poll() is None
        await_true(lambda: worker.get("/readyz")[0] == 200, within_s=60)
        assert_each_counts_once(settings, worker, count)
    note_row("broker restarted twice, once with SIGKILL", "kafka", ledger)


@needs_kafka
def test_gone(cluster: Cluster, stack: Stack, note_row: NoteRow, tmp_path: Path) -> None:
    away_s, count = sized(60, 12), int(sized(5_000, 600))
    settings = prepared(cluster.bootstrap, stack)
    with running_worker(settings, tmp_path / "log") as worker, Traffic(settings, count) as traffic:
        await_true(worker.answers_some, within_s=60)
        cluster.stop(kill=True)
        time.sleep(away_s)
        cluster.start()
        ledger = traffic.settle(within_s=ROW_S)
        await_true(lambda: worker.get("/readyz")[0] == 200, within_s=60)
        assert_each_counts_once(settings, worker, count)
        assert not sized(1, 0) or worker.metric("emostream_sink_errors_total") > 0, "an outage shows"
    note_row(f"broker gone for {away_s:.0f} s", "kafka", ledger)


@needs_kafka
def test_one_of_three_killed(stack: Stack, note_row: NoteRow, tmp_path: Path) -> None:
    with running_cluster(tmp_path / "kafka", nodes=3) as cluster:
        settings = prepared(cluster.bootstrap, stack)
        with (
            running_worker(settings, tmp_path / "log") as worker,
            Traffic(settings, int(sized(8_000, 800)), rate=sized(100, 60)) as traffic,
        ):
            await_true(worker.answers_some, within_s=60)
            for node in (2, 1) if sized(1, 0) else (2,):
                cluster.stop(node=node, kill=True)
                time.sleep(sized(15, 4))
                cluster.start()
                time.sleep(sized(10, 0))
            ledger = traffic.settle(within_s=ROW_S)
            await_true(lambda: worker.get("/readyz")[0] == 200, within_s=60)
            assert_each_counts_once(settings, worker, len(traffic.posts))
    note_row("one of three brokers killed, then back", "kafka", ledger)


@pytest.fixture(params=["embedded", *["kafka"] * KAFKA_SCRIPT.is_file()])
def hangable(request: pytest.FixtureRequest) -> Iterator[tuple[Broker, Callable[[], None], Callable[[], None]]]:
    """A broker, what makes it hang, and what makes it go on."""
    if request.param == "kafka":
        cluster = request.getfixturevalue("cluster")
        yield Broker("kafka", cluster.bootstrap), cluster.pause, cluster.resume
        return
    port = free_port(0)
    with child_process(embedded_broker_command(port), stop_s=5, output=subprocess.DEVNULL) as process:
        yield (
            Broker("embedded", f"127.0.0.1:{port}"),
            lambda: process.send_signal(signal.SIGSTOP),
            lambda: process.send_signal(signal.SIGCONT),
        )


def test_hangs(
    hangable: tuple[Broker, Callable[[], None], Callable[[], None]], stack: Stack, note_row: NoteRow, tmp_path: Path
) -> None:
    """At full size for longer than the clients wait for an answer, which is 30 s."""
    broker, pause, resume = hangable
    hangs_s = sized(40, 8)
    settings = prepared(broker.bootstrap, stack)
    count = int(sized(5_000, 600))
    with running_worker(settings, tmp_path / "log") as worker, Traffic(settings, count) as traffic:
        await_true(worker.answers_some, within_s=60)
        pause()
        time.sleep(2)  # what it had confirmed by then is counted
        answered = worker.metric("emostream_answers_total")
        time.sleep(hangs_s - 2)
        assert worker.metric("emostream_answers_total") == answered, "what Kafka has not confirmed is not done"
        resume()
        ledger = traffic.settle(within_s=ROW_S)
        await_true(lambda: worker.get("/readyz")[0] == 200, within_s=60)
        assert_each_counts_once(settings, worker, count)
    note_row(f"broker hangs (SIGSTOP) for {hangs_s:.0f} s", broker.name, ledger)


def test_cut_off(stack: Stack, note_row: NoteRow, tmp_path: Path, wired_broker: tuple[Broker, Wire]) -> None:
    """Every connection is cut, and each that is tried; the group forgets the worker, which comes back to it."""
    broker, wire = wired_broker
    settings = prepared(broker.bootstrap, stack)
    count = int(sized(5_000, 600))
    with running_worker(settings, tmp_path / "log") as worker, Traffic(settings, count) as traffic:
        await_true(worker.answers_some, within_s=60)
        rebalances = worker.metric("emostream_rebalances_total")
        wire.cut()
        time.sleep(2.5 * settings.session_timeout_s)
        wire.mend()
        ledger = traffic.settle(within_s=ROW_S)
        if broker.name == "kafka":  # the embedded one forgets nobody
            await_true(lambda: worker.metric("emostream_rebalances_total") > rebalances, within_s=60)
        await_true(lambda: worker.get("/readyz")[0] == 200, within_s=60)
        assert_each_counts_once(settings, worker, count)
    note_row("connection cut for longer than the session timeout", broker.name, ledger)


@pytest.fixture(params=["embedded", *["kafka"] * KAFKA_SCRIPT.is_file()])
def wired_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Broker, Wire]]:
    """A broker that tells its clients to come by a wire, and the wire."""
    with ExitStack() as running:
        port = free_port(0)
        wire = running.enter_context(Wire(port))
        if request.param == "embedded":
            command = embedded_broker_command(port, advertised=wire.port)
            running.enter_context(child_process(command, stop_s=5, output=subprocess.DEVNULL))
        else:
            cluster = Cluster(tmp_path / "kafka", options=("--port", str(port)))
            running.callback(cluster.stop, kill=True)
            cluster.start_behind(wire.port)
        yield Broker(request.param, f"127.0.0.1:{wire.port}"), wire


@contextmanager
def broker_that_is_killed(settings: Settings) -> Iterator[None]:
    command = embedded_broker_command(int(settings.kafka.rpartition(":")[2]))
    with child_process(command, stop_s=5, output=subprocess.DEVNULL) as process:
        yield
        process.kill()


@pytest.mark.parametrize("comes_back", [True, False])
def test_gone_as_a_reader_asks_where_a_topic_is(comes_back: bool, caplog: pytest.LogCaptureFixture) -> None:
    """As `watch` and `dlq` may: they wait a little for the broker, as they do for a topic."""
    caplog.set_level(logging.CRITICAL, "kafka")  # a captured line would hold the client's sockets until the end
    settings = Settings(kafka=f"127.0.0.1:{free_port(0)}")

    def first() -> bytes | None:
        topics = [settings.posts_topic]
        return next(read_records(settings.kafka_access, topics, from_beginning=True, stopping=lambda: False)).value

    with ThreadPoolExecutor(max_workers=1) as pool:
        with broker_that_is_killed(settings):
            value = pool.submit(first)
            time.sleep(2)  # it has got in, and asks for a topic that is not there
        if not comes_back:
            with pytest.raises(BrokerAway, match="do not say where topic 'posts' is"):
                value.result(timeout=30)
            return
        time.sleep(1)
        with broker_that_is_killed(settings):
            create_topics(settings.kafka_access, [settings.posts_topic], partitions=1, replication=-1)
            publish_raw(settings, [("key", b"value")])
            assert value.result(timeout=30) == b"value"
