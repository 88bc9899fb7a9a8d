"""Reads a process's settings and reports invalid ones. Must not know what a setting is for."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic import SecretStr, ValidationError
from pydantic_settings import CliSettingsSource, DotEnvSettingsSource

from vit_api.environment import platforms
from vit_api.setting_texts import help_text, usage_of
from vit_api.settings import DEVICE_CHOICES, ENV_PREFIX, Settings

_SECRETS = {name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None}

_FLAGS = {f"--{name.replace('_', '-')}" for name, field in Settings.model_fields.items() if field.annotation is bool}
# What pydantic reads as true and as false, except "t", "f", "y" and "n".
_TRUE, _FALSE = {"1", "true", "on", "yes"}, {"0", "false", "off", "no"}

_KEYS = ("api_keys", "operator_key")
_FILE = ".env"


class SettingsError(Exception):
    """Settings have invalid values; the message has one line for each of them."""


class _Parser(argparse.ArgumentParser):
    """Parse the options that pydantic-settings adds, with our `--help` and errors of a line."""

    def format_help(self) -> str:
        """Return what `--help` prints."""
        return help_text(self.prog)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2; name the option that is most like an unknown one."""
        _, found, unknown = message.partition("unrecognized arguments: ")
        name = unknown.split("=")[0].split(" ")[0].removeprefix("--").replace("-", "_")
        nearest = _nearest(name) if found else None
        hint = f" Did you mean --{nearest.replace('_', '-')}?" if nearest else ""
        self.exit(2, f"error: {message.removesuffix('.')}.{hint}\nRun with --help for all settings.\n")


def load_settings(arguments: list[str]) -> Settings:
    """Read the settings. With `--help` among the arguments, print all options and exit.

    Raises:
        SettingsError: A value is invalid, or `.env` can't be read. The message names the variable and what is allowed.
    """
    program = "server.py" if Path(sys.argv[0]).name == "server.py" else "vit-api serve"
    parser = _Parser(prog=program, usage=usage_of(program), allow_abbrev=False)
    source: CliSettingsSource[Any] = CliSettingsSource(
        Settings, cli_parse_args=_as_flags(arguments), root_parser=parser, cli_kebab_case=True
    )
    platforms.drop_service_links(ENV_PREFIX)
    _check_key_variables()
    try:
        return Settings(_cli_settings_source=source)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(problem) for problem in error.errors())) from None


def _as_flags(arguments: list[str]) -> list[str]:
    """Replace `--access-log 1` and `--access-log=1` by `--access-log`, and with another value by `--no-access-log`.

    Settings that are on or off are flags, but as variables they have a value, which people take over.
    """
    flags: list[str] = []
    rest = list(arguments)
    while rest:
        option, has_value, value = rest.pop(0).partition("=")
        is_flag = option in _FLAGS
        if is_flag and not has_value and rest and rest[0].lower() in _TRUE | _FALSE:
            has_value, value = "=", rest.pop(0)
        if is_flag and value.lower() in _TRUE | _FALSE:
            flags.append(option if value.lower() in _TRUE else option.replace("--", "--no-", 1))
        else:
            flags.append(f"{option}{has_value}{value}")
    return flags


def _file_variables() -> Mapping[str, str | None]:
    """Return all variables in .env, in lower case.

    Raises:
        SettingsError: The file can't be read.
    """
    try:
        return DotEnvSettingsSource(Settings, env_ignore_empty=False).env_vars
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{_FILE}: The file is not UTF-8, first in line {line}. Save it as UTF-8.") from None
    except OSError as error:
        raise SettingsError(f"{_FILE}: The file can't be read: {error.strerror}.") from None


def _variables() -> dict[str, str]:
    """Return all variables of ours in the environment and in .env, by setting, known or not."""
    prefix = ENV_PREFIX.lower()
    variables = {**_file_variables(), **{name.lower(): value for name, value in os.environ.items()}}
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
    problems += [
        f"{name.upper()} in {_FILE}: There is no such setting. Did you mean {ENV_PREFIX}{name.upper()}?"
        for name in _file_variables()
        if name in _KEYS
    ]
    if problems:
        raise SettingsError("\n".join(problems))


def unknown_variables() -> list[str]:
    """Return a warning for each variable that is no setting, with the setting that may have been meant.

    Of the environment, these are the variables with our prefix; of .env, which only this server reads, all.
    """
    prefix = ENV_PREFIX.lower()
    warnings = [
        f"{ENV_PREFIX}{name.upper()}: There is no such setting, so it is ignored.{_hint(_nearest(name))}"
        for name in _variables().keys() - Settings.model_fields
    ]
    for variable in _file_variables():
        if not variable.startswith(prefix):
            nearest = _nearest(variable.removeprefix("vit_").removeprefix("api_"))
            how = _hint(nearest) or f" From {_FILE}, only {ENV_PREFIX}* is read: set it in the environment."
            warnings.append(f"{variable.upper()} in {_FILE}: There is no such setting, so it is ignored.{how}")
    return sorted(warnings)


def _hint(nearest: str | None) -> str:
    return f" Did you mean {ENV_PREFIX}{nearest.upper()}?" if nearest else ""


def _describe(problem: Any) -> str:
    """Return a line that names the variable, what is allowed, and what it was unless that is a secret."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message  # a check of several settings, which names them itself
    field = str(problem["loc"][0])
    if problem["type"] == "string_pattern_mismatch":
        message = f"Input should be {DEVICE_CHOICES}"
    line = f"{_variable_of(field, problem['input'])}: {message.removesuffix('.')}."
    return line if field in _SECRETS else f"{line} Got {problem['input']!r}."  # a secret must not get into a log


def _variable_of(field: str, value: object) -> str:
    """Return the variable that the value of a setting comes from: its own, or the platform's."""
    is_platforms = field == "port" and not _variables().get(field) and platforms.defaults().get(field) == value
    return "PORT" if is_platforms else f"{ENV_PREFIX}{field.upper()}"


def main_settings() -> Settings:
    """Read the settings from the command line and the environment; exit with an error message if one is invalid."""
    try:
        return load_settings(sys.argv[1:])
    except SettingsError as error:
        is_of_file = str(error).startswith(f"{_FILE}:")  # no setting is wrong then
        sys.exit(f"error: {error}" if is_of_file else f"{error}\nRun with --help for all settings.")
