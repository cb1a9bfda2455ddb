"""What the stream worker and its GPU worker say to each other: msgpack over a socket, four bytes of length in front.

Nothing is pickled. A reply carries the number of the request it answers; requests of a lane are answered in order.
"""

import struct
from typing import Literal, Protocol

import msgspec

from emostream.model.samples import BatchOutcome, ModelInfo, Query

Lane = Literal["texts", "clips"]
"""Batches of texts, which take milliseconds each, and batches with clips, which may take seconds: the GPU worker
computes now some of these and now some of those, so that texts never wait behind a minute of speech."""

LANES: tuple[Lane, ...] = ("texts", "clips")

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size


class ScorerOptions(msgspec.Struct, frozen=True):
    """What the GPU worker is started with.

    Attributes:
        checkpoint: Checkpoint folder; empty for the shipped one.
        device: `auto`, `cpu`, `cuda` …
        precision: `auto`, `float32` or `bfloat16`.
        threads: CPU threads; 0 takes one for each core.
        attributes: Heads whose answers come along; empty for the usual ones.
        parent_fd: Number of the socket that it inherits.
    """

    checkpoint: str
    device: str
    precision: str
    threads: int
    attributes: tuple[str, ...] = ()
    parent_fd: int = -1


class Request(msgspec.Struct, frozen=True):
    """A batch to score."""

    id: int
    lane: Lane
    queries: list[Query]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The GPU worker is warm."""

    info: ModelInfo


class Unusable(msgspec.Struct, frozen=True, tag="unusable"):
    """The GPU worker cannot start, and why; it ends."""

    error: str


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """The answers for a request."""

    id: int
    batch: BatchOutcome


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """The model raised on a request."""

    id: int
    error: str


class Sign(msgspec.Struct, frozen=True, tag="sign"):
    """A step of a lane's batch is done, and there are more."""

    lane: Lane


FromScorer = Ready | Unusable | Reply | Fault | Sign

_from_scorer: msgspec.msgpack.Decoder[FromScorer] = msgspec.msgpack.Decoder(FromScorer)
_request = msgspec.msgpack.Decoder(Request)


class _ReadsExactly(Protocol):
    async def readexactly(self, n: int, /) -> bytes: ...


def encode_frame(message: Request | FromScorer) -> bytes:
    """Return a message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


def frame_length(head: bytes) -> int:
    """Return how many bytes follow."""
    length: int = _LENGTH.unpack(head)[0]
    return length


def decode_request(body: bytes) -> Request:
    """Decode what the stream worker says."""
    return _request.decode(body)


async def read_from_scorer(stream: _ReadsExactly) -> FromScorer:
    """Read what the GPU worker says next.

    Raises:
        asyncio.IncompleteReadError: It ended.
    """
    body = await stream.readexactly(frame_length(await stream.readexactly(LENGTH_BYTES)))
    return _from_scorer.decode(body)
