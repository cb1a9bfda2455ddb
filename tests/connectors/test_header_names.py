"""A record whose header names are no UTF-8 is read like any other, with aiokafka's fast parser and without."""

from typing import Any

import pytest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from emostream.connectors import header_names


class RawName(str):
    """A header's name that a hand-made client writes as these bytes."""

    def encode(self, *_: Any) -> bytes:
        return b"na\xffme"


def batch(headers: list[tuple[str, bytes]], *, compression: int, offset: int = 0) -> bytes:
    builder = _DefaultRecordBatchBuilderPy(
        magic=2, compression_type=compression, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=100_000,
    )  # fmt: skip
    for number in range(3):
        builder.append(number, timestamp=1, key=b"k", value=b"v%d" % number, headers=headers if number == 1 else [])
    built = bytearray(builder.build())
    built[:8] = offset.to_bytes(8, "big")  # a broker writes the offset in front; it is outside the checksum
    return bytes(built)


@pytest.mark.parametrize("compression", [0, 1])  # none, gzip
def test_a_name_that_is_no_utf8_is_shown_and_nothing_else_changes(compression: int) -> None:
    plain = batch([("content-type", b"audio/ogg")], compression=compression)
    odd = batch([(RawName("x"), b"\xff"), ("content-type", b"audio/ogg")], compression=compression, offset=3)
    records = header_names._ForgivingRecords(plain + odd + plain)
    read = []
    while records.has_next():
        each = records.next_batch()
        assert each.validate_crc()
        assert not each.is_control_batch
        read.append([(record.offset, record.key, record.value, list(record.headers)) for record in each])
    names = [("content-type", b"audio/ogg")]
    assert read[0] == read[2] == [(0, b"k", b"v0", []), (1, b"k", b"v1", names), (2, b"k", b"v2", [])]
    assert read[1] == [(3, b"k", b"v0", []), (4, b"k", b"v1", [("na\\xffme", b"\xff"), *names]), (5, b"k", b"v2", [])]
