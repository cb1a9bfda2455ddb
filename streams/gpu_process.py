"""The GPU worker's process: owns the device, scores batches. Started by `gpu_worker`, never imported by it.

Batches come in two lanes, texts and clips; each is answered in order. A thread reads requests, a thread per lane makes
its next batch ready (tokenises, decodes) while the main thread has the device compute: a batch of texts, a few seconds
of audio, a batch of texts … The process ends when the socket to its parent closes, whatever it is doing.
"""

import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emostream.model.samples import BatchOutcome
from emostream.streams.frames import (
    LANES,
    LENGTH_BYTES,
    Fault,
    Lane,
    Ready,
    Reply,
    Request,
    ScorerOptions,
    Unusable,
    decode_request,
    encode_frame,
    frame_length,
)

if TYPE_CHECKING:
    from emostream.model.queries import PreparedQueries
    from emostream.model.scorer import EmotionScorer

_log = logging.getLogger(__name__)

_PREPARED_AHEAD = 2
"""Batches of a lane made ready ahead of the device; more would only move what waits from one queue to another."""


def serve(options: ScorerOptions, parent: socket.socket) -> None:
    """Load the model, warm it up, say so, and answer requests until the parent is gone."""
    try:
        scorer = _load(options)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent must be able to say it
        parent.sendall(encode_frame(Unusable(error=f"{type(error).__name__}: {error}")))
        return
    parent.sendall(encode_frame(Ready(info=scorer.info)))
    arrival = threading.Semaphore(0)
    lanes = {lane: _LaneQueue(scorer, arrival) for lane in LANES}
    threading.Thread(target=_read_requests, args=(parent, lanes), daemon=True).start()
    _compute_in_turn(scorer, parent, lanes, arrival)


class _LaneQueue:
    """The batches of one lane: as they were sent, and ready for the device."""

    def __init__(self, scorer: "EmotionScorer", arrival: threading.Semaphore) -> None:
        self._scorer = scorer
        self._arrival = arrival
        self._sent: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._ready: queue.Queue[tuple[int, PreparedQueries | Exception]] = queue.Queue(_PREPARED_AHEAD)
        threading.Thread(target=self._prepare, daemon=True).start()

    def add(self, request: Request) -> None:
        """Add what was sent."""
        self._sent.put(request)

    def next_ready(self) -> "tuple[int, PreparedQueries | Exception] | None":
        """Return the next batch that is ready, if there is one."""
        try:
            return self._ready.get_nowait()
        except queue.Empty:
            return None

    def _prepare(self) -> None:
        from emostream.model.queries import prepare_queries

        while True:
            request = self._sent.get()
            prepared: PreparedQueries | Exception
            try:
                prepared = prepare_queries(self._scorer, request.queries)
            except Exception as error:  # noqa: BLE001  # answered as a fault, in its place in the order
                prepared = error
            self._ready.put((request.id, prepared))
            self._arrival.release()


def _compute_in_turn(
    scorer: "EmotionScorer", parent: socket.socket, lanes: dict[Lane, _LaneQueue], arrival: threading.Semaphore
) -> None:
    """Give each lane a step of its batch in turn, for ever; wait while no lane has one."""
    under_way: dict[Lane, tuple[int, Generator[None, None, BatchOutcome]]] = {}
    while True:
        for lane, waiting in lanes.items():
            if lane not in under_way and (ready := waiting.next_ready()) is not None:
                under_way[lane] = ready[0], _steps(scorer, ready[1])
            if lane in under_way and (reply := _step(scorer, *under_way[lane])) is not None:
                del under_way[lane]
                parent.sendall(encode_frame(reply))
        if not under_way:
            arrival.acquire()


def _steps(scorer: "EmotionScorer", prepared: "PreparedQueries | Exception") -> Generator[None, None, BatchOutcome]:
    from emostream.model.queries import answer_in_steps

    if isinstance(prepared, Exception):
        raise prepared
    return (yield from answer_in_steps(scorer, prepared))


def _step(scorer: "EmotionScorer", request_id: int, steps: Generator[None, None, BatchOutcome]) -> Reply | Fault | None:
    """Take one step of a batch, and return its reply after the last; the only place where any exception is caught."""
    try:
        next(steps)
        return None
    except StopIteration as end:
        return Reply(id=request_id, batch=end.value)
    except Exception as error:  # noqa: BLE001  # the model may raise anything; the parent decides what follows
        _log.warning("the model raised on a batch: %s", type(error).__name__)
        _end_unless_sound(scorer)
        return Fault(id=request_id, error=f"{type(error).__name__}: {error}")


def _end_unless_sound(scorer: "EmotionScorer") -> None:
    """End the process if it cannot even score what it scored at its start.

    A device that has failed for good raises on every batch; no post is to blame for that. The next process is ready
    only when its device works.
    """
    try:
        scorer.warm_up()
    except Exception:  # noqa: BLE001  # said in the log; the parent starts another process
        _log.exception("the device or the model has failed; ending")
        os._exit(1)


def _read_requests(parent: socket.socket, lanes: dict[Lane, _LaneQueue]) -> None:
    """Read requests until the parent is gone."""
    while (request := _read_request(parent)) is not None:
        lanes[request.lane].add(request)
    os._exit(0)  # the device may be in the middle of a batch that nobody waits for any more


def _read_request(parent: socket.socket) -> Request | None:
    head = _receive(parent, LENGTH_BYTES)
    body = _receive(parent, frame_length(head)) if head else None
    return decode_request(body) if body else None


def _receive(parent: socket.socket, size: int) -> bytes | None:
    """Return exactly so many bytes, or None if the parent is gone."""
    received = bytearray()
    while len(received) < size:
        try:
            part = parent.recv(size - len(received))
        except OSError:
            return None
        if not part:
            return None
        received += part
    return bytes(received)


def _load(options: ScorerOptions) -> "EmotionScorer":
    import torch

    from emostream.model.checkpoint import SHIPPED
    from emostream.model.scorer import EmotionScorer

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    folder = Path(options.checkpoint) if options.checkpoint else SHIPPED
    scorer = EmotionScorer.load(
        folder, device=options.device, precision=options.precision, attributes=options.attributes
    )
    scorer.warm_up()
    return scorer


def main() -> None:
    """Run as `python -m emostream.streams.gpu_process OPTIONS-AS-JSON`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides the end
    options = msgspec.json.decode(sys.argv[1], type=ScorerOptions)
    with socket.socket(fileno=options.parent_fd) as parent:
        serve(options, parent)


if __name__ == "__main__":
    main()
