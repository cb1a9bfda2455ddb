"""Real services that tests break: brokers, a Redis, and the network between them and the worker."""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from support import KAFKA_SCRIPT

from emostream.streams.stack import free_port, running_redis

_HOST = "127.0.0.1"


class Cluster:
    """An Apache Kafka of a test's own, of one broker or several.

    Args:
        folder: Where its data lies; it survives the brokers.
        nodes: Brokers; with three, topics have three replicas, of which two must confirm.
        options: More for the start script: `--secure`.
    """

    def __init__(self, folder: Path, *, nodes: int = 1, options: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._options = ("--nodes", str(nodes), *options)
        self.facts: dict[str, str] = {}

    @property
    def bootstrap(self) -> str:
        """Its addresses."""
        return self.facts["bootstrap"]

    def start(self) -> None:
        """Start what does not run, on the ports and data of before.

        The script draws an id; one in 64 begins with a dash, which Kafka's own tool takes for an option: it draws anew.
        """
        for attempt in range(4):
            try:
                self.facts = json.loads(self._script("start", *self._options))
            except AssertionError as failed:
                if attempt == 3 or "--cluster-id/-t: expected one argument" not in str(failed):
                    raise
            else:
                return

    def start_behind(self, port: int) -> None:
        """Start one broker that tells clients to come by another port."""
        self.start()
        self.stop()
        properties = self._folder / "node-1" / "server.properties"
        told = re.sub(r"(?m)^(advertised\.listeners=CLIENT://[^:]+):\d+", rf"\1:{port}", properties.read_text())
        properties.write_text(told)
        self.start()

    def stop(self, *, node: int = 0, kill: bool = False) -> None:
        """Stop one broker, or all; with SIGKILL if wished."""
        self._script("stop", *self._node(node), *["--kill"] * kill)

    def pause(self) -> None:
        """Let every broker hang."""
        self._script("pause")

    def resume(self) -> None:
        """Let them go on."""
        self._script("resume")

    def tool(self, *arguments: str) -> str:
        """Run one of Kafka's own tools."""
        return self._script("tool", *arguments)

    def _node(self, node: int) -> list[str]:
        return ["--node", str(node)] if node else []

    def _script(self, command: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, KAFKA_SCRIPT, command, self._folder, *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextlib.contextmanager
def running_cluster(folder: Path, *, nodes: int = 1, options: tuple[str, ...] = ()) -> Iterator[Cluster]:
    """Run an Apache Kafka, and end it with the block."""
    cluster = Cluster(folder, nodes=nodes, options=options)
    try:
        cluster.start()
        yield cluster
    finally:
        with contextlib.suppress(AssertionError):
            cluster.stop(kill=True)


class BreakableRedis:
    """A Redis of a test's own that comes back on its port, empty."""

    def __init__(self) -> None:
        self._port = free_port(0)
        self._running = contextlib.ExitStack()
        self.url = ""

    def start(self) -> None:
        """Start it."""
        self.url = self._running.enter_context(running_redis(self._port))

    def stop(self) -> None:
        """End it; what it held is gone."""
        self._running.close()


class Wire:
    """A TCP connection's way, which can be cut and slowed down. Runs in a thread of its own.

    Args:
        to_port: Where it leads.

    Attributes:
        port: Where it begins.
        delay_s: How long bytes take on their way there.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server((_HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay_s = 0.0

    def __enter__(self) -> "Wire":
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(asyncio.start_server(self._carry, sock=self._listener))
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()
        self._loop.close()

    def cut(self) -> None:
        """Break every connection, and every one that is tried, until `mend`."""
        self._cut = True
        self._call(self._close())

    def mend(self) -> None:
        """Let connections through again."""
        self._cut = False

    def _call(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)  # type: ignore[arg-type]

    async def _close(self) -> None:
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(_HOST, self._to_port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there_writer}
        await asyncio.gather(
            self._pump(reader, there_writer, slowly=True), self._pump(there_reader, writer, slowly=False)
        )
        self._open -= {writer, there_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slowly: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if slowly and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()


def resident_mib(pid: int) -> float:
    """Return the memory of a process and of its children, MiB."""
    found = subprocess.run(
        ["ps", "-o", "rss=", "--pid", str(pid), "--ppid", str(pid)], check=True, capture_output=True, text=True
    )
    return sum(map(int, found.stdout.split())) / 1024
