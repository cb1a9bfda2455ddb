"""`emostream dlq`: letters written by hand on each broker, and one way round through a running worker."""

import asyncio
import datetime as dt
import json
import os
import pty
import subprocess
import time
import uuid
from collections.abc import Iterable

import pytest
from kafka import KafkaProducer
from support import RunningWorker, await_true, command, emostream, publish_raw

from emostream.connectors.kafka_sink import KafkaDeadLetters, KafkaWriter
from emostream.connectors.messages import MOST_CLIP_BYTES, DeadLetter, DeadLetterHeaders
from emostream.connectors.producer import MOST_REQUEST_BYTES
from emostream.connectors.reader import Received, Span, read_spans
from emostream.streams.settings import Settings

NOW = dt.datetime.now(dt.UTC)


def dead(
    key: str | None,
    value: bytes,
    origin: str,
    *,
    reason: str = "not_json",
    age_h: float = 0,
    headers: tuple[tuple[str, bytes], ...] = (),
) -> DeadLetter:
    why = DeadLetterHeaders(reason=reason, error="because", origin=origin, failed_at=NOW - dt.timedelta(hours=age_h))
    return DeadLetter(key.encode() if key else None, value, headers, why)


def write(settings: Settings, letters: Iterable[DeadLetter]) -> None:
    """Write letters as a worker does: in one go, so that they stand in few batches."""

    async def go() -> None:
        sink = KafkaDeadLetters(KafkaWriter(topic=settings.dead_letters_topic, access=settings.kafka_access))
        await sink.write(list(letters))
        await sink.close()

    asyncio.run(go())


def write_foreign(settings: Settings) -> None:
    """Write what no worker writes: a record without headers, and one that kafka-python cannot read."""

    class NotUtf8(str):
        def encode(self, *_: object) -> bytes:
            return b"\xff\xfe"

    producer = KafkaProducer(bootstrap_servers=settings.kafka)
    for headers in ([], [(NotUtf8("header"), b"value")], [("reason", b"\xff\x1b[2J")]):
        producer.send(settings.dead_letters_topic, key=b"foreign", value=b"\x1b[31m", headers=headers)
        producer.flush()  # a batch each: kafka-python reads no further in a batch than to what it cannot read
    producer.close()


def listed(settings: Settings, *arguments: str) -> dict[str, dict[str, object]]:
    """Return what `dlq list --json` says, by key."""
    done = emostream(settings, "dlq", "list", "--json", "--limit", "0", *arguments)
    assert done.returncode == 0, done.stderr
    return {letter["key"]: letter for letter in map(json.loads, done.stdout.splitlines())}


def standing(settings: Settings, topic: str) -> list[Received]:
    return list(read_spans(settings.kafka_access, topic))


def test_letters_are_listed_filtered_and_counted(settings: Settings) -> None:
    posts = settings.posts_topic
    write(settings, [dead(f"old-{i}", b"oops", f"{posts}/0/{i}", age_h=50) for i in range(40)])
    write(settings, [dead("clip", b"OggS", f"{settings.clips_topic}/1/0", reason="audio_damaged", age_h=1)])
    write_foreign(settings)
    write(settings, [dead("new", b'{"id": "x"', f"{posts}/2/7", age_h=-1)])

    shown = emostream(settings, "dlq", "list", "--limit", "3")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["id", "failed", "at", "bytes", "attempts", "replayed", "reason", "origin", "key"]
    assert lines[3].split()[2:] == ["10", "0", "no", "not_json", f"{posts}/2/7", "new"]
    assert lines[4].startswith("44 dead letters (41 not_json, 1 ")
    assert lines[4].endswith(", the newest 3 of them shown")
    assert "\x1b" not in shown.stdout
    assert "cannot be read" in shown.stderr

    assert len(listed(settings)) == 40 + 3
    assert listed(settings, "--since", "2h").keys() == {"clip", "foreign", "new"}
    assert listed(settings, "--topic", "clips").keys() == {"clip"}
    assert len(listed(settings, "--reason", "not_json", "--until", "1d")) == 40
    none = emostream(settings, "dlq", "list", "--reason", "no_json")
    assert none.stdout.startswith("no dead letters; 44 dead letters (41 not_json, ")


def test_an_empty_topic_is_read_at_once(settings: Settings) -> None:
    began_s = time.monotonic()
    assert emostream(settings, "dlq", "list").stdout == "no dead letters\n"
    assert time.monotonic() - began_s < 25, "it waited for what does not come, which takes 30 s"


def test_show_prints_everything_and_harms_no_terminal(settings: Settings) -> None:
    value = '{"id":"a","text":"gut \u009b[2J 🎉"}'.encode()
    write(settings, [dead("k\x1b[2J", value, f"{settings.posts_topic}/0/5", headers=(("trace", b"\x00\xff"),))])
    write(settings, [dead("other", b"\x00\xff" * 500, f"{settings.clips_topic}/0/5")])
    ids = {key: str(letter["id"]) for key, letter in listed(settings).items()}
    hostile, other = ids["k\x1b[2J"], ids["other"]

    shown = emostream(settings, "dlq", "show", other, hostile)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.index(other) < shown.stdout.index(hostile)
    assert r"key       k\u001b[2J" in shown.stdout
    assert r"trace: \u0000\xff" in shown.stdout
    assert r'  "text": "gut \u009b[2J 🎉"' in shown.stdout
    assert "1000 bytes\n00 ff" in shown.stdout
    line, variables = command(settings, "dlq", "show", "--raw", hostile)
    assert subprocess.run(line, env=variables, capture_output=True, check=True, timeout=60).stdout == value
    (said,) = map(json.loads, emostream(settings, "dlq", "show", "--json", hostile).stdout.splitlines())
    assert (said["value"], said["headers"]) == (value.decode(), [{"name": "trace", "value_base64": "AP8="}])
    absent = emostream(settings, "dlq", "show", "0/12345", "77/0", hostile)
    assert absent.returncode == 1
    assert "no dead letter stands at 0/12345, 77/0" in absent.stderr
    assert hostile in absent.stdout


def test_replay_sends_back_what_came_once(settings: Settings) -> None:
    posts, clips = settings.posts_topic, settings.clips_topic
    clip = uuid.uuid4().bytes * (MOST_CLIP_BYTES // 16)
    write(
        settings,
        [
            dead("post", b"oops", f"{posts}/3/17", headers=(("reason", b"mine"), ("reason", b"mine too"))),
            dead(None, b"keyless", f"{posts}/99/1"),
            dead("clip", clip, f"{clips}/2/0", reason="scoring_failed"),
            dead("forged", b"x", f"{settings.emotions_topic}/0/0"),
            dead("tired", b"x", f"{posts}/0/1", headers=(("emostream-attempt", b"3"),)),
        ],
    )
    write(settings, [dead("cut", uuid.uuid4().bytes * (MOST_REQUEST_BYTES // 16), f"{clips}/0/1")])
    write_foreign(settings)
    refused = (
        "left alone: 1 (it was replayed as often as it may be)",
        "left alone: 1 (it says that it came from a topic that is not ours)",
        "left alone: 1 (it was too large to be kept whole)",
        "left alone: 2 (it does not say where it came from)",
    )

    dry = emostream(settings, "dlq", "replay", "--all", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert f"would be replayed: 3 dead letters (2 not_json, 1 scoring_failed); 1 to {clips}, 2 to {posts}" in dry.stderr
    assert all(line in dry.stderr for line in refused)
    assert len(dry.stdout.splitlines()) == 8
    assert not standing(settings, posts) + standing(settings, clips)

    done = emostream(settings, "dlq", "replay", "--all", "--yes")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 records replayed and confirmed" in done.stderr
    assert all(line in done.stderr for line in refused)
    post, keyless = sorted(standing(settings, posts), key=lambda record: record.key or b"", reverse=True)
    assert (post.partition, post.key, post.value) == (3, b"post", b"oops")
    assert post.header_pairs == (("reason", b"mine"), ("reason", b"mine too"), ("emostream-attempt", b"1"))
    assert (keyless.key, keyless.value) == (None, b"keyless")
    (back,) = standing(settings, clips)
    assert (back.partition, back.key, back.value) == (2, b"clip", clip)

    twice = emostream(settings, "dlq", "replay", "--all", "--yes")
    assert "to be replayed: 0 dead letters" in twice.stderr
    assert "left alone: 3 (it was replayed before)" in twice.stderr
    letters = listed(settings)
    assert {key for key, letter in letters.items() if letter["replayed"]} == {"post", "clip", None}
    one = emostream(settings, "dlq", "replay", str(letters["post"]["id"]), "--yes")
    assert one.returncode == 1
    assert f"{letters['post']['id']} stays where it is: it was replayed before" in one.stderr
    assert len(standing(settings, posts)) == 2
    again = emostream(settings, "dlq", "replay", str(letters["post"]["id"]), "0/4711", "--yes", "--again")
    assert again.returncode == 1
    assert "no dead letter stands at 0/4711" in again.stderr
    assert len(standing(settings, posts)) == 3


@pytest.mark.parametrize(("answer", "code", "count"), [(b"n\n", 1, 0), (b"y\n", 0, 1)])
def test_replay_asks_at_a_terminal(settings: Settings, answer: bytes, code: int, count: int) -> None:
    write(settings, [dead("post", b"oops", f"{settings.posts_topic}/0/0")])
    terminal, ours = pty.openpty()
    os.write(terminal, answer)
    done = emostream(settings, "dlq", "replay", "--reason", "not_json", stdin=ours)
    os.close(terminal)
    os.close(ours)
    assert done.returncode == code, done.stderr
    assert f"to be replayed: 1 dead letter (1 not_json); 1 to {settings.posts_topic}" in done.stderr
    assert len(standing(settings, settings.posts_topic)) == count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--yes",), "name ids, or give filters, or take --all"),
        (("--all", "--reason", "empty", "--yes"), "name ids, or give filters, or take --all"),
        (("--all",), "--yes or --dry-run is needed"),
        (("3-1", "--yes"), "is no PARTITION/OFFSET"),
        (("--since", "noon", "--yes"), "neither an age"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments: tuple[str, ...], said: str) -> None:
    done = emostream(Settings(kafka="127.0.0.1:1"), "dlq", "replay", *arguments, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_spans_end_where_they_are_told_to(settings: Settings) -> None:
    write(settings, [dead("k", b"%d" % i, origin="posts/0/0") for i in range(30)])
    (partition,) = {record.partition for record in standing(settings, settings.dead_letters_topic)}

    def offsets(*spans: Span) -> list[int]:
        return [record.offset for record in read_spans(settings.kafka_access, settings.dead_letters_topic, spans)]

    assert offsets(Span(partition)) == list(range(30))
    assert offsets(Span(partition, 27), Span(partition, 3, 5)) == [27, 28, 29, 3, 4]
    assert offsets(Span(partition, 29, 99), Span(partition, 30, 31), Span(77), Span(partition, 5, 5)) == [29]


def test_what_fails_comes_back_counted_until_it_is_given_up(shared_worker: RunningWorker) -> None:
    settings = shared_worker.settings
    run = uuid.uuid4().hex[:8]
    publish_raw(settings, [(f"{run}-{i}", b"oops") for i in range(3)])

    def letters(attempts: int) -> dict[str, str]:
        found = read_spans(settings.kafka_access, settings.dead_letters_topic)
        return {
            (record.key or b"").decode(): f"{record.partition}/{record.offset}"
            for record in found
            if (record.key or b"").startswith(run.encode())
            and record.headers.get("emostream-attempt", b"0") == b"%d" % attempts
        }

    await_true(lambda: len(letters(0)) == 3, within_s=30)
    dry = emostream(settings, "dlq", "replay", "--reason", "not_json", "--since", "10m", "--dry-run")
    assert all(f"{at}: not_json, to {settings.posts_topic}, attempt 1" in dry.stdout for at in letters(0).values())
    for attempts in (0, 1):
        await_true(lambda count=attempts: len(letters(count)) == 3, within_s=30)
        ids = letters(attempts).values()
        done = emostream(settings, "dlq", "replay", *ids, "--max-attempts", "2", "--yes")
        assert done.returncode == 0, done.stderr
        assert "3 of 3 records replayed and confirmed" in done.stderr
    await_true(lambda: len(letters(2)) == 3, within_s=30)
    given_up = emostream(settings, "dlq", "replay", *letters(2).values(), "--max-attempts", "2", "--yes")
    assert given_up.returncode == 1
    assert "left alone: 3 (it was replayed as often as it may be)" in given_up.stderr
    said = listed(settings, "--since", "10m")[f"{run}-0"]
    assert (said["attempts"], said["reason"], said["replayed"]) == (2, "not_json", False)
    (record,) = read_spans(settings.kafka_access, settings.dead_letters_topic, [span_of(letters(2)[f"{run}-0"])])
    names = [name for name, _ in record.header_pairs]
    assert names == ["emostream-attempt", "reason", "error", "origin", "failed_at"], "nothing piles up"


def span_of(place: str) -> Span:
    partition, offset = map(int, place.split("/"))
    return Span(partition, offset, offset + 1)
