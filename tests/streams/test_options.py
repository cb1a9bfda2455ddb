"""Settings: one declaration, three ways to give a value, and a wrong one is named."""

import pytest
from typer.testing import CliRunner

from emostream.streams.cli import app
from emostream.streams.settings import Settings

run = CliRunner().invoke


def test_the_workers_help_shows_every_setting_with_default_and_variable() -> None:
    shown = run(app, ["worker", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    flat = " ".join(shown.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in flat
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
    ],
)
def test_a_wrong_value_is_named(arguments: list[str], environment: dict[str, str], said: list[str]) -> None:
    result = run(app, ["worker", *arguments], env={**environment, "COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    for words in said:
        assert words in " ".join(result.output.split())


def test_a_wrong_secret_is_named_but_not_shown() -> None:
    result = run(app, ["worker", "--redis", "http://user:hunter2@host"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    assert "EMOSTREAM_REDIS" in result.output
    assert "hunter2" not in result.output


def test_the_environment_is_read_and_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOSTREAM_KAFKA", "from-environment:1")
    assert Settings().kafka == "from-environment:1"
    assert Settings(kafka="from-option:1").kafka == "from-option:1"


def test_secrets_are_not_shown() -> None:
    settings = Settings(redis="redis://user:secret@host/0")
    assert "secret" not in repr(settings)
    assert settings.redis.get_secret_value() == "redis://user:secret@host/0"
