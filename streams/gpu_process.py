"""The GPU worker's process: owns the device, scores batches in order. Started by `gpu_worker`, never imported by it.

Two threads: one reads requests and tokenises the next batch while the other has the device compute this one. The
process ends when the socket to its parent closes, whatever it is doing.
"""

import logging
import os
import queue
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emostream.streams.frames import (
    LENGTH_BYTES,
    Fault,
    FromScorer,
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
    from emostream.model.scorer import EmotionScorer, PreparedBatch

_log = logging.getLogger(__name__)

_PREPARED_AHEAD = 2
"""Batches tokenised ahead of the device; more would only move waiting posts from one queue to another."""


def serve(options: ScorerOptions, parent: socket.socket) -> None:
    """Load the model, warm it up, say so, and answer requests until the parent is gone."""
    try:
        scorer = _load(options)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent must be able to say it
        parent.sendall(encode_frame(Unusable(error=f"{type(error).__name__}: {error}")))
        return
    parent.sendall(encode_frame(Ready(info=scorer.info)))
    prepared: queue.Queue[tuple[int, PreparedBatch | Exception]] = queue.Queue(_PREPARED_AHEAD)
    threading.Thread(target=_prepare, args=(scorer, parent, prepared), daemon=True).start()
    while True:
        parent.sendall(encode_frame(_answer(scorer, *prepared.get())))


def _answer(scorer: "EmotionScorer", request_id: int, batch: "PreparedBatch | Exception") -> FromScorer:
    """Score one batch; the worker loop's only place where any exception is caught."""
    try:
        if isinstance(batch, Exception):
            raise batch
        return Reply(id=request_id, batch=scorer.compute(batch))
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


def _prepare(
    scorer: "EmotionScorer",
    parent: socket.socket,
    prepared: "queue.Queue[tuple[int, PreparedBatch | Exception]]",
) -> None:
    """Read requests and tokenise them, until the parent is gone."""
    from emostream.model.scorer import Item

    while (request := _read_request(parent)) is not None:
        try:
            prepared.put((request.id, scorer.prepare([Item(text=text) for text in request.texts])))
        except Exception as error:  # noqa: BLE001  # answered as a fault, in its place in the order
            prepared.put((request.id, error))
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
