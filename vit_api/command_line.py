"""Reads the settings of a process, and words what is wrong with them. Knows nothing of what a setting is for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import CliSettingsSource

from vit_api.settings import DEVICE_MEANING, ENV_PREFIX, Settings

_SECRETS = {name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None}


class SettingsError(Exception):
    """A setting has a value that it may not have; the message has a line for each."""


def load_settings(arguments: list[str]) -> Settings:
    """Read the settings; `--help` among the arguments prints them all and exits.

    Raises:
        SettingsError: A value is not allowed or an argument is unknown. It names the variable and what it may be.
    """
    parser = argparse.ArgumentParser(
        prog="server.py" if Path(sys.argv[0]).name == "server.py" else "vit-api serve",
        description="A dynamic-batching image-classification server for Vision Transformers.",
        epilog=f"Each option is also {ENV_PREFIX}<NAME> in the environment and in the file .env.",
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        Settings, cli_parse_args=arguments, root_parser=parser, cli_kebab_case=True
    )
    try:
        return Settings(_cli_settings_source=source)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(problem) for problem in error.errors())) from None


def _describe(problem: Any) -> str:
    """Say which variable is wrong, what it may be, and what it was."""
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    name = ENV_PREFIX + str(problem["loc"][0]).upper()
    what = problem["msg"]
    if problem["type"] == "string_pattern_mismatch":
        what = f"Input should be {DEVICE_MEANING}"
    what = what.removeprefix("Value error, ")
    if problem["loc"][0] in _SECRETS:
        return f"{name}: {what}"  # the value must not get into a log
    return f"{name}: {what}, got {problem['input']!r}"


def main_settings() -> Settings:
    """Read the settings of this process's command line and environment; exit with status 2 if one is wrong."""
    try:
        return load_settings(sys.argv[1:])
    except SettingsError as error:
        sys.exit(f"{error}\nRun with --help to see every setting.")
