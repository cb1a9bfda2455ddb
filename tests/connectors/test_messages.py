"""Wire formats: what is read, what is refused and why, and that nothing changes on the way round."""

import datetime as dt
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.connectors.errors import MalformedRecord
from emostream.connectors.messages import (
    CONTENT_TYPE,
    MOST_CLIP_BYTES,
    MOST_POST_BYTES,
    Clip,
    Post,
    decode_clip,
    decode_post,
    encode_post,
)

# Surrogates alone are no characters: JSON escapes could write them, UTF-8 cannot.
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
posts = st.builds(
    Post,
    id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256),
    text=words.filter(str.strip),
    source=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=128),
    created_at=st.none() | st.datetimes(timezones=st.just(dt.UTC)),
    topics=st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=128), max_size=64),
    clip=st.booleans(),
)


@given(posts)
def test_a_post_survives_the_way_round(post: Post) -> None:
    assert decode_post(encode_post(post)) == post


def assert_post_or_named_fault(value: bytes) -> None:
    try:
        post = decode_post(value)
    except MalformedRecord as caught:
        fault = caught
    else:
        assert post.id
        assert post.text.strip()
        return
    assert fault.reason.isidentifier()
    assert str(fault)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_post_or_a_named_fault(value: bytes) -> None:
    assert_post_or_named_fault(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(["id", "text", "source", "created_at", "topics", "x"]), json_values))
def test_arbitrary_json_is_a_post_or_a_named_fault(fields: dict[str, object]) -> None:
    assert_post_or_named_fault(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"hello", "not_json"),
        (b'{"id": "a", "text": "cut o', "not_json"),
        (b'{"id": "a", "text": NaN}', "not_json"),
        (b'{"id": "a", "text": "\\ud800"}', "not_json"),
        (b'{"id": "a", "text": "\xff\xfe"}', "not_utf8"),
        (b'["id", "text"]', "wrong_type"),
        (b'{"id": "a", "text": 7}', "wrong_type"),
        (b'{"id": 7, "text": "b"}', "wrong_type"),
        (b'{"id": "a", "text": "b", "created_at": "yesterday"}', "wrong_type"),
        (b'{"text": "b"}', "missing_field"),
        (b'{"id": "a"}', "missing_field"),
        (b'{"id": "", "text": "b"}', "empty_id"),
        (b'{"id": "a", "text": ""}', "empty_text"),
        (b'{"id": "a", "text": " \\n\\t\\u00a0"}', "empty_text"),
        (json.dumps({"id": "a" * 257, "text": "b"}).encode(), "too_long"),
        (json.dumps({"id": "a", "text": "b", "source": "s" * 129}).encode(), "too_long"),
        (json.dumps({"id": "a", "text": "b" * MOST_POST_BYTES}).encode(), "too_large"),
        (b'{"id": "a", "text": "b", "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "not_json"),
    ],
)
def test_what_is_no_post_is_refused_by_name(value: bytes | None, reason: str) -> None:
    with pytest.raises(MalformedRecord) as fault:
        decode_post(value)
    assert fault.value.reason == reason


def test_unknown_fields_are_ignored() -> None:
    assert decode_post(b'{"id": "a", "text": "b", "likes": 3}') == Post(id="a", text="b")


def test_the_largest_post_is_read() -> None:
    frame = len(encode_post(Post(id="a", text="x"))) - 1
    post = Post(id="a", text="x" * (MOST_POST_BYTES - frame))
    assert len(encode_post(post)) == MOST_POST_BYTES
    assert decode_post(encode_post(post)) == post


def test_defaults_are_not_written() -> None:
    assert msgspec.json.decode(encode_post(Post(id="a", text="b"))) == {"id": "a", "text": "b"}


def test_a_clip_is_its_key_and_its_bytes() -> None:
    for headers in ((), ((CONTENT_TYPE, b"audio/ogg"),), (("Content-Type", b"video/webm"),), (("x", b""),)):
        assert decode_clip("ä".encode(), b"bytes", headers) == Clip(post_id="ä", audio=b"bytes")


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "empty_id"), (b"", "empty_id"), (b"\xff", "not_utf8"), (b"k" * 257, "too_long")]
)
def test_a_clip_that_belongs_to_no_post_has_a_reason(key: bytes | None, reason: str) -> None:
    with pytest.raises(MalformedRecord) as fault:
        decode_clip(key, b"x", ())
    assert fault.value.reason == reason


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (b"", (), "empty"),
        (None, (), "empty"),
        (b"x" * (MOST_CLIP_BYTES + 1), (), "too_large"),
        (b"x", ((CONTENT_TYPE, b"image/png"),), "unknown_type"),
        (b"x", ((CONTENT_TYPE, b"\xff\xfe"),), "unknown_type"),
    ],
)
def test_what_can_be_no_recording_says_so_to_its_post(
    value: bytes | None, headers: tuple[tuple[str, bytes], ...], reason: str
) -> None:
    clip = decode_clip(b"k", value, headers)
    assert (clip.post_id, clip.audio) == ("k", b"")
    assert clip.fault is not None
    assert clip.fault.reason == reason
