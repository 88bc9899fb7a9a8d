"""Reads a process's settings and reports invalid ones. Must not know what a setting is for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import CliSettingsSource

from vit_api.settings import DEVICE_CHOICES, ENV_PREFIX, Settings

_SECRETS = {name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None}


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
    try:
        return Settings(_cli_settings_source=source)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(problem) for problem in error.errors())) from None


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
