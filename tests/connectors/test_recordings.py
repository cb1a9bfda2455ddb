"""A folder becomes clips and posts: what is found, its ids, the files beside it, and going on after an interruption."""

import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from tiny_recordings import write_wav

from emostream.connectors.clips import GROUP, ClipIngest, ClipPublisher, ClipsTally, MalformedRecording
from emostream.connectors.errors import BrokerError, MalformedRecord, RecordingsError
from emostream.connectors.jsonl import Pace
from emostream.connectors.ledger import LEDGER, Ledger
from emostream.connectors.messages import MOST_CLIP_BYTES, MOST_POST_BYTES, decode_post
from emostream.connectors.recordings import find_recordings, read_post


class ListProducer:
    """Takes what would be published; `confirms` flushes succeed, then the broker is away."""

    def __init__(self, confirms: int | None = None) -> None:
        self.records: list[tuple[str, str | None, bytes, tuple[tuple[str, bytes], ...]]] = []
        self._confirms = confirms

    def publish(self, topic: str, *, key: str | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self.records.append((topic, key, value, tuple(headers)))

    def flush(self) -> None:
        if self._confirms == 0:
            raise BrokerError("the broker is away")
        self._confirms = self._confirms and self._confirms - 1

    def keys(self, topic: str) -> list[str | None]:
        return [key for where, key, *_ in self.records if where == topic]


def ingest(
    folder: Path,
    *,
    producer: ListProducer | None = None,
    again: bool = False,
    until: Callable[[ClipsTally], bool] = lambda _: False,
    **options: object,
) -> tuple[ListProducer, ClipsTally, list[MalformedRecording]]:
    """Run over a folder until the end, or until told to stop."""
    producer = producer or ListProducer()
    malformed: list[MalformedRecording] = []
    stopping = threading.Event()
    publisher = ClipPublisher(producer, posts_topic="posts", clips_topic="clips")
    run = ClipIngest(publisher, Ledger(folder / LEDGER, again=again), on_malformed=malformed.append, **options)
    for tally in run.run(find_recordings(folder), pace=Pace(None), stopping=stopping.is_set):
        if until(tally):
            stopping.set()
    return producer, run.tally, malformed


def write_recordings(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        write_wav(folder / name, 0.2)


def test_recordings_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_recordings(tmp_path, ["b.WAV", "a/two.wav", "a/.hidden.wav", ".cache/x.wav", "a/notes.wav.bak"])
    (tmp_path / "c.Mp3").write_bytes(b"?")
    (tmp_path / "readme.md").write_text("no recording")
    os.mkfifo(tmp_path / "pipe.wav")
    assert [recording.name for recording in find_recordings(tmp_path)] == ["a/two.wav", "b.WAV", "c.Mp3"]


def test_a_folder_without_recordings_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "talk.txt").write_text("alone")
    with pytest.raises(RecordingsError, match=r"holds no recording \(\.wav"):
        find_recordings(tmp_path)
    with pytest.raises(RecordingsError, match="cannot be read"):
        find_recordings(tmp_path / "nowhere")


def test_post_and_clip_go_out_under_one_id_the_post_first(tmp_path: Path) -> None:
    write_recordings(tmp_path, ["alone.wav", "calls/one.wav", "calls/two.wav", "three.wav"])
    (tmp_path / "calls" / "one.txt").write_bytes(b"\xef\xbb\xbfyou lost my parcel\r\n")
    fields = {"text": "so happy", "author": "mel", "created_at": "2026-03-01T12:30:00+01:00", "mood": 1, "clip": False}
    (tmp_path / "calls" / "two.json").write_text(json.dumps(fields))
    (tmp_path / "three.json").write_text('{"id": "shop-3", "text": "third", "source": "reviews"}')
    (tmp_path / "three.txt").write_text("the JSON counts")
    producer, tally, malformed = ingest(tmp_path, id_prefix="hotline/", source="calls")
    assert not malformed
    assert [(topic, key) for topic, key, *_ in producer.records] == [
        ("clips", "hotline/alone.wav"),
        ("posts", "hotline/calls/one.wav"),
        ("clips", "hotline/calls/one.wav"),
        ("posts", "hotline/calls/two.wav"),
        ("clips", "hotline/calls/two.wav"),
        ("posts", "shop-3"),
        ("clips", "shop-3"),
    ]
    one, two, three = (decode_post(value) for topic, _, value, _ in producer.records if topic == "posts")
    assert (one.text, one.source, one.clip) == ("you lost my parcel", "calls", True)
    assert (two.text, two.author, two.clip) == ("so happy", "mel", True)
    assert (three.id, three.source, three.text) == ("shop-3", "reviews", "third")
    headers = {headers for topic, *_, headers in producer.records if topic == "clips"}
    assert headers == {(("content-type", b"audio/wav"),)}
    assert (tally.seen, tally.confirmed, tally.with_post, tally.transcoded) == (4, 4, 3, 0)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"oops", "not_json"),
        ("a.json", b'{"text": ' + b"[" * 60_000, "not_json"),
        ("a.json", b'["text"]', "wrong_type"),
        ("a.json", b'{"author": "mel"}', "missing_field"),
        ("a.json", b'{"text": "so", "id": 7}', "wrong_type"),
        ("a.json", b'{"text": "so", "id": ""}', "empty_id"),
        ("a.json", b'{"text": "so", "id": "%s"}' % (b"x" * 257), "too_long"),
        ("a.json", b'{"text": "\\ud800"}', "not_json"),
        ("a.json", b'{"text": "\xff"}', "not_utf8"),
        ("a.txt", b"caf\xe9", "not_utf8"),
        ("a.txt", b" \n", "empty_text"),
        ("a.txt", b"x" * (MOST_POST_BYTES + 1), "too_large"),
    ],
)
def test_a_broken_file_beside_a_recording_is_named_and_both_are_left_out(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    write_recordings(tmp_path, ["a.wav", "b.wav"])
    (tmp_path / name).write_bytes(content)
    producer, tally, malformed = ingest(tmp_path)
    assert [(row.name, row.reason) for row in malformed] == [("a.wav", reason)]
    assert malformed[0].error.startswith(f"{name}: ")
    assert producer.keys("posts") == []
    assert producer.keys("clips") == ["b.wav"]
    assert (tally.malformed, tally.confirmed) == (1, 1)


def test_an_id_of_more_than_256_characters_is_named(tmp_path: Path) -> None:
    long = "/".join(["folder" * 10] * 4) + "/talk.wav"
    write_recordings(tmp_path, [long, "short.wav"])
    producer, _, malformed = ingest(tmp_path, id_prefix="p" * 20)
    assert [(row.name, row.reason) for row in malformed] == [(long, "too_long")]
    assert producer.keys("clips") == ["p" * 20 + "short.wav"]


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = write_wav(tmp_path / "a.wav", 0.2)
    try:
        file.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(MalformedRecord) as caught:
        read_post(find_recordings(tmp_path)[0])
    assert caught.value.reason == "not_utf8"


def test_an_id_is_published_once(tmp_path: Path) -> None:
    """Two recordings share a stem, and the file beside them gives both one id; so it stays when it is run again."""
    write_recordings(tmp_path, ["a.wav"])
    (tmp_path / "a.oga").write_bytes((tmp_path / "a.wav").read_bytes())
    (tmp_path / "a.json").write_text('{"id": "one", "text": "twice"}')
    for expected in (["one"], []):
        producer, _, malformed = ingest(tmp_path)
        assert producer.keys("clips") == expected
        assert [(row.name, row.reason) for row in malformed] == [("a.wav", "duplicate_id")]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_recordings(tmp_path, ["good.wav"])
    (tmp_path / "noise.mp3").write_bytes(b"no sound at all" * 100)
    (tmp_path / "nothing.ogg").write_bytes(b"")
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    producer, tally, malformed = ingest(tmp_path)
    assert {row.name: row.reason for row in malformed} == {
        "dangling.wav": "unreadable",
        "noise.mp3": "audio_undecodable",
        "nothing.ogg": "empty",
    }
    assert producer.keys("clips") == ["good.wav"]
    producer, tally, malformed = ingest(tmp_path, checked=False)
    assert producer.keys("clips") == ["noise.mp3"]
    assert (tally.before, tally.malformed) == (1, 2)


def test_a_long_recording_is_counted_as_transcoded(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", 70)
    producer, tally, _ = ingest(tmp_path)
    ((_, _, audio, headers),) = producer.records
    assert headers == (("content-type", b"audio/ogg"),)
    assert len(audio) <= MOST_CLIP_BYTES
    assert tally.transcoded == 1


def test_a_second_run_publishes_what_is_new_or_changed(tmp_path: Path) -> None:
    write_recordings(tmp_path, ["a.wav", "b.wav", "c.wav", "d.wav"])
    ingest(tmp_path)
    assert ingest(tmp_path)[0].records == []
    write_wav(tmp_path / "b.wav", 0.3)
    os.utime(tmp_path / "c.wav", (1, 1))
    (tmp_path / "d.txt").write_text("its words came later")
    write_recordings(tmp_path, ["e.wav"])
    producer, tally, _ = ingest(tmp_path)
    assert producer.keys("clips") == ["b.wav", "c.wav", "d.wav", "e.wav"]
    assert producer.keys("posts") == ["d.wav"]
    assert (tally.seen, tally.before) == (5, 1)
    assert ingest(tmp_path)[0].records == []


def test_again_begins_anew_and_can_be_gone_on_with(tmp_path: Path) -> None:
    write_recordings(tmp_path, ["a.wav", "b.wav"])
    ingest(tmp_path)
    producer, *_ = ingest(tmp_path, again=True, until=lambda tally: tally.seen == 1)
    assert producer.keys("clips") == ["a.wav"]
    assert ingest(tmp_path)[0].keys("clips") == ["b.wav"]


def test_a_run_that_is_stopped_is_gone_on_with(tmp_path: Path) -> None:
    names = [f"{number}.wav" for number in range(9)]
    write_recordings(tmp_path, names)
    first, tally, _ = ingest(tmp_path, until=lambda tally: tally.seen == 4)
    assert tally.confirmed == 4
    second, tally, _ = ingest(tmp_path)
    assert first.keys("clips") + second.keys("clips") == names
    assert (tally.before, tally.confirmed) == (4, 5)


def test_what_the_broker_did_not_confirm_is_published_again(tmp_path: Path) -> None:
    names = sorted(f"{number:03}.wav" for number in range(GROUP + 10))
    write_recordings(tmp_path, names)
    away = ListProducer(confirms=1)
    with pytest.raises(BrokerError):
        ingest(tmp_path, producer=away)
    assert away.keys("clips") == names
    assert ingest(tmp_path)[0].keys("clips") == names[GROUP:]


def test_small_groups_are_confirmed_in_time(tmp_path: Path) -> None:
    write_recordings(tmp_path, ["a.wav", "b.wav", "c.wav"])
    now = iter(range(0, 1000, 3))
    confirmed: list[int] = []
    ingest(tmp_path, clock=lambda: next(now), until=lambda tally: bool(confirmed.append(tally.confirmed)))
    assert confirmed[1] > 0


def test_a_run_that_is_killed_is_gone_on_with(tmp_path: Path) -> None:
    names = sorted(f"{number:03}.wav" for number in range(GROUP + 10))
    write_recordings(tmp_path, names)
    publisher = ClipPublisher(ListProducer(), posts_topic="posts", clips_topic="clips")
    run = ClipIngest(publisher, Ledger(tmp_path / LEDGER), on_malformed=lambda _: None)
    tallies = run.run(find_recordings(tmp_path), pace=Pace(None), stopping=lambda: False)
    for _ in range(GROUP + 5):
        next(tallies)
    tallies.close()  # as a kill: nothing after the last group is confirmed
    assert ingest(tmp_path)[0].keys("clips") == names[GROUP:]


def test_a_ledger_torn_at_any_byte_is_gone_on_with(tmp_path: Path) -> None:
    write_recordings(tmp_path, ["a.wav", "b.wav"])
    ingest(tmp_path)
    whole = (tmp_path / LEDGER).read_bytes()
    recordings = find_recordings(tmp_path)
    for length in range(len(whole) + 1):
        (tmp_path / LEDGER).write_bytes(whole[:length])
        held = [Ledger(tmp_path / LEDGER).holds(recording) for recording in recordings]
        assert sum(held) == whole[:length].count(b"\n")
        Ledger(tmp_path / LEDGER).add((recording, recording.name) for recording in recordings)
        assert all(map(Ledger(tmp_path / LEDGER).holds, recordings))


@pytest.mark.parametrize("content", [b"RIFF....WAVE", b'{"id": "a", "text": "mine"}', b"my notes\n"])
@pytest.mark.parametrize("again", [True, False])
def test_a_file_that_is_no_ledger_is_left_alone(tmp_path: Path, content: bytes, again: bool) -> None:
    file = tmp_path / "mine"
    file.write_bytes(content)
    with pytest.raises(RecordingsError, match="name another file"):
        Ledger(file, again=again)
    assert file.read_bytes() == content


def test_a_ledger_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecordingsError, match="--state FILE"):
        Ledger(tmp_path / "nowhere" / "ledger")
    with pytest.raises(RecordingsError, match="--state FILE"):
        Ledger(tmp_path)
