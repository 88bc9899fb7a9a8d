"""The command `vit-api`, also `python -m vit_api`; `--help` explains its commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from vit_api.environment.garbage import collection_paused
from vit_api.environment.system import require_linux

_INTERRUPTED = 130
"""128 + SIGINT, as shells report a program that Ctrl-C ended."""
_NOT_INSTALLED = 1
_OF_LOAD = ("aiohttp", "matplotlib", "prometheus_client", "rich")
"""Packages that the load test needs. Of what others need, too, the error of another command names the extra."""


def main() -> int:
    """Run the command that this process's arguments name and return its exit status."""
    if sys.argv[1:2] == ["serve"]:
        del sys.argv[1]  # what follows are the server's settings, which it reads itself
        return serve()
    try:
        return _unless_missing(_run_command)
    except KeyboardInterrupt:
        return _INTERRUPTED


def serve() -> int:
    """Run the server with the settings of this process's arguments and return the exit status."""
    return _unless_missing(_serve)


def _serve() -> int:
    require_linux()
    # Not at the top: `classify --url` needs none of the server's packages.
    from vit_api.processes.signals import exit_on_signals

    exit_on_signals()
    from vit_api.startup import begin

    started = begin()
    with started.early:
        with collection_paused():
            from vit_api.app import run  # takes longer than all before, and the port is answered meanwhile

        run(started)
    return 0


def _run_command() -> int:
    from vit_api.classify import command as classify_command  # not at the top: Ctrl-C may come during this import
    from vit_api.deployments import command as models_command
    from vit_api.load import command as load_command
    from vit_api.quantization import command as quantize_command

    parser = argparse.ArgumentParser(prog="vit-api", description="Image classification with Vision Transformers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("serve", help="run the server, as server.py does; `serve --help` lists its settings")
    classify_command.add_parser(commands)
    quantize_command.add_parser(commands)
    load_command.add_parsers(commands)
    models_command.add_parser(commands)
    arguments = parser.parse_args()
    status: int = arguments.run(arguments)
    return status


def _unless_missing(command: Callable[[], int]) -> int:
    """Run a command; if it needs a package that is not installed, say in one line how to install it."""
    try:
        return command()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "vit_api"):
            raise
        print(f"error: The package {package} is not installed. {_how_to_install(package)}", file=sys.stderr)
        return _NOT_INSTALLED


def _how_to_install(package: str) -> str:
    if (Path(__file__).resolve().parents[1] / "Makefile").is_file():
        # A checkout. No name for pip here: it would look for one in its index.
        return "In a checkout, `make run` installs what the server needs in .venv: use .venv/bin/python."
    extra = "client" if package == "httpx" else "load" if package in _OF_LOAD else "server"
    return f"Install what this command needs: pip install 'vit-api[{extra}]'"


if __name__ == "__main__":
    sys.exit(main())
