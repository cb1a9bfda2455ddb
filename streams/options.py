"""Settings as command-line options: one declaration in `settings`, shown by `--help` and read from the environment."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from emostream.streams.settings import VARIABLES_ONLY, Settings, default_shown

SECRETS_DIR = "EMOSTREAM_SECRETS_DIR"
"""Names a folder of files that hold one setting each, as Docker and Kubernetes hand secrets out."""


def takes_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each named setting (all of them if none is named).

    The command's first parameter, `settings`, gets what comes of the options, the environment and the defaults, in
    this order. A wrong value ends the command with a message that names the setting.
    """
    chosen = [name for name in names or Settings.model_fields if name not in VARIABLES_ONLY]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: value for name in chosen if (value := arguments.pop(name)) is not None}
            command(_settings(given), **arguments)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        options = [_option(name, Settings.model_fields[name]) for name in chosen]
        parameters = [*own, *options]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given | {"_secrets_dir": os.environ.get(SECRETS_DIR)})
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # about several that do not go together; the message names them
            raise typer.BadParameter(said) from None
        name = str(first["loc"][0])
        option = f"--{name.replace('_', '-')} (EMOSTREAM_{name.upper()})"
        secret = Settings.model_fields[name].annotation is SecretStr
        found = "" if secret else f", not {first['input']!r}"
        raise typer.BadParameter(f"{said}{found}", param_hint=option) from None


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{field.description} \\[EMOSTREAM_{name.upper()}]",
        show_default=default_shown(field.default) or False,
        rich_help_panel="Settings",
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
