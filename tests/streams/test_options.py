"""Settings: one declaration, three ways to give a value, and a wrong one is named."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from emostream.streams.cli import app
from emostream.streams.settings import KAFKA_ACCESS, VARIABLES_ONLY, Settings

run = CliRunner().invoke


def test_the_workers_help_shows_every_setting_with_default_and_variable() -> None:
    shown = run(app, ["worker", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    flat = " ".join(shown.split())
    for name, field in Settings.model_fields.items():
        assert (f"--{name.replace('_', '-')} " in flat) == (name not in VARIABLES_ONLY)
        assert f"EMOSTREAM_{name.upper()}" in flat
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert str(field.default) in flat


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--batch-posts", "0"], {}, ["--batch-posts", "EMOSTREAM_BATCH_POSTS", "greater than or equal to 1"]),
        (["--http-port", "many"], {}, ["EMOSTREAM_HTTP_PORT", "many"]),
        ([], {"EMOSTREAM_PRECISION": "float8"}, ["EMOSTREAM_PRECISION", "float8"]),
        (["--kafka", "kafka://host:9092"], {}, ["EMOSTREAM_KAFKA", "HOST:PORT"]),
        (["--kafka", ""], {}, ["EMOSTREAM_KAFKA", "HOST:PORT"]),
        (["--kafka-protocol", "TLS"], {}, ["EMOSTREAM_KAFKA_PROTOCOL", "SASL_SSL"]),
        (
            ["--kafka-mechanism", "md5"],
            {},
            ["EMOSTREAM_KAFKA_MECHANISM", "'PLAIN', 'SCRAM-SHA-256' or 'SCRAM-SHA-512'"],
        ),
        (["--kafka-ca", "/nowhere/ca.pem"], {}, ["EMOSTREAM_KAFKA_CA", "a file that exists", "/nowhere/ca.pem"]),
        (["--kafka-protocol", "sasl_ssl"], {}, ["SASL_SSL: set EMOSTREAM_KAFKA_USER and EMOSTREAM_KAFKA_PASSWORD"]),
        (["--kafka-protocol", "SASL_SSL", "--kafka-user", "ada"], {}, ["SASL_SSL: set EMOSTREAM_KAFKA_PASSWORD, too"]),
        ([], {"EMOSTREAM_KAFKA_PASSWORD": "hunter2"}, ["EMOSTREAM_KAFKA_PROTOCOL is PLAINTEXT, which knows no users"]),
        (["--kafka-ca", __file__], {}, ["EMOSTREAM_KAFKA_PROTOCOL is PLAINTEXT, which knows no certificates"]),
        (["--kafka-protocol", "ssl", "--kafka-key", __file__], {}, ["set EMOSTREAM_KAFKA_CERTIFICATE, too"]),
        (["--redis-ca", __file__], {}, ["EMOSTREAM_REDIS has no TLS", "rediss://"]),
        (["--redis", "rediss://h", "--redis-key", __file__], {}, ["set EMOSTREAM_REDIS_CERTIFICATE, too"]),
        (
            ["--redis", "redis://:hunter2@h"],
            {"EMOSTREAM_REDIS_PASSWORD": "hunter2"},
            ["Redis' password is given twice"],
        ),
        (["--redis", "redis://ada@h", "--redis-user", "bob"], {}, ["Redis' username is given twice"]),
        (["--dead-letters-topic", "posts"], {}, ["EMOSTREAM_POSTS_TOPIC and EMOSTREAM_DEAD_LETTERS_TOPIC are 'posts'"]),
        (["--redis-keep-s", "60"], {}, ["EMOSTREAM_LATE_S is 600, EMOSTREAM_REDIS_KEEP_S 60", "must still be there"]),
        (["--commit-interval-s", "40"], {}, ["EMOSTREAM_COMMIT_INTERVAL_S", "less than or equal to 10"]),
    ],
)
def test_a_wrong_value_is_named(arguments: list[str], environment: dict[str, str], said: list[str]) -> None:
    result = run(app, ["worker", *arguments], env={**environment, "COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    for words in said:
        assert words in " ".join(result.output.split())
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@host", "redis://user:hunter2/4@host", "redis://host:hunter2", "redis://[hunter2"]
)
def test_a_wrong_secret_is_named_but_not_shown(url: str) -> None:
    result = run(app, ["worker", "--redis", url], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    assert "EMOSTREAM_REDIS" in result.output
    assert "hunter2" not in result.output
    with pytest.raises(ValidationError) as caught:
        Settings(redis=url)
    assert "hunter2" not in f"{caught.value} {caught.value!r} {caught.value.__context__!r}"


@pytest.mark.parametrize(
    "command", [["publish"], ["watch"], ["ingest", "jsonl"], ["ingest", "clips"], ["topics", "create"], ["worker"]]
)
def test_every_command_that_talks_to_kafka_can_log_in(command: list[str]) -> None:
    shown = run(
        app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb", "EMOSTREAM_KAFKA_PASSWORD": "hunter2"}
    )
    flat = " ".join(shown.output.split())
    for name in KAFKA_ACCESS:
        assert (f"--{name.replace('_', '-')} " in flat) == (name not in VARIABLES_ONLY)
    assert "EMOSTREAM_KAFKA_PASSWORD" in flat
    assert "hunter2" not in flat


def test_secrets_may_stand_in_files(tmp_path: Path) -> None:
    (tmp_path / "emostream_redis").write_text("http://hunter2\n")
    result = run(app, ["worker"], env={"COLUMNS": "200", "TERM": "dumb", "EMOSTREAM_SECRETS_DIR": str(tmp_path)})
    assert result.exit_code == 2
    assert "EMOSTREAM_REDIS" in result.output


def test_a_password_may_stand_apart_from_the_user() -> None:
    access = Settings(redis="redis://ada@host", redis_password="hunter2").redis_access
    told = access.client().connection_pool.connection_kwargs
    assert (told["username"], told["password"]) == ("ada", "hunter2")
    assert "hunter2" not in repr(access)


def test_the_environment_is_read_and_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOSTREAM_KAFKA", "from-environment:1")
    assert Settings().kafka == "from-environment:1"
    assert Settings(kafka="from-option:1").kafka == "from-option:1"


def test_nobody_else_can_look_unless_told_otherwise() -> None:
    assert Settings().http_host == "127.0.0.1"


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        redis="redis://user:secret@host/0", kafka_protocol="SASL_SSL", kafka_user="ada", kafka_password="secret"
    )
    assert "secret" not in f"{settings!r} {settings.kafka_access!r} {settings.redis_access!r}"
    assert settings.redis.get_secret_value() == "redis://user:secret@host/0"
