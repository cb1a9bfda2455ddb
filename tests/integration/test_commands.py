"""The commands a user types, as processes of their own, against a running worker."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import RunningWorker, collect_answers, environment, make_posts

from emostream.connectors.messages import encode_post
from emostream.model.samples import LABELS
from emostream.streams.settings import Settings

CLIPS = Path(__file__).parents[2] / "docs" / "examples" / "clips"


def command(settings: Settings, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return a command line and its environment."""
    return [sys.executable, "-m", "emostream.streams.cli", *arguments], {**os.environ, **environment(settings)}


def emostream(settings: Settings, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    line, variables = command(settings, *arguments)
    return subprocess.run(line, env=variables, capture_output=True, text=True, timeout=120, **more)


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


def test_topics_are_created_once_and_described(settings: Settings) -> None:
    first = emostream(settings, "topics", "create")
    assert f"{settings.posts_topic}: 4 partitions" in first.stdout
    shown = emostream(settings, "topics", "describe", "--dead-letters-topic", "no-such-topic")
    assert "missing" in shown.stdout


@pytest.mark.parametrize("arguments", [("publish", "hello"), ("topics", "describe"), ("watch", "--count", "1")])
def test_a_broker_that_is_away_is_one_line_and_exit_code_1(settings: Settings, arguments: tuple[str, ...]) -> None:
    away = settings.model_copy(update={"kafka": "127.0.0.1:1"})
    done = emostream(away, *arguments)
    assert done.returncode == 1
    assert "no Kafka answers at 127.0.0.1:1" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_predict_needs_no_kafka(settings: Settings) -> None:
    away = settings.model_copy(update={"kafka": "127.0.0.1:1"})
    done = emostream(away, "predict", "--json", "i am so happy for you", "this makes me furious")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["emotion"] for answer in answers] == ["joy", "anger"]
    assert answers[1]["attributes"]["sentiment"]["label"] == "negative"
    piped = emostream(away, "predict", "-", input="what a sad, sad day\n\n")
    assert "sadness" in piped.stdout


def test_predict_takes_recordings_and_pairs(settings: Settings, tmp_path: Path) -> None:
    clip = str(CLIPS / "parcel.ogg")
    done = emostream(settings, "predict", "--json", "you lost my parcel", "--clip", clip, "--together")
    (pair,) = map(json.loads, done.stdout.splitlines())
    assert (pair["modalities"], pair["text"], pair["clip"]) == (["text", "voice"], "you lost my parcel", clip)
    noise = tmp_path / "noise.ogg"
    noise.write_bytes(b"OggS" + bytes(range(200)))
    apart = emostream(settings, "predict", "--json", "so glad", "--clip", clip, "--clip", str(noise))
    assert [json.loads(line)["modalities"] for line in apart.stdout.splitlines()] == [["text"], ["voice"]]
    assert apart.returncode == 1
    assert "noise.ogg: audio_undecodable" in apart.stderr
    uneven = emostream(settings, "predict", "one", "two", "--clip", clip, "--together")
    assert uneven.returncode == 2
    assert "make no pairs" in " ".join(uneven.stderr.split())


def test_evaluate_prints_json(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "test_sent_emo.csv").write_text(
        "Utterance,Emotion\nI am so happy for you!,joy\nI hate you!,anger\nIt is at nine.,neutral\n"
    )
    done = emostream(settings, "evaluate", "--task", "meld", "--data", str(tmp_path), "--json")
    result = json.loads(done.stdout)
    assert (result["task"], result["split"], result["n"], result["accuracy"]) == ("meld", "test", 3, 1.0)
    fields = ("macro_f1", "uar", "wa", "ece", "official", "per_class", "confusion")
    assert all(field in result for field in fields)
    shown = emostream(settings, "evaluate", "--task", "meld", "--data", str(tmp_path))
    assert "macro-F1" in shown.stdout
    missing = emostream(settings, "evaluate", "--task", "goemotions", "--data", str(tmp_path))
    assert missing.returncode == 1
    assert "labels.txt is missing" in " ".join(missing.stderr.split())
