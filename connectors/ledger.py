"""Which recordings of a folder were published and confirmed: the file that `ingest clips` goes on from.

One JSON line for each, appended once the broker has confirmed it; of two lines for one recording, the later counts.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from emostream.connectors.errors import RecordingsError
from emostream.connectors.recordings import Recording, Stamp

LEDGER = ".emostream-ingested"
"""Name of the file within the folder, if no other is asked for."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of one recording.

    Attributes:
        path: Relative to the folder, with slashes.
        size: Bytes of the recording.
        mtime_ns: When it was last changed, nanoseconds since 1970.
        id: Under which it was published.
        sidecar: Size and change of the file beside it.
    """

    path: str
    size: int
    mtime_ns: int
    id: str
    sidecar: Stamp | None = None


class Ledger:
    """The recordings that need not be published again.

    Args:
        file: Where it is kept; made if it is not there.
        again: Forget what it says and begin anew.

    Raises:
        RecordingsError: The file is something else, or cannot be read or written.
    """

    def __init__(self, file: Path, *, again: bool = False) -> None:
        self._file = file
        try:
            self._lines, whole_bytes = _read(file)
            with file.open("ab") as kept:
                kept.truncate(0 if again else whole_bytes)
        except OSError as error:
            raise self._unkept(error) from error
        if again:
            self._lines = {}

    def holds(self, recording: Recording) -> bool:
        """Say whether a recording was confirmed as it is now."""
        line = self._lines.get(recording.name)
        return line is not None and line == _line(recording, line.id)

    def id_of(self, recording: Recording) -> str:
        """Return the id that a recording it holds was published under."""
        return self._lines[recording.name].id

    def add(self, confirmed: Iterable[tuple[Recording, str]]) -> None:
        """Keep that these recordings were confirmed, each with its id; on disk when this returns.

        Raises:
            RecordingsError: The file cannot be written.
        """
        lines = [_line(recording, post_id) for recording, post_id in confirmed]
        try:
            with self._file.open("ab") as kept:
                kept.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
                kept.flush()
                os.fsync(kept.fileno())
        except OSError as error:
            raise self._unkept(error) from error
        self._lines |= {line.path: line for line in lines}

    def _unkept(self, error: OSError) -> RecordingsError:
        return RecordingsError(
            f"{self._file}, which keeps what was published, cannot be written: {error.strerror}; "
            "name a file in another place with --state FILE"
        )


def _line(recording: Recording, post_id: str) -> Line:
    return Line(
        path=recording.name,
        size=recording.stamp.size,
        mtime_ns=recording.stamp.mtime_ns,
        id=post_id,
        sidecar=recording.sidecar_stamp,
    )


def _read(file: Path) -> tuple[dict[str, Line], int]:
    """Return the lines by path, and how many bytes they are: a line that was torn off while it was written is none."""
    lines: dict[str, Line] = {}
    whole_bytes = 0
    if not file.exists():
        return lines, whole_bytes
    with file.open("rb") as kept:
        for row in kept:
            if not row.endswith(b"\n") and (row.startswith(_LINE_BEGINS) or _LINE_BEGINS.startswith(row)):
                break
            try:
                line = msgspec.json.decode(row, type=Line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RecordingsError(f"{file} is not what `ingest clips` keeps; name another file") from error
            lines[line.path] = line
            whole_bytes += len(row)
    return lines, whole_bytes


_LINE_BEGINS = b'{"path":'
