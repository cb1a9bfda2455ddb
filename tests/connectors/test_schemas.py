"""The JSON Schema files say what the code does."""

import json

import jsonschema
import pytest

from emostream.connectors.schemas import FOLDER, schema_files

FILES = schema_files()


@pytest.mark.parametrize("name", FILES)
def test_file_is_up_to_date(name: str) -> None:
    assert (FOLDER / name).read_bytes() == FILES[name], "run `make schemas`"


def test_there_is_no_other_file() -> None:
    assert {file.name for file in FOLDER.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_file_is_a_valid_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(FILES[name]))


def test_posts_schema_tells_good_from_bad() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(FILES["posts.v1.json"]))
    assert validator.is_valid({"id": "a", "text": "b", "unknown": 1})
    assert not validator.is_valid({"id": "a", "text": ""})
    assert not validator.is_valid({"text": "b"})
