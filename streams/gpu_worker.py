"""The GPU worker, seen from the stream worker: starts the child process, feeds it, starts it again when it dies.

A batch that was with a dead child fails with `ScorerGone`; whoever sent it sends it again, and waits until the next
child is warm. Which of several batches killed it nobody knows: each is sent again alone, and then it shows, if the next
child answers what every sound one can (`control`). Nothing here waits for a child that is gone: its end fails whatever
waits for it.
"""

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import msgspec
from prometheus_client import Counter

from emostream.model.samples import BatchOutcome, ModelInfo, Query
from emostream.streams.control import CONTROLS
from emostream.streams.errors import ScorerGone, ScorerUnusable, ScoringFailed
from emostream.streams.frames import (
    LANES,
    Fault,
    Lane,
    Ready,
    Reply,
    Request,
    ScorerOptions,
    Sign,
    Unusable,
    encode_frame,
    read_from_scorer,
)

_log = logging.getLogger(__name__)

START_DEADLINE_S = 300.0
"""Loading and warm-up: seconds on a CPU, a minute or more where CUDA kernels are compiled for the first time."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
"""Pause before starting again a child that ended before it was ready; doubles each time."""

_MOST_CONTROL_DEATHS = 2
"""So many children that died of a control, and no batch answered in between: it is not what they are asked."""


class GpuWorker:
    """A scorer in a process of its own.

    Args:
        options: What the child is started with.
        deadline_s: Longest time between two signs of a lane while its batches wait; a child that takes longer is
            killed.
        restarts: Counts restarts by cause.
    """

    def __init__(self, options: ScorerOptions, *, deadline_s: float, restarts: Counter) -> None:
        self._options = options
        self._deadline_s = deadline_s
        self._restarts = restarts
        self._child: _Child | None = None
        self._info: ModelInfo | None = None
        self._warm = asyncio.Event()
        self._door = _Door()
        self._control_deaths = 0
        self._supervisor: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] | None = None

    async def start(self) -> ModelInfo:
        """Start the first child, and return once it is warm.

        Raises:
            ScorerUnusable: It ended before; a later one that does is started again instead.
        """
        self._child, self._info = await _Child.start(self._options)
        self._warm.set()
        self._failure = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(self._child), name="gpu-worker-supervisor")
        return self._info

    @property
    def ready(self) -> bool:
        """Whether a warm child is there."""
        return self._warm.is_set()

    @property
    def pid(self) -> int | None:
        """The child's process id, for logs and fault tests."""
        return self._child.pid if self._child else None

    async def score(self, lane: Lane, queries: Sequence[Query], *, alone: bool = False) -> BatchOutcome:
        """Score a batch, waiting for a warm child first.

        Args:
            lane: Which batches it waits behind.
            queries: What is asked.
            alone: Have the child to itself: if it dies then, and the next one is sound, this batch has killed it.

        Raises:
            ScorerGone: The child ended; send the batch again, alone.
            ScoringFailed: The model raised on this batch.
            ScorerUnusable: Children start, and die of whatever they are asked; `wait_failed` raises it, too.
        """
        async with self._door.passed(alone=alone):
            try:
                outcome = await self._ask(lane, queries)
            except _ChildEnded as ended:
                raise ScorerGone(suspect=alone and await self._is_sound(lane)) from ended
        self._control_deaths = 0
        return outcome

    async def wait_failed(self) -> None:
        """Wait until no child can be had any more, and raise why; for as long as all is well, never return."""
        assert self._supervisor is not None and self._failure is not None, "start it first"  # noqa: S101, PT018
        ended, _ = await asyncio.wait({self._supervisor, self._failure}, return_when=asyncio.FIRST_COMPLETED)
        for each in ended:
            each.result()

    async def stop(self) -> None:
        """End the child; batches that are with it fail."""
        self._warm.clear()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._child is not None:
            await self._child.kill()

    async def _ask(self, lane: Lane, queries: Sequence[Query]) -> BatchOutcome:
        await self._warm.wait()
        assert self._child is not None  # noqa: S101  # a warm child is there
        return await self._child.score(lane, queries)

    async def _is_sound(self, lane: Lane) -> bool:
        """Say whether the next child answers its lane's control, whatever it says.

        Raises:
            ScorerUnusable: Children have died of controls, and of whatever else they were asked.
        """
        before = self._control_deaths
        while self._control_deaths < _MOST_CONTROL_DEATHS:
            try:
                with contextlib.suppress(ScoringFailed):  # it lives, and has looked after its device itself
                    await self._ask(lane, CONTROLS[lane])
                return self._control_deaths == before
            except _ChildEnded:
                self._control_deaths += 1
                _log.error("GPU worker ended of what it must be able to answer (%s)", lane)
        failure = ScorerUnusable(f"the model starts, and dies of whatever it is asked about {lane}")
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(failure)
        raise failure

    async def _supervise(self, child: "_Child") -> None:
        """Watch over the child, and replace it for as long as the worker runs."""
        while True:
            cause = await child.outlive(deadline_s=self._deadline_s)
            self._warm.clear()
            self._restarts.labels(cause).inc()
            _log.error("GPU worker %d ended (%s); starting another", child.pid, cause)
            self._child = child = await self._replace()
            self._warm.set()

    async def _replace(self) -> "_Child":
        """Start another child, until one is warm.

        Raises:
            ScorerUnusable: It is another model, or runs on another device, than answers and metrics name.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                child, info = await _Child.start(self._options)
                break
            except (ScorerUnusable, OSError) as error:  # OSError: no process or memory to be had just now
                _log.error("GPU worker does not start, next try in %.1f s: %s", pause_s, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if info != self._info:
            await child.kill()
            raise ScorerUnusable(f"the model has become {info}; answers and metrics of this worker name {self._info}")
        return child


class _ChildEnded(Exception):
    """The child that a batch was with has ended."""


class _Sent(NamedTuple):
    """A batch that is with the child."""

    lane: Lane
    answer: "asyncio.Future[BatchOutcome]"


class _Door:
    """Lets any number of batches in together, or one alone."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.asynccontextmanager
    async def passed(self, *, alone: bool) -> AsyncIterator[None]:
        """Hold the place of a batch with the child; whoever comes while one waits to be alone comes after it."""
        async with self._closed:
            if alone:
                await self._empty.wait()
                yield
                return
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()


class _Child:
    """One child process, the socket to it, and the batches that are with it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, _Sent] = {}
        self._sent = 0
        self._last_sign_s = dict.fromkeys(LANES, time.monotonic())
        self.pid = process.pid

    @classmethod
    async def start(cls, options: ScorerOptions) -> "tuple[_Child, ModelInfo]":
        """Start a child process, and return it once it is warm; whatever comes in between ends it, too.

        Raises:
            ScorerUnusable: It ended first, or took longer than `START_DEADLINE_S`.
            OSError: There was no process to be had.
        """
        spawning = asyncio.create_task(cls._spawn(options))
        try:
            child = await asyncio.shield(spawning)
            return child, await child._become_ready()
        except BaseException:
            with contextlib.suppress(OSError):
                await (await spawning).kill()
            raise

    @classmethod
    async def _spawn(cls, options: ScorerOptions) -> "_Child":
        ours, theirs = socket.socketpair()
        with theirs:
            told = msgspec.structs.replace(options, parent_fd=theirs.fileno())
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "emostream.streams.gpu_process", msgspec.json.encode(told).decode(),
                    pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    async def _become_ready(self) -> ModelInfo:
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                first = await read_from_scorer(self._reader)
        except TimeoutError as error:
            raise ScorerUnusable(f"not ready after {START_DEADLINE_S:.0f} s") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ScorerUnusable(f"it ended with exit code {await self._process.wait()}") from error
        except msgspec.DecodeError as error:
            raise ScorerUnusable(f"it says what nobody understands: {error}") from error
        if isinstance(first, Ready):
            return first.info
        raise ScorerUnusable(first.error if isinstance(first, Unusable) else "it spoke before it was ready")

    async def score(self, lane: Lane, queries: Sequence[Query]) -> BatchOutcome:
        """Send a batch and wait for its answer."""
        self._sent += 1
        if not any(sent.lane == lane for sent in self._waiting.values()):
            self._last_sign_s[lane] = time.monotonic()
        answer: asyncio.Future[BatchOutcome] = asyncio.get_running_loop().create_future()
        self._waiting[self._sent] = _Sent(lane, answer)
        self._writer.write(encode_frame(Request(id=self._sent, lane=lane, queries=list(queries))))
        with contextlib.suppress(OSError):  # the child is gone: its end fails this answer, too
            await self._writer.drain()
        return await answer

    async def outlive(self, *, deadline_s: float) -> str:
        """Hand answers out until the child ends; end it if it gives no sign for too long.

        Returns:
            The cause of its end: `died` or `deadline`.
        """
        watch = asyncio.create_task(self._end_when_silent(deadline_s))
        try:
            while True:
                self._hand_out(await read_from_scorer(self._reader))
        except (asyncio.IncompleteReadError, OSError, msgspec.DecodeError):
            return "deadline" if watch.done() else "died"
        finally:
            watch.cancel()
            await self.kill()

    async def kill(self) -> None:
        """End the process at once, and fail what waits for it."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        self._writer.close()
        for sent in self._waiting.values():
            if not sent.answer.done():
                sent.answer.set_exception(_ChildEnded())
        self._waiting.clear()

    async def _end_when_silent(self, deadline_s: float) -> None:
        while self._silence_s() < deadline_s:  # noqa: ASYNC110  # a clock
            await asyncio.sleep(deadline_s / 10)
        _log.error("GPU worker %d gave no answer for %.1f s", self.pid, deadline_s)
        with contextlib.suppress(ProcessLookupError):  # it ended while it was being judged
            self._process.kill()

    def _silence_s(self) -> float:
        """Return for how long a lane with batches has had no answer."""
        waiting = {sent.lane for sent in self._waiting.values()}
        return max((time.monotonic() - self._last_sign_s[lane] for lane in waiting), default=0.0)

    def _hand_out(self, message: object) -> None:
        if isinstance(message, Sign):
            self._last_sign_s[message.lane] = time.monotonic()
        if not isinstance(message, Reply | Fault):
            return
        lane, answer = self._waiting.pop(message.id)
        self._last_sign_s[lane] = time.monotonic()
        if answer.done():
            return
        if isinstance(message, Reply):
            answer.set_result(message.batch)
        else:
            answer.set_exception(ScoringFailed(message.error))
