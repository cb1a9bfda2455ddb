"""Whatever was written is read, or something that stands for it: odd header names, any codec, damage, sheer size."""

from typing import Any

import pytest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from emostream.connectors import unpacking
from emostream.connectors.producer import MOST_REQUEST_BYTES

CODECS = [0, 1, 2, 3, 4]
"""none, gzip, snappy, lz4, zstd"""


class RawName(str):
    """A header's name that a hand-made client writes as these bytes."""

    def encode(self, *_: Any) -> bytes:
        return b"na\xffme"


def batch(headers: list[tuple[str, bytes]], *, compression: int, offset: int = 0, value: bytes = b"v%d") -> bytes:
    builder = _DefaultRecordBatchBuilderPy(
        magic=2, compression_type=compression, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=100_000_000,
    )  # fmt: skip
    for number in range(3):
        content = value.replace(b"%d", b"%d" % number)
        builder.append(number, timestamp=1, key=b"k", value=content, headers=headers if number == 1 else [])
    built = bytearray(builder.build())
    built[:8] = offset.to_bytes(8, "big")  # a broker writes the offset in front; it is outside the checksum
    return bytes(built)


@pytest.mark.parametrize("compression", CODECS)
def test_a_name_that_is_no_utf8_is_shown_and_nothing_else_changes(compression: int) -> None:
    plain = batch([("content-type", b"audio/ogg")], compression=compression)
    odd = batch([(RawName("x"), b"\xff"), ("content-type", b"audio/ogg")], compression=compression, offset=3)
    records = unpacking._ForgivingRecords(plain + odd + plain)
    read = []
    while records.has_next():
        each = records.next_batch()
        assert each.validate_crc()
        assert not each.is_control_batch
        read.append([(record.offset, record.key, record.value, list(record.headers)) for record in each])
    names = [("content-type", b"audio/ogg")]
    assert read[0] == read[2] == [(0, b"k", b"v0", []), (1, b"k", b"v1", names), (2, b"k", b"v2", [])]
    assert read[1] == [(3, b"k", b"v0", []), (4, b"k", b"v1", [("na\\xffme", b"\xff"), *names]), (5, b"k", b"v2", [])]


def read(fetched: bytes) -> list:
    records = unpacking._ForgivingRecords(fetched)
    found = []
    while records.has_next():
        found += list(records.next_batch())
    return found


@pytest.mark.parametrize("damage", ["codec", "payload"])
def test_a_batch_that_cannot_be_unpacked_stands_there_record_by_record(damage: str) -> None:
    plain, broken = batch([], compression=0), bytearray(batch([], compression=1, offset=3))
    if damage == "codec":
        broken[22] |= 7  # the low bits of the attributes; there is no codec 7
    else:
        broken[70:] = bytes(len(broken) - 70)
    found = read(plain + bytes(broken) + plain)
    assert [record.value for record in found] == [b"v0", b"v1", b"v2", None, None, None, b"v0", b"v1", b"v2"]
    assert [record.offset for record in found[3:6]] == [3, 4, 5]
    (name, why) = found[4].headers[0]
    assert name == unpacking.UNREADABLE
    assert why


@pytest.mark.parametrize("compression", CODECS[1:])
def test_headers_that_swell_are_none_that_can_be_read(compression: int) -> None:
    found = read(batch([("a", bytes(2_000_000))], compression=compression))
    assert [record.value for record in found] == [b"v0", None, b"v2"]
    assert dict(found[1].headers) == {unpacking.UNREADABLE: b"key and headers (1) take 2000102 bytes of memory"}


def test_many_headers_that_say_nothing_take_memory_all_the_same() -> None:
    found = read(batch([("", b"")] * 12_000, compression=0))
    assert [record.value for record in found] == [b"v0", None, b"v2"]
    assert dict(found[1].headers) == {unpacking.UNREADABLE: b"key and headers (12000) take 1200001 bytes of memory"}


@pytest.mark.parametrize("compression", CODECS[1:])
def test_a_value_that_swells_is_cut(compression: int) -> None:
    for record in read(batch([("a", b"b")], compression=compression, value=b"x" * 3_000_000)):
        assert record.value == b"x" * MOST_REQUEST_BYTES
        assert dict(record.headers)[unpacking.WHOLE_BYTES] == b"3000000"
