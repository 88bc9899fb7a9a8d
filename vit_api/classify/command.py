"""`python -m vit_api classify`: classifies image files, by a server or in this process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vit_api.classify.image_files import find_images
from vit_api.classify.report import JsonLines, Progress, Report, Table
from vit_api.client import AsyncClient, UnreadableInput
from vit_api.client.protocol import DEFAULT_TOP_K, MOST_TOP_K
from vit_api.cores import available_cores

KEY_VARIABLE = "VIT_API_KEY"

_DEFAULT_REQUESTS = 8
_MOST_CONCURRENCY = 256
_SOME_FAILED = 1
_MISUSED = 2
_NOBODY_READS = 141
"""128 + SIGPIPE, as shells report a program whose output nobody reads any more."""

_EPILOG = f"""\
Without --url the model runs in this process, with the server's settings: VIT_API_DEVICE, VIT_API_DTYPE and so on.
The exit status is 0, 1 if an image failed, 2 for a command that can't be understood, and 130 after Ctrl-C.
A server's API key comes from the environment variable {KEY_VARIABLE}, or the one that --key-env names.
"""


class _UsageError(Exception):
    """The command makes no sense as it was given."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "classify",
        help="classify image files",
        description="Classify image files, and those in folders at any depth.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `--key secret` must not be taken for --key-env
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE|DIR")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="the server's address; default: no server, the model runs in this process")
    where.add_argument("--model", help="without a server: hub id, directory or `digits`; default: the server's")
    parser.add_argument(
        "--top-k",
        type=_whole_number(MOST_TOP_K),
        default=DEFAULT_TOP_K,
        metavar="K",
        help="classes to name; default: 5",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object a line, also for images that failed")
    parser.add_argument(
        "--concurrency",
        type=_whole_number(_MOST_CONCURRENCY),
        metavar="N",
        help="requests at once, default: 8; without a server, images decoded at once, default: one a core",
    )
    parser.add_argument("--key-env", metavar="NAME", help=f"variable with the API key; default: {KEY_VARIABLE}")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Classify what the arguments name and return the exit status; leaves Ctrl-C to the caller."""
    try:
        return _classify(arguments)
    except _UsageError as error:
        arguments.parser.print_usage(sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        return _MISUSED
    except BrokenPipeError:
        # Python flushes standard output once more when it ends, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS


def _classify(arguments: argparse.Namespace) -> int:
    if arguments.key_env and arguments.url is None:
        raise _UsageError("--key-env is for --url")
    by_server = None if arguments.url is None else _client(arguments)
    unreadable: list[tuple[Path, UnreadableInput]] = []
    paths = list(find_images(arguments.files, lambda path, why: unreadable.append((path, UnreadableInput(why)))))
    report = _report(arguments, [*paths, *(path for path, _ in unreadable)])
    with contextlib.closing(report):
        for path, error in unreadable:
            report.add(path, error)
        if by_server is not None:
            requests = arguments.concurrency or _DEFAULT_REQUESTS
            asyncio.run(_by_server(by_server, paths, report, requests, arguments.top_k))
        elif paths:
            _in_process(arguments, paths, report)
    return _SOME_FAILED if report.failed else 0


def _client(arguments: argparse.Namespace) -> AsyncClient:
    name = arguments.key_env or KEY_VARIABLE
    key = os.environ.get(name) or None
    if arguments.key_env and key is None:
        # Its name is not repeated: it may be the key, by mistake.
        raise _UsageError("the environment variable that --key-env names is not set")
    try:
        return AsyncClient(arguments.url, api_key=key)
    except ValueError as error:
        raise _UsageError(str(error)) from error


def _report(arguments: argparse.Namespace, paths: list[Path]) -> Report:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may have bytes that are no text
    lines = JsonLines() if arguments.json else Table(max((len(str(path)) for path in paths), default=0))
    return Report(sys.stdout, sys.stderr, lines, Progress(sys.stderr, len(paths)))


async def _by_server(client: AsyncClient, paths: list[Path], report: Report, requests: int, top_k: int) -> None:
    async with client, contextlib.aclosing(client.classify_many(paths, concurrency=requests, top_k=top_k)) as outcomes:
        names = iter(paths)
        async for outcome in outcomes:
            report.add(next(names), outcome)


def _in_process(arguments: argparse.Namespace, paths: list[Path], report: Report) -> None:
    # Not at the top: with a server, torch and LitServe are not needed, and take seconds to import.
    from vit_api.checkpoints.checkpoint import CheckpointError
    from vit_api.classify.local import load_local
    from vit_api.command_line import SettingsError, load_settings
    from vit_api.logs import configure_logging

    try:
        settings = load_settings([] if arguments.model is None else [f"--model={arguments.model}"])
    except SettingsError as error:
        raise _UsageError(str(error)) from error
    configure_logging("warning", settings.log_format)
    threads = arguments.concurrency or available_cores()
    try:
        classifier = load_local(settings, threads, len(paths))
    except (CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    with contextlib.closing(classifier.classify_many(paths, arguments.top_k)) as outcomes:
        for path, outcome in zip(paths, outcomes, strict=True):
            report.add(path, outcome)


def _whole_number(most: int) -> Callable[[str], int]:
    """Return what reads a whole number from 1 to `most`."""

    def read(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most}, not {text!r}")
        return int(text)

    return read
