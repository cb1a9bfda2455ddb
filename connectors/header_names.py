"""Record headers whose names are no UTF-8, read all the same.

Kafka's protocol says that a header's name is a string, and brokers do not look. aiokafka 0.14 raises on a name that is
none before anyone sees the record, and then again at every attempt: one hand-made record would end every worker that
reads its partition. Called once by whoever builds a consumer.
"""

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

_LENGTH_AT, _LENGTH_ENDS = 8, 12
"""Where a batch says how many bytes follow (Kafka's protocol: eight bytes of offset come first)."""


def read_any_header_name() -> None:
    """Have aiokafka's consumers show bytes of a header's name that are no UTF-8 in hexadecimal, from now on."""
    fetcher.MemoryRecords = _ForgivingRecords


class _ForgivingRecords:
    """The batches of a fetch. A batch that aiokafka's fast parser cannot read is given to a patient one."""

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
    """A batch as the fast parser has it; only its records may come from the patient one."""

    def __init__(self, fast: Any, whole: bytes) -> None:
        self._fast = fast
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)

    def __next__(self) -> Any:
        return next(self._fast)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._fast))
        except (UnicodeDecodeError, CorruptRecordException):  # the second where aiokafka runs without its extensions
            return iter(_PatientBatch(self._whole))


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
