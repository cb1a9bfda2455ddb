"""A folder of recordings: which there are, and the post that a file beside one holds. Called by `clips`.

`talk/monday.wav` may have a `talk/monday.json` (a post, as on `posts`) or a `talk/monday.txt` (what it says) beside it.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from emostream.connectors.errors import MalformedRecord, RecordingsError
from emostream.connectors.messages import MOST_POST_BYTES, Post, decode_post

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".m4a", ".aac", ".mp4", ".webm")
"""What a recording's name ends in, in capitals or not."""

_SIDECARS = (".json", ".txt")
"""Suffixes of the file beside a recording; where both are there, the first counts."""


class Stamp(msgspec.Struct, frozen=True):
    """What tells that a file was changed."""

    size: int
    mtime_ns: int


class Recording(msgspec.Struct, frozen=True):
    """One recording of a folder.

    Attributes:
        name: Its path relative to the folder, with slashes.
        path: Where it lies.
        stamp: Of the recording, when it was found.
        sidecar: The file beside it that holds its post.
        sidecar_stamp: Of that file.
    """

    name: str
    path: Path
    stamp: Stamp
    sidecar: Path | None = None
    sidecar_stamp: Stamp | None = None


def find_recordings(folder: Path) -> list[Recording]:
    """Return the recordings of a folder and the folders in it, in the order of their names.

    Files and folders whose name begins with a dot are passed over, and so are links to folders.

    Raises:
        RecordingsError: There is none, or a folder cannot be read.
    """
    found = sorted(_walk(folder), key=lambda recording: recording.name)
    if not found:
        raise RecordingsError(f"{folder} holds no recording ({' '.join(SUFFIXES)})")
    return found


def read_post(recording: Recording, *, id_prefix: str = "", source: str | None = None) -> tuple[str, Post | None]:
    """Return a recording's id, and the post that it belongs to, if a file beside it says so.

    Args:
        recording: What was found.
        id_prefix: Put before its name, where its id is made from that.
        source: Source of the post, where the file says none.

    Raises:
        MalformedRecord: The file beside it is no post; the reasons are those of `decode_post`. Or `not_utf8`: the
            recording's name is none that an id can be made from.
        OSError: The file beside it cannot be read.
    """
    own_id = id_prefix + recording.name
    if not _is_utf8(own_id):
        raise MalformedRecord("not_utf8", "its name is not UTF-8")
    if recording.sidecar is None:
        return own_id, None
    try:
        fields = {"id": own_id, "source": source, **_sidecar_fields(recording.sidecar), "clip": True}
        post = decode_post(_encoded(fields))
    except MalformedRecord as fault:
        raise MalformedRecord(fault.reason, f"{recording.sidecar.name}: {fault}") from fault
    return post.id, post


def _walk(folder: Path) -> Iterator[Recording]:
    for here, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(here, name) for name in files if not name.startswith(".")]
        sidecars = {(path.stem, path.suffix.lower()): path for path in paths if path.suffix.lower() in _SIDECARS}
        for path in paths:
            stamp = _stamp(path) if path.suffix.lower() in SUFFIXES else None
            if stamp is not None:
                sidecar = next((sidecars[path.stem, kind] for kind in _SIDECARS if (path.stem, kind) in sidecars), None)
                yield Recording(
                    name=path.relative_to(folder).as_posix(),
                    path=path,
                    stamp=stamp,
                    sidecar=sidecar,
                    sidecar_stamp=_stamp(sidecar) if sidecar else None,
                )


def _refuse(error: OSError) -> None:
    raise RecordingsError(f"{error.filename} cannot be read: {error.strerror}") from error


def _stamp(path: Path) -> Stamp | None:
    """Return a file's stamp, or a dangling link's own; None for what is no file (reading a pipe may never end)."""
    try:
        found = path.stat()
    except OSError:
        try:
            found = path.lstat()
        except OSError:  # it is gone by now
            return None
    is_file = stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)
    return Stamp(size=found.st_size, mtime_ns=found.st_mtime_ns) if is_file else None


def _sidecar_fields(sidecar: Path) -> dict[str, Any]:
    with sidecar.open("rb") as file:
        content = file.read(MOST_POST_BYTES + 1)
    if len(content) > MOST_POST_BYTES:
        raise MalformedRecord("too_large", f"more than {MOST_POST_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")  # editors on Windows put a mark before it
    except UnicodeDecodeError as error:
        raise MalformedRecord("not_utf8", f"byte {error.start} is not UTF-8") from error
    if sidecar.suffix.lower() == ".txt":
        return {"text": text.strip()}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.ValidationError as error:
        raise MalformedRecord("wrong_type", str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedRecord("not_json", str(error)) from error


def _encoded(fields: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError as error:
        raise MalformedRecord("not_utf8", "half of a surrogate pair is no character") from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
