"""JSON Schema files of the wire formats. `python -m emostream.connectors.schemas FOLDER` writes them anew."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from emostream.connectors.messages import DeadLetterHeaders, Emotion, Post

FOLDER = Path(__file__).parent / "schemas"

_MESSAGES: dict[str, type[msgspec.Struct]] = {
    "posts.v1.json": Post,
    "emotions.v1.json": Emotion,
    "dead-letters.v1.json": DeadLetterHeaders,
}


def schema_files() -> dict[str, bytes]:
    """Return the content of each schema file by its name."""
    return {name: _schema(name, message) for name, message in _MESSAGES.items()}


def _schema(name: str, message: type[msgspec.Struct]) -> bytes:
    (reference,), definitions = msgspec.json.schema_components([message], ref_template="#/$defs/{name}")
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": name,
        **reference,
        "$defs": definitions,
    }
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n"


def main(folder: Path) -> None:
    """Write every schema file into a folder."""
    for name, content in schema_files().items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
