"""The GPU worker's process: owns the device, scores batches. Started by `gpu_worker`, never imported by it.

Batches come in two lanes, texts and clips; each is answered in order. A thread reads requests, another makes the next
batch ready while the main thread has the device compute, now a batch of texts, now a few seconds of audio (`turns`).
The process ends when the socket to its parent closes, whatever it is doing.
"""

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emostream.model.samples import NOT_A_NUMBER, BatchOutcome, Query, Unscorable
from emostream.streams.frames import (
    LANES,
    LENGTH_BYTES,
    Fault,
    Lane,
    Ready,
    Reply,
    Request,
    ScorerOptions,
    Sign,
    Unusable,
    decode_request,
    encode_frame,
    frame_length,
)
from emostream.streams.stopping import STOP_SIGNALS
from emostream.streams.turns import Turns

if TYPE_CHECKING:
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
    # On a CPU a decoder beside the model takes a core from it, and its threads wait for each other: clips are decoded
    # in turn with everything else. Tokenising is too little work for that.
    lanes = {lane: _LaneQueue(scorer, arrival, ahead=lane == "texts" or scorer.info.device != "cpu") for lane in LANES}
    threading.Thread(target=_read_requests, args=(parent, lanes), daemon=True).start()
    _compute_in_turn(scorer, parent, lanes, arrival)


Steps = Generator[None, None, BatchOutcome]


class _LaneQueue:
    """The batches of one lane: as they were sent, and as steps to their answers.

    Args:
        scorer: The model.
        arrival: Told of each batch that can be begun.
        ahead: Make batches ready (tokenise, decode) in a thread, while others are computed; else as their first steps.
    """

    def __init__(self, scorer: "EmotionScorer", arrival: threading.Semaphore, *, ahead: bool) -> None:
        self._scorer = scorer
        self._arrival = arrival
        self._ahead = ahead
        self._sent: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._ready: queue.Queue[tuple[int, Steps]] = queue.Queue(_PREPARED_AHEAD if ahead else 0)
        if ahead:
            threading.Thread(target=self._prepare, daemon=True).start()

    def add(self, request: Request) -> None:
        """Add what was sent."""
        if self._ahead:
            self._sent.put(request)
        else:
            self._add_ready(request.id, _whole(self._scorer, request.queries))

    def next_ready(self) -> "tuple[int, Steps] | None":
        """Return the number and the steps of the next batch, if there is one."""
        try:
            return self._ready.get_nowait()
        except queue.Empty:
            return None

    def _prepare(self) -> None:
        while True:
            request = self._sent.get()
            try:
                steps = _rest(self._scorer, request.queries)
            except Exception as error:  # noqa: BLE001  # answered as a fault, in its place in the order
                steps = _raising(error)
            self._add_ready(request.id, steps)

    def _add_ready(self, request_id: int, steps: Steps) -> None:
        self._ready.put((request_id, steps))
        self._arrival.release()


def _whole(scorer: "EmotionScorer", queries: Sequence[Query]) -> Steps:
    """Make a batch ready and answer it, in steps."""
    from emostream.model.queries import answer_in_steps, prepare_in_steps

    prepared = yield from prepare_in_steps(scorer, queries)
    return (yield from answer_in_steps(scorer, prepared))


def _rest(scorer: "EmotionScorer", queries: Sequence[Query]) -> Steps:
    """Make a batch ready now, and return the steps to its answer."""
    from emostream.model.queries import answer_in_steps, prepare_in_steps
    from emostream.model.steps import exhaust

    return answer_in_steps(scorer, exhaust(prepare_in_steps(scorer, queries)))


def _raising(error: Exception) -> Steps:
    """Raise an error where a batch's steps would be taken."""
    yield from ()
    raise error


def _compute_in_turn(
    scorer: "EmotionScorer", parent: socket.socket, lanes: dict[Lane, _LaneQueue], arrival: threading.Semaphore
) -> None:
    """Take steps of the lanes' batches for ever, now of one and now of the other; wait while none has a batch."""
    under_way: dict[Lane, tuple[int, Steps]] = {}
    turns = Turns()
    while True:
        for lane, waiting in lanes.items():
            if lane not in under_way and (ready := waiting.next_ready()) is not None:
                under_way[lane] = ready
                turns.begin(lane)
        if not under_way:
            arrival.acquire()
            continue
        lane, started_s = turns.next_of(under_way), time.perf_counter()
        said = _step(scorer, *under_way[lane]) or Sign(lane)
        turns.pay(lane, time.perf_counter() - started_s)
        parent.sendall(encode_frame(said))
        if not isinstance(said, Sign):
            del under_way[lane]
            turns.end(lane)


def _step(scorer: "EmotionScorer", request_id: int, steps: Steps) -> Reply | Fault | None:
    """Take one step of a batch, and return its reply after the last; whatever the model raises is caught here."""
    try:
        next(steps)
        return None
    except StopIteration as end:
        said: Reply | Fault = Reply(id=request_id, batch=end.value)
        doubtful = any(isinstance(each, Unscorable) and each.reason == NOT_A_NUMBER for each in end.value.outcomes)
    except Exception as error:  # noqa: BLE001  # the model may raise anything; the parent decides what follows
        _log.warning("the model raised on a batch: %s", type(error).__name__)
        said, doubtful = Fault(id=request_id, error=f"{type(error).__name__}: {error}"), True
    if doubtful:
        _end_unless_sound(scorer)  # out here, its log does not show what the model said of the batch
    return said


def _end_unless_sound(scorer: "EmotionScorer") -> None:
    """End the process if it cannot even score the least that there is.

    A device that has failed for good raises on every batch, or answers with no number; no post is to blame for that.
    The next process is ready only when its device works.
    """
    try:
        scorer.probe()
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
    for number in STOP_SIGNALS:  # the parent decides the end
        signal.signal(number, signal.SIG_IGN)
    options = msgspec.json.decode(sys.argv[1], type=ScorerOptions)
    with socket.socket(fileno=options.parent_fd) as parent:
        serve(options, parent)


if __name__ == "__main__":
    main()
