"""Records as aiokafka unpacks them, whatever strangers have written. Switched on by whoever builds a consumer.

aiokafka 0.14 raises before anyone sees a record when a header's name is no UTF-8 or a batch cannot be unpacked, and
then again at every attempt: one hand-made record would end every worker that reads its partition. Here a name is shown
as far as it goes, and what cannot be unpacked comes as records without key and value that say why. Brokers bound what
was sent, which may unpack to a thousand times as much: values are cut to what a request may have, and a record with
a key and headers larger than that counts as one that cannot be unpacked.
"""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

from emostream.connectors.messages import size_of
from emostream.connectors.producer import MOST_REQUEST_BYTES

_log = logging.getLogger(__name__)

_LENGTH_AT, _LENGTH_ENDS = 8, 12
"""Where a batch says how many bytes follow (Kafka's protocol: eight bytes of offset come first)."""


class Noticed(str):
    """Name of a header that was added here. A stranger's header may be called the same, but is never of this type."""

    __slots__ = ()


UNREADABLE, WHOLE_BYTES = Noticed("emostream-unreadable"), Noticed("emostream-whole-bytes")
"""Why a record could not be unpacked; how large a value was that was cut."""


def unpack_whatever_comes() -> None:
    """Have aiokafka's consumers read on over what they cannot read, from now on."""
    fetcher.MemoryRecords = _ForgivingRecords


class _Unpacked(NamedTuple):
    """A record as aiokafka's fetcher wants it; times in milliseconds since 1970."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


class _ForgivingRecords:
    """The batches of a fetch."""

    def __init__(self, fetched: bytes) -> None:
        self._fetched = fetched
        self._position = 0
        self._fast = MemoryRecords(fetched)

    def has_next(self) -> bool:
        return bool(self._fast.has_next())

    def size_in_bytes(self) -> int:
        return len(self._fetched)

    def next_batch(self) -> "_ForgivingBatch":
        length = int.from_bytes(self._fetched[self._position + _LENGTH_AT : self._position + _LENGTH_ENDS])
        start, self._position = self._position, self._position + _LENGTH_ENDS + length
        return _ForgivingBatch(self._fast.next_batch(), self._fetched[start : self._position])


class _ForgivingBatch:
    """A batch as aiokafka's fast parser has it; its records come from a patient one where the fast one gives up."""

    def __init__(self, fast: Any, whole: bytes) -> None:
        self._fast = fast
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)

    def __next__(self) -> Any:
        return next(self._fast)

    def __iter__(self) -> Iterator[Any]:
        return map(_bounded, self._records())

    def _records(self) -> list[Any]:
        """Return every record, or what stands for it."""
        try:
            try:
                return list(self._fast)
            except (UnicodeDecodeError, CorruptRecordException):  # the latter where aiokafka has no extensions
                return list(_PatientBatch(self._whole))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # codecs raise what they like; nothing a stranger sent ends the worker
            _log.error("offsets %d to %d cannot be unpacked: %r", self._fast.base_offset, self._fast.next_offset, error)
            return [
                _unreadable(offset, self._fast.max_timestamp, 0, repr(error))
                for offset in range(self._fast.base_offset, self._fast.next_offset)
            ]


def _bounded(record: Any) -> Any:
    """Return a record whose value, and key and headers together, are no larger than a request may be."""
    named_bytes = size_of(record.key, None, record.headers)
    if named_bytes > MOST_REQUEST_BYTES:
        why = f"key and headers ({len(record.headers)}) take {named_bytes} bytes of memory"
        return _unreadable(record.offset, record.timestamp, record.timestamp_type, why)
    if record.value is None or len(record.value) <= MOST_REQUEST_BYTES:
        return record
    headers = [*record.headers, (WHOLE_BYTES, str(len(record.value)).encode())]
    value = record.value[:MOST_REQUEST_BYTES]
    return _Unpacked(record.offset, record.timestamp, record.timestamp_type, record.key, value, headers)


def _unreadable(offset: int, timestamp: int, timestamp_type: int, why: str) -> _Unpacked:
    """Return what stands for a record that cannot be read."""
    return _Unpacked(offset, timestamp, timestamp_type, None, None, [(UNREADABLE, why.encode())])


class _PatientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # meant to be final: nobody else has its parser
    """aiokafka's parser in Python, over bytes that decode whatever they hold."""

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer: bytearray = _Decodable(self._buffer)


class _Decodable(bytearray):
    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return _Decodable(part) if isinstance(key, slice) else part

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)
