import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from emostream.connectors.dead_letters import Letter, Place, list_letters
from emostream.streams.dlq_show import letter_in_full, letter_json, letters_table
from emostream.streams.show import printable


def letter(value: bytes | None, *, key: bytes | None = b"k", error: str = "because") -> Letter:
    return Letter(
        place=Place(3, 128), failed_at=None, reason="not_json", error=error, origin="posts/0/1", attempts=1, key=key,
        value=value, size=len(value or b""), whole_bytes=None, headers=(("trace", b"\xff"), ("trace", b"a")),
    )  # fmt: skip


def shown(value: bytes | None, **more: object) -> str:
    return letter_in_full(letter(value, **more)).plain


@given(st.text())
def test_what_is_printable_does_nothing_to_a_terminal(text: str) -> None:
    said = printable(text, keep="\n")
    assert all(each.isprintable() or each in "\n\u200c\u200d" for each in said)


@pytest.mark.parametrize("text", ["plain", "größe 🎉", "👩‍👩‍👧", "می‌خواهم", "日本語", "back\\slash"])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u202eexe", "\r", "\x7f", "\U000e0041"])
def test_escapes_are_spelt_out_wherever_they_stand(hostile: str) -> None:
    spelt = printable(hostile)
    assert hostile not in spelt
    assert spelt.startswith("\\")
    assert f"a{spelt}b" in shown(f"a{hostile}b".encode())
    assert f" {spelt}\n" in shown(b"", key=hostile.encode())
    assert f" {spelt}\n" in shown(b"", error=hostile)
    assert hostile not in shown(json.dumps({"text": f"a{hostile}b"}, ensure_ascii=False).encode())


def test_json_is_shown_in_lines() -> None:
    assert '{\n  "id": "a",\n  "text": "größe 🎉"\n}\n' in shown('{"id":"a","text":"größe 🎉"}'.encode())


def test_of_other_values_the_beginning_is_shown() -> None:
    assert "  value     3 bytes\n" in shown(b"oop")
    assert shown(b"oops, no JSON").endswith("oops, no JSON\n")
    assert shown("ä".encode() * 5000).endswith("ä" * 400 + " …\n")
    assert shown(b"x" + "🎉".encode() * 5000).endswith("🎉 …\n")
    assert shown(b"OggS\x00\xff\xfe" + bytes(200)).endswith(f"4f 67 67 53 00 ff fe {'00 ' * 57}…\n")
    assert shown(b"[" * 60_000).endswith("[" * 400 + " …\n")
    assert shown(None).endswith("0 bytes\n")


@pytest.mark.parametrize("width", [60, 80, 400])
def test_a_narrow_table_keeps_ids_whole(width: int) -> None:
    console = Console(width=width)
    listing = list_letters([letter(b"v", key=b"a post's id of some length")], admits=lambda _: True, most=0)
    with console.capture() as said:
        console.print(letters_table(listing))
    assert [line.split()[0] for line in said.get().splitlines()] == ["id", "3/128"]


@given(st.binary() | st.text().map(str.encode) | st.none())
def test_any_value_can_be_shown(value: bytes | None) -> None:
    assert shown(value).startswith("3/128\n")
    line = letter_json(letter(value, key=value), in_full=True)
    assert line.isascii()
    said = json.loads(line)
    assert ("value" in said) != ("value_base64" in said)
    assert said["headers"] == [{"name": "trace", "value_base64": "/w=="}, {"name": "trace", "value": "a"}]
