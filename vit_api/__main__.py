"""The command line: `python -m vit_api classify` and `python -m vit_api serve`; `--help` explains them."""

from __future__ import annotations

import argparse
import sys

_INTERRUPTED = 130
"""128 + SIGINT, as shells report a program that Ctrl-C ended."""


def main() -> int:
    """Run the command that this process's arguments name and return its exit status."""
    if sys.argv[1:2] == ["serve"]:
        # Not at the top: `classify` by a server needs none of this.
        from vit_api.app import main as serve

        del sys.argv[1]  # what follows are the server's settings, which it reads itself
        serve()
        return 0
    try:
        return _run_command()
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run_command() -> int:
    from vit_api.classify import command as classify_command  # not at the top: Ctrl-C may come while this is imported

    parser = argparse.ArgumentParser(
        prog="python -m vit_api", description="Image classification with Vision Transformers."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    classify_command.add_parser(commands)
    commands.add_parser("serve", help="run the server, as server.py does; `serve --help` lists its settings")
    arguments = parser.parse_args()
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
