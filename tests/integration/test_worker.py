"""The worker as it runs in production, on real brokers and a real Redis: nothing is lost, whatever is done to it."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from accounts import counted
from redis import Redis
from support import (
    Broker,
    RunningWorker,
    as_environment,
    await_true,
    collect,
    collect_answers,
    make_posts,
    make_settings,
    publish,
    publish_raw,
    running_worker,
)

from emostream.connectors.messages import decode_emotion
from emostream.streams.settings import Settings
from emostream.streams.stack import Stack


def test_posts_are_answered_in_kafka_and_redis_and_counted(shared_worker: RunningWorker) -> None:
    worker = shared_worker
    before = {name: worker.metric(name) for name in ("emostream_records_in_total", "emostream_answers_total")}
    counted_before = counted(worker.settings)
    posts = make_posts(120)
    publish(worker.settings, posts)
    records = collect_answers(worker.settings, {post.id for post in posts})
    answers = {record.key.decode(): decode_emotion(record.value) for record in records}
    assert len(answers) == 120
    assert answers[posts[1].id].emotion == "joy"  # "we won!!! …"
    for answer in answers.values():
        assert sum(msgspec.structs.astuple(answer.scores)) == pytest.approx(1, abs=1e-5)
    prefix = worker.settings.redis_prefix
    with Redis.from_url(worker.settings.redis.get_secret_value(), decode_responses=True) as redis:

        def stored() -> bool:
            return all(redis.exists(f"{prefix}emotion:{post.id}") for post in posts)

        await_true(stored, within_s=20)
        for post in posts:
            stored_answer = decode_emotion(redis.hget(f"{prefix}emotion:{post.id}", "answer").encode())
            assert stored_answer == answers[post.id]
    await_true(lambda: counted(worker.settings) - counted_before == 120, within_s=20)
    await_true(lambda: worker.metric("emostream_answers_total") - before["emostream_answers_total"] == 120, within_s=10)
    assert worker.metric("emostream_records_in_total") - before["emostream_records_in_total"] == 120
    assert worker.metric("emostream_latency_seconds_count", path="text") >= 120
    assert worker.get("/healthz")[0] == 200
    assert worker.get("/readyz")[0] == 200


def test_malformed_records_become_dead_letters_and_the_stream_goes_on(shared_worker: RunningWorker) -> None:
    worker = shared_worker
    posts = make_posts(30)
    run = posts[0].id[:8]
    malformed: list[tuple[str, bytes, str]] = [
        (f"{run}-not-json", b"hello?", "not_json"),
        (f"{run}-cut", b'{"id": "x", "text": "cut o', "not_json"),
        (f"{run}-type", b'{"id": "x", "text": 5}', "wrong_type"),
        (f"{run}-no-id", b'{"text": "who am i"}', "missing_field"),
        (f"{run}-empty", b'{"id": "x", "text": ""}', "empty_text"),
        (f"{run}-large", b'{"id": "x", "text": "' + b"a" * 70_000 + b'"}', "too_large"),
        (f"{run}-utf8", b'{"id": "x", "text": "\xff\xfe"}', "not_utf8"),
        (f"{run}-nothing", b"", "empty"),
    ]
    publish(worker.settings, posts[:15])
    publish_raw(worker.settings, [(key, value) for key, value, _ in malformed])
    publish(worker.settings, posts[15:])
    wanted = {post.id for post in posts} | {key for key, _, _ in malformed}
    records = collect_answers(worker.settings, wanted)
    dead = {r.key.decode(): r for r in records if r.topic == worker.settings.dead_letters_topic}
    assert {key: record.headers["reason"].decode() for key, record in dead.items()} == {
        key: reason for key, _, reason in malformed
    }
    for key, value, _ in malformed:
        assert dead[key].value == value
        assert re.fullmatch(rf"{worker.settings.posts_topic}/\d+/\d+", dead[key].headers["origin"].decode())
    assert len({r.key for r in records if r.topic == worker.settings.emotions_topic}) == 30
    await_true(lambda: worker.metric("emostream_dead_letters_total", reason="too_large") >= 1, within_s=20)


def test_a_record_with_neither_key_nor_value_is_accounted_for(shared_worker: RunningWorker) -> None:
    worker = shared_worker
    before = worker.metric("emostream_dead_letters_total", reason="empty")
    publish_raw(worker.settings, [(None, b"")])
    await_true(lambda: worker.metric("emostream_dead_letters_total", reason="empty") == before + 1, within_s=30)


def test_the_log_never_holds_what_people_wrote(shared_worker: RunningWorker) -> None:
    secret = f"a private matter {time.time_ns()}"
    publish_raw(shared_worker.settings, [("k1", b'{"id": "q", "text": "' + secret.encode() + b'"}')])
    publish_raw(shared_worker.settings, [("k2", b'{"id": "q", "text": "' + secret.encode())])

    def both(records) -> bool:
        keys = {record.key for record in records}
        return {b"q", b"k2"} <= keys

    assert both(collect(shared_worker.settings, both, within_s=60))
    assert secret not in shared_worker.log.read_text()


def test_without_kafka_the_worker_says_so_and_ends(stack: Stack, tmp_path) -> None:
    settings = make_settings(Broker("none", "127.0.0.1:1"), stack)
    with running_worker(settings, tmp_path / "log", ready=False) as worker:
        assert worker.process.wait(90) == 1
    said = worker.log.read_text()
    assert "no Kafka answers at 127.0.0.1:1" in said
    assert "EMOSTREAM_KAFKA" in said
    assert "Traceback" not in said


def test_a_broken_checkpoint_ends_the_worker_with_its_name(stack: Stack, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    settings = make_settings(Broker("embedded", stack.kafka), stack, checkpoint=tmp_path / "empty")
    with running_worker(settings, tmp_path / "log", ready=False) as worker:
        assert worker.process.wait(90) == 1
    said = worker.log.read_text()
    assert "is no checkpoint: config.json is missing" in " ".join(said.split())
    assert "Traceback" not in said


def test_a_worker_told_to_stop_while_its_model_loads_stops_at_once(stack: Stack, tmp_path) -> None:
    settings = make_settings(Broker("embedded", stack.kafka), stack)
    with running_worker(settings, tmp_path / "log", ready=False) as worker:
        await_true(lambda: "metrics and probes" in worker.log.read_text(), within_s=60)
        await_true(lambda: bool(worker.children()), within_s=60)
        (child,) = worker.children()
        assert worker.end() == 0
    assert "stopped before it was ready" in worker.log.read_text()
    assert not Path(f"/proc/{child}").exists()


def test_a_taken_port_is_named(stack: Stack, tmp_path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        settings = make_settings(Broker("embedded", stack.kafka), stack).model_copy(update={"http_port": port})
        with running_worker(settings, tmp_path / "log", ready=False) as worker:
            assert worker.process.wait(60) == 1
    assert f"127.0.0.1:{port} cannot be listened on" in " ".join(worker.log.read_text().split())


def test_a_worker_whose_pipeline_fails_ends_with_an_error(settings: Settings, tmp_path) -> None:
    """An error that nobody foresaw ends the process, loudly and soon; nothing was acknowledged, so nothing is lost."""
    script = (
        "from emostream.connectors.redis_sink import RedisSink\n"
        "async def broken(self, answers):\n"
        "    raise TypeError('nobody foresaw this')\n"
        "RedisSink.write = broken\n"
        "from emostream.streams.cli import main\n"
        "main()\n"
    )
    posts = make_posts(50)
    publish(settings, posts)
    done = subprocess.run(
        [sys.executable, "-c", script, "worker"],
        env={**os.environ, **as_environment(settings)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nobody foresaw this" in done.stderr
    with running_worker(settings, tmp_path / "log") as worker:
        await_true(lambda: worker.metric("emostream_answers_total") == 50, within_s=60)
