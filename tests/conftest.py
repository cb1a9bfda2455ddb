"""Real services for the tests: brokers, Redis, a worker. What was used stands in the report's header.

A test that takes `broker` runs once on the embedded broker and once on an Apache Kafka: the one that
EMOSTREAM_TEST_BOOTSTRAP names, or one that is started from EMOSTREAM_TEST_KAFKA (default: ../shared/kafka beside the
checkout). Where there is none, the header says so and those runs do not exist.
"""

import datetime as dt
import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest
from accounts import FAULT, FULL, table_of_faults
from faulty import running_cluster
from support import (
    BOOTSTRAP,
    BROKERS,
    KAFKA_SCRIPT,
    PARTITIONS,
    ROOT,
    Broker,
    RunningWorker,
    await_true,
    make_settings,
    running_worker,
)

from emostream.connectors.topics import create_topics
from emostream.streams.settings import Settings
from emostream.streams.stack import Stack, embedded_stack

# Machines are shared: how long an example takes says nothing about the code.
hypothesis.settings.register_profile(
    "shared",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("shared")


def pytest_report_header() -> list[str]:
    if BOOTSTRAP:
        second = f"the Kafka at {BOOTSTRAP} (EMOSTREAM_TEST_BOOTSTRAP)"
    elif KAFKA_SCRIPT.is_file():
        second = "an Apache Kafka started for this run"
    else:
        second = "NO Apache Kafka: none at hand, and EMOSTREAM_TEST_BOOTSTRAP names none"
    secure = "one started for this run" if KAFKA_SCRIPT.is_file() else "NONE: there is no start script to be found"
    process = (
        "each broker" if FULL or len(BROKERS) == 1 else f"{BROKERS[-1]} alone, and on the other by `make test-faults`"
    )
    return [
        f"brokers: the embedded one, and {second}",
        f"a Kafka with TLS and logins: {secure}",
        f"faults of the model's process: on {process}",
    ]


_TABLE_BEGINS, _TABLE_ENDS = "<!-- faults: made by `make test-faults` -->", "<!-- end of faults -->"
_TABLE = os.environ.get("EMOSTREAM_FAULTS_TABLE")
_IS_HELPER = "PYTEST_XDIST_WORKER" in os.environ
_DONE = ROOT / "docs" / "faults-so-far.jsonl"
"""Rows of a run at full size that is not through yet, one line a test: the next run of the same code goes on with the
others. Committed, it does so on another machine."""


@functools.cache
def _code() -> str:
    """Return what tells the code that runs from any other: the commit that changed it last, a sum of what did since."""
    ours = ["streams", "connectors", "model", ":!model/weights/MODEL_CARD.md"]
    tests = ["tests/faults", "tests/accounts.py", "tests/faulty.py", "tests/support.py"]

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", *ours, *tests]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout

    commit, changes = git("log", "-1", "--format=%h").strip(), git("status", "--porcelain") + git("diff", "HEAD")
    return f"{commit} and changes {hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else commit


def _done() -> dict[str, list[list[object]]]:
    """Return the rows of the tests that have passed with this code, by test."""
    if not _TABLE or not _DONE.exists():
        return {}
    lines = [json.loads(line) for line in _DONE.read_text().splitlines()]
    return {test: rows for code, test, rows in lines if code == _code()}


_LONGEST = ("faults/test_gpu_worker", "faults/", "streams/test_gpu_worker", "integration/", "deploy/")
"""Where the tests are that take longest."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """Share the tests out among processes; leave out what has passed in a full-size run that did not come to its end.

    With `--dist loadgroup`, tests that share a worker go to one process. Groups come first, the largest before others;
    of single tests those that take long, so that short ones fill up the end.
    """
    for item in items:  # before xdist looks at the marks
        if "one_worker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(f"a worker on {item.callspec.params['broker']}"))
    yield
    done = _done()
    left_out = [item for item in items if item.nodeid in done]
    items[:] = [item for item in items if item.nodeid not in done]
    config.hook.pytest_deselected(items=left_out)
    if config.getoption("loadgroup", False):  # after pytest has sorted them by broker
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    file = item.path.relative_to(ROOT / "tests").as_posix()
    return next((turn for turn, start in enumerate(_LONGEST) if file.startswith(start)), len(_LONGEST))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the rows of a test that passed."""
    if not _TABLE or _IS_HELPER or report.when != "call" or not report.passed:
        return
    with _DONE.open("a") as lines:
        lines.write(json.dumps([_code(), report.nodeid, _rows([report])]) + "\n")


def _rows(reports: Iterable[pytest.TestReport]) -> list[list[object]]:
    return [list(value) for report in reports for name, value in report.user_properties if name == FAULT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Show what was broken and what became of the records; write it down where EMOSTREAM_FAULTS_TABLE says."""
    if _IS_HELPER:
        return
    failed = _rows(terminalreporter.stats.get("failed", []))
    passed = _rows(terminalreporter.stats.get("passed", []))
    rows = [*failed, *(row for each in _done().values() for row in each)] if _TABLE else [*failed, *passed]
    if not rows:
        return
    table = table_of_faults(sorted(rows, key=str))
    terminalreporter.section("what was broken, and what became of the records")
    terminalreporter.write(table)
    if _TABLE and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        before, _, rest = Path(_TABLE).read_text().partition(_TABLE_BEGINS)
        _, _, after = rest.partition(_TABLE_ENDS)
        when = f"Seen {dt.datetime.now(dt.UTC):%Y-%m-%d}, {os.cpu_count()} CPU cores, code of commit {_code()}.\n\n"
        Path(_TABLE).write_text(f"{before}{_TABLE_BEGINS}\n{when}{table}{_TABLE_ENDS}{after}")
        _DONE.unlink()
    elif _TABLE:
        terminalreporter.write(f"\n{_TABLE} is written once all have passed; those that have are in {_DONE}.\n")


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The embedded broker and Redis, on free ports."""
    with embedded_stack() as running:
        yield running


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An Apache Kafka."""
    if BOOTSTRAP:
        yield BOOTSTRAP
        return
    with running_cluster(tmp_path_factory.mktemp("kafka") / "cluster") as running:
        yield running.bootstrap


@pytest.fixture(scope="session", params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker in turn."""
    if request.param == "embedded":
        return Broker("embedded", request.getfixturevalue("stack").kafka)
    return Broker("kafka", request.getfixturevalue("kafka_bootstrap"))


@pytest.fixture
def settings(broker: Broker, stack: Stack) -> Settings:
    """Settings of one test's own, its topics created."""
    chosen = make_settings(broker, stack)
    create_topics(
        chosen.kafka_access,
        chosen.topics,
        partitions=PARTITIONS,
        replication=-1,
    )
    return chosen


@pytest.fixture(scope="session")
def one_worker(broker: Broker, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """A worker process that tests share which do it no harm; they tell their posts apart by id."""
    chosen = make_settings(broker, stack)
    with running_worker(chosen, tmp_path_factory.mktemp("worker") / "log") as worker:
        yield worker


@pytest.fixture
def shared_worker(one_worker: RunningWorker) -> RunningWorker:
    """That worker, once it has counted what the test before saw in Kafka: answers are counted after Redis has them."""
    await_true(one_worker.idle, within_s=60)
    return one_worker
