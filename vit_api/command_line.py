"""Reads a process's settings and reports invalid ones. Must not know what a setting is for."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import CliSettingsSource, DotEnvSettingsSource

from vit_api.environment import platforms
from vit_api.settings import DEVICE_CHOICES, ENV_PREFIX, Settings

_SECRETS = {name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None}

_KEYS = ("api_keys", "operator_key")


class SettingsError(Exception):
    """Settings have invalid values; the message has one line for each of them."""


def load_settings(arguments: list[str]) -> Settings:
    """Read the settings. With `--help` among the arguments, print all options and exit.

    Raises:
        SettingsError: A value is invalid. The message names the variable and what is allowed.
    """
    parser = argparse.ArgumentParser(
        prog="server.py" if Path(sys.argv[0]).name == "server.py" else "vit-api serve",
        description="A dynamic-batching image-classification server for Vision Transformers.",
        epilog=f"Each option can also be set as {ENV_PREFIX}<NAME> in the environment or in the file .env.",
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        Settings, cli_parse_args=arguments, root_parser=parser, cli_kebab_case=True
    )
    platforms.drop_service_links(ENV_PREFIX)
    _check_key_variables()
    try:
        return Settings(_cli_settings_source=source)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(problem) for problem in error.errors())) from None


def _variables() -> dict[str, str]:
    """Return all variables of ours in the environment and in .env, by setting, known or not."""
    prefix = ENV_PREFIX.lower()
    in_file = DotEnvSettingsSource(Settings, env_ignore_empty=False).env_vars
    variables = {**in_file, **{name.lower(): value for name, value in os.environ.items()}}
    return {name.removeprefix(prefix): value or "" for name, value in variables.items() if name.startswith(prefix)}


def _nearest(name: str) -> str | None:
    """Return the setting that a name is most like, if it is like any."""
    return next(iter(difflib.get_close_matches(name, Settings.model_fields, 1, 0.6)), None)


def _check_key_variables() -> None:
    """Refuse to start without keys that were meant to be set, since the server would accept any client.

    Raises:
        SettingsError: A variable for keys is empty, or its name looks like one that is misspelt.
    """
    problems = []
    for name, value in _variables().items():
        variable = f"{ENV_PREFIX}{name.upper()}"
        if name == _KEYS[0] and not value.strip():  # without an operator key, the operator's path is closed
            problems.append(f"{variable}: The variable is set but empty. Set a key, or unset the variable.")
        elif name not in Settings.model_fields and ("key" in name or _nearest(name) in _KEYS):
            nearest = _nearest(name) if _nearest(name) in _KEYS else _KEYS[0]
            problems.append(f"{variable}: There is no such setting. Did you mean {ENV_PREFIX}{str(nearest).upper()}?")
    if problems:
        raise SettingsError("\n".join(problems))


def unknown_variables() -> list[str]:
    """Return a warning for each variable of ours that is no setting, with the setting that may have been meant."""
    warnings = []
    for name in _variables().keys() - Settings.model_fields:
        nearest = _nearest(name)
        hint = f" Did you mean {ENV_PREFIX}{nearest.upper()}?" if nearest else ""
        warnings.append(f"{ENV_PREFIX}{name.upper()}: There is no such setting, so it is ignored.{hint}")
    return sorted(warnings)


def _describe(problem: Any) -> str:
    """Return a line that names the variable, what is allowed, and what it was unless that is a secret."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message  # a check of several settings, which names them itself
    field = str(problem["loc"][0])
    if problem["type"] == "string_pattern_mismatch":
        message = f"Input should be {DEVICE_CHOICES}"
    line = f"{ENV_PREFIX}{field.upper()}: {message.removesuffix('.')}."
    return line if field in _SECRETS else f"{line} Got {problem['input']!r}."  # a secret must not get into a log


def main_settings() -> Settings:
    """Read the settings from the command line and the environment; exit with an error message if one is invalid."""
    try:
        return load_settings(sys.argv[1:])
    except SettingsError as error:
        sys.exit(f"{error}\nRun with --help for all settings.")
