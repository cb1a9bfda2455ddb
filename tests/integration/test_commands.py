"""The commands a user types, as processes of their own, against a running worker."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import RunningWorker, collect_answers, command, emostream, make_posts
from tiny_data import write_goemotions
from tiny_recordings import write_wav

from emostream.connectors.messages import decode_clip, decode_post, encode_post
from emostream.connectors.producer import RecordProducer
from emostream.connectors.reader import Received, read_records
from emostream.connectors.topics import create_topics
from emostream.model.samples import LABELS
from emostream.streams.settings import Settings

CLIPS = Path(__file__).parents[2] / "docs" / "examples" / "clips"


def test_publish_then_watch(shared_worker: RunningWorker) -> None:
    settings = shared_worker.settings
    published = emostream(settings, "publish", "we got the flat!!! so happy 🎉", "--source", "cli")
    assert published.returncode == 0, published.stderr
    post_id = published.stdout.strip()
    (record, *_) = collect_answers(settings, {post_id})
    assert json.loads(record.value)["emotion"] == "joy"
    watched = emostream(settings, "watch", "--json", "--from-beginning", "--count", "1")
    assert json.loads(watched.stdout)["v"] == 1
    shown = emostream(settings, "watch", "--from-beginning", "--count", "1")
    assert any(emotion in shown.stdout for emotion in LABELS)


def test_ingest_reports_malformed_rows_by_line(shared_worker: RunningWorker, tmp_path: Path) -> None:
    posts = make_posts(3)
    file = tmp_path / "posts.jsonl"
    rows = [encode_post(posts[0]), b"oops", encode_post(posts[1]), b"", b'{"id": "x"}', encode_post(posts[2])]
    file.write_bytes(b"\n".join(rows))
    done = emostream(shared_worker.settings, "ingest", "jsonl", str(file))
    assert done.returncode == 3
    assert "line 2: not_json" in done.stderr
    assert "line 5: missing_field" in done.stderr
    assert "3 posts published and confirmed, 2 malformed rows" in done.stderr
    assert len(collect_answers(shared_worker.settings, {post.id for post in posts})) >= 3


def test_ingest_from_a_pipe_ends_cleanly_on_sigterm(shared_worker: RunningWorker) -> None:
    posts = make_posts(40)
    line, variables = command(shared_worker.settings, "ingest", "jsonl", "-")
    with subprocess.Popen(
        line, env=variables, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"".join(encode_post(post) + b"\n" for post in posts))
        process.stdin.flush()
        answered = collect_answers(shared_worker.settings, {post.id for post in posts})
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read().decode()
        assert process.wait(30) == 0, said
    assert len({record.key for record in answered}) == 40
    assert "stopped after line 40" in said
    assert "40 posts published and confirmed" in said


def test_watch_names_what_is_no_answer(settings: Settings) -> None:
    create_topics(settings.kafka_access, settings.topics, partitions=1, replication=-1)
    answer = (Path(__file__).parents[2] / "README.md").read_text().split('{"v": 1', 1)[1].split("```", 1)[0]
    good = ('{"v": 1' + answer).encode()
    odd = [
        b'{"emotion": "[/x]"}',
        b"\xff\xfe",
        b'{"x":' + b"[" * 5_000,
        good.replace(b'["text"]', b'["voice", "text"]'),
        good,
    ]
    with RecordProducer(settings.kafka_access) as producer:
        for number, value in enumerate(odd):
            producer.publish(settings.emotions_topic, key=str(number), value=value)
        producer.flush()
    shown = emostream(settings, "watch", "--from-beginning", "--count", "5")
    assert shown.returncode == 0, shown.stderr
    said = " ".join(shown.stdout.split())
    assert said.count("is no answer: ") == 4, said
    assert "sadness" in said
    plain = emostream(settings, "watch", "--json", "--from-beginning", "--count", "5")
    assert plain.returncode == 0, plain.stderr
    assert "\\xff\\xfe" in plain.stdout


def test_ingest_keeps_to_its_rate(shared_worker: RunningWorker, tmp_path: Path) -> None:
    posts = make_posts(21)
    file = tmp_path / "posts.jsonl"
    file.write_bytes(b"\n".join(map(encode_post, posts)))
    began = time.monotonic()
    assert emostream(shared_worker.settings, "ingest", "jsonl", str(file), "--rate", "10").returncode == 0
    assert time.monotonic() - began > 2.0


def test_ingest_names_a_missing_file(settings: Settings) -> None:
    done = emostream(settings, "ingest", "jsonl", "nowhere.jsonl")
    assert done.returncode == 2
    assert "nowhere.jsonl" in done.stderr


def read_published(settings: Settings, *, count: int, within_s: float = 30.0) -> list[Received]:
    """Return what stands on `posts` and `clips`: once it is so many records, and what comes within a second after."""
    received: list[Received] = []
    ends_s = time.monotonic() + within_s

    def is_over() -> bool:
        nonlocal ends_s
        if len(received) >= count:
            ends_s = min(ends_s, time.monotonic() + 1)
        return time.monotonic() > ends_s

    topics = [settings.posts_topic, settings.clips_topic]
    for record in read_records(settings.kafka_access, topics, from_beginning=True, stopping=is_over):
        received.append(record)  # noqa: PERF402  # `is_over` looks at the list while it grows
    return received


def by_topic(settings: Settings, records: list[Received]) -> tuple[dict[str, Received], dict[str, Received]]:
    """Return posts and clips by their ids; every clip is one that a worker takes."""
    posts, clips = (
        {(record.key or b"").decode(): record for record in records if record.topic == topic}
        for topic in (settings.posts_topic, settings.clips_topic)
    )
    for post_id, clip in clips.items():
        assert decode_clip(clip.key, clip.value, clip.header_pairs).post_id == post_id
    assert len(posts) + len(clips) == len(records), "something was published twice"
    return posts, clips


def test_publish_takes_a_clip_with_a_text_or_without(settings: Settings, tmp_path: Path) -> None:
    parcel = CLIPS / "parcel.ogg"
    both = emostream(settings, "publish", "you lost my parcel", "--clip", str(parcel), "--source", "cli")
    alone = emostream(settings, "publish", "--clip", str(write_wav(tmp_path / "long.wav", 70)), "--id", "mine")
    assert (both.returncode, alone.returncode) == (0, 0), both.stderr + alone.stderr
    assert alone.stdout == "mine\n"
    posts, clips = by_topic(settings, read_published(settings, count=3))
    (post,) = (decode_post(record.value) for record in posts.values())
    assert (post.id, post.text, post.source, post.clip) == (both.stdout.strip(), "you lost my parcel", "cli", True)
    assert clips.keys() == {post.id, "mine"}
    assert clips[post.id].value == parcel.read_bytes()
    assert {clip.headers["content-type"] for clip in clips.values()} == {b"audio/ogg"}


def test_publish_says_what_is_wrong_with_a_clip(settings: Settings, tmp_path: Path) -> None:
    noise = tmp_path / "noise.ogg"
    noise.write_bytes(b"no sound at all")
    for arguments, said in (
        (("--clip", str(noise)), "audio_undecodable"),
        (("--clip", "nowhere.ogg"), "nowhere.ogg cannot be read"),
        ((), "a text, a --clip, or both are needed"),
        (("--clip", str(CLIPS / "flat.ogg"), "--source", "cli"), "it belongs to a post's text"),
    ):
        done = emostream(settings, "publish", *arguments)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.replace("│", " ").split())
        assert "Traceback" not in done.stderr


def test_ingest_clips_publishes_a_folder_once(settings: Settings, tmp_path: Path) -> None:
    for name in ("calls/one.ogg", "two.ogg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((CLIPS / "flat.ogg").read_bytes())
    write_wav(tmp_path / "long.wav", 70)
    (tmp_path / "calls" / "one.txt").write_text("we got the flat!!!")
    (tmp_path / "two.json").write_text('{"id": "shop-2", "text": "at last", "author": "mel"}')
    (tmp_path / "noise.mp3").write_bytes(b"no sound at all")
    line = ("ingest", "clips", str(tmp_path), "--source", "calls", "--id-prefix", "hotline/")
    first = emostream(settings, *line)
    assert first.returncode == 3, first.stderr
    assert "noise.mp3: audio_undecodable" in first.stderr
    assert "3 recordings published and confirmed (2 with a post, 1 transcoded), 1 malformed" in first.stderr
    second = emostream(settings, *line)
    assert "3 recordings were published before" in second.stderr
    assert "0 recordings published and confirmed" in second.stderr
    (tmp_path / "noise.mp3").unlink()
    write_wav(tmp_path / "new.wav", 1)
    third = emostream(settings, *line)
    assert third.returncode == 0, third.stderr
    posts, clips = by_topic(settings, read_published(settings, count=6))
    assert clips.keys() == {"hotline/calls/one.ogg", "hotline/long.wav", "hotline/new.wav", "shop-2"}
    assert posts.keys() == {"hotline/calls/one.ogg", "shop-2"}
    one, two = (decode_post(posts[post_id].value) for post_id in sorted(posts))
    assert (one.text, one.source, one.clip) == ("we got the flat!!!", "calls", True)
    assert (two.text, two.author, two.clip) == ("at last", "mel", True)


def test_ingest_clips_ends_cleanly_on_sigterm_and_goes_on(settings: Settings, tmp_path: Path) -> None:
    names = [f"{number:02}.wav" for number in range(30)]
    for name in names:
        write_wav(tmp_path / name, 0.2)
    line, variables = command(settings, "ingest", "clips", str(tmp_path), "--rate", "5")
    with subprocess.Popen(line, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        read_published(settings, count=3)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read().decode()
        assert process.wait(30) == 0, said
    assert "of 30 recordings; the same command goes on from there" in " ".join(said.split())
    rest = emostream(settings, "ingest", "clips", str(tmp_path))
    assert rest.returncode == 0, rest.stderr
    _, clips = by_topic(settings, read_published(settings, count=30))
    assert sorted(clips) == names


def test_ingest_clips_says_what_is_wrong_with_a_folder(settings: Settings, tmp_path: Path) -> None:
    empty = emostream(settings, "ingest", "clips", str(tmp_path))
    assert empty.returncode == 1
    assert "holds no recording" in " ".join(empty.stderr.split())
    write_wav(tmp_path / "a.wav", 1)
    unkept = emostream(settings, "ingest", "clips", str(tmp_path), "--state", str(tmp_path / "nowhere" / "state"))
    assert unkept.returncode == 1
    assert "name a file in another place with --state FILE" in " ".join(unkept.stderr.split())
    assert emostream(settings, "ingest", "clips", str(tmp_path / "nowhere")).returncode == 2


def test_topics_are_created_once_and_described(settings: Settings) -> None:
    first = emostream(settings, "topics", "create")
    assert f"{settings.posts_topic}: 4 partitions" in first.stdout
    shown = emostream(settings, "topics", "describe", "--dead-letters-topic", "no-such-topic")
    assert "missing" in shown.stdout


NOWHERE = Settings(kafka="127.0.0.1:1", redis="redis://127.0.0.1:1/0")
"""For commands that need neither."""


@pytest.mark.parametrize("arguments", [("publish", "hello"), ("topics", "describe"), ("watch", "--count", "1")])
def test_a_broker_that_is_away_is_one_line_and_exit_code_1(arguments: tuple[str, ...]) -> None:
    done = emostream(NOWHERE, *arguments)
    assert done.returncode == 1
    assert "no Kafka answers at 127.0.0.1:1" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_predict_needs_no_kafka() -> None:
    done = emostream(NOWHERE, "predict", "--json", "i am so happy for you", "this makes me furious")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["emotion"] for answer in answers] == ["joy", "anger"]
    assert answers[1]["attributes"]["sentiment"]["label"] == "negative"
    many = [f"what a sad,\u2028sad day {number}" for number in range(300)]  # a line end to Python, to nobody else
    piped = emostream(NOWHERE, "predict", "-", "--json", input="\ufeff" + "\n\r\n".join(many))
    answers = [json.loads(line) for line in piped.stdout.strip().split("\n")]
    assert [answer["text"] for answer in answers] == many
    assert {answer["emotion"] for answer in answers} == {"sadness"}


def test_json_is_utf_8_whatever_the_pipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    done = emostream(NOWHERE, "predict", "--json", "how funny 😂")
    assert json.loads(done.stdout)["text"] == "how funny 😂"


def test_predict_takes_recordings_and_pairs(tmp_path: Path) -> None:
    clip = str(CLIPS / "parcel.ogg")
    done = emostream(NOWHERE, "predict", "--json", "you lost my parcel", "--clip", clip, "--together")
    (pair,) = map(json.loads, done.stdout.splitlines())
    assert (pair["modalities"], pair["text"], pair["clip"]) == (["text", "voice"], "you lost my parcel", clip)
    noise = tmp_path / "noise.ogg"
    noise.write_bytes(b"OggS" + bytes(range(200)))
    latin = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.ogg"))
    latin.write_bytes(Path(clip).read_bytes())
    apart = emostream(NOWHERE, "predict", "--json", "so glad", "--clip", str(latin), "--clip", str(noise))
    text, voice = map(json.loads, apart.stdout.splitlines())
    assert (text["modalities"], voice["modalities"], Path(voice["clip"]).name) == (["text"], ["voice"], "caf�.ogg")
    assert apart.returncode == 1
    assert "noise.ogg: audio_undecodable" in apart.stderr
    uneven = emostream(NOWHERE, "predict", "one", "two", "--clip", clip, "--together")
    assert uneven.returncode == 2
    assert "make no pairs" in " ".join(uneven.stderr.split())


def test_evaluate_prints_json(tmp_path: Path) -> None:
    (tmp_path / "test_sent_emo.csv").write_text(
        "Utterance,Emotion\nI am so happy for you!,joy\nI hate you!,anger\nIt is at nine.,neutral\n"
    )
    done = emostream(NOWHERE, "evaluate", "--task", "meld", "--data", str(tmp_path), "--json")
    result = json.loads(done.stdout)
    assert (result["task"], result["split"], result["n"], result["accuracy"]) == ("meld", "test", 3, 1.0)
    fields = ("macro_f1", "uar", "wa", "ece", "official", "per_class", "confusion")
    assert all(field in result for field in fields)
    texts = tmp_path / "goemotions"
    write_goemotions(texts)
    one_label = (NOWHERE, "evaluate", "--task", "goemotions", "--data", str(texts), "--split", "dev", "--json")
    single = json.loads(emostream(*one_label).stdout)
    assert (single["task"], single["n"], single["official"]["name"][:11]) == ("goemotions", 16, "multi-label")
    shown = emostream(NOWHERE, "evaluate", "--task", "meld", "--data", str(tmp_path))
    assert "macro-F1" in shown.stdout
    missing = emostream(NOWHERE, "evaluate", "--task", "goemotions", "--data", str(tmp_path))
    assert missing.returncode == 1
    assert "labels.txt is missing" in " ".join(missing.stderr.split())
