"""The command `python -m vit_api classify`: its arguments, its exit status, and which of its parts it runs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vit_api.classify.bulk.options import add_options, check_options
from vit_api.classify.image_files import find_images
from vit_api.classify.progress import Progress
from vit_api.classify.report import JsonLines, Report, Table
from vit_api.classify.usage import UsageError, integer_up_to
from vit_api.client import AsyncClient, UnreadableInput
from vit_api.client.protocol import ALL, DEFAULT_TOP_K, MAX_FRAMES
from vit_api.environment.cores import available_cores

if TYPE_CHECKING:
    from vit_api.settings import Settings

KEY_VARIABLE = "VIT_API_KEY"

_DEFAULT_REQUESTS = 8
_MAX_CONCURRENCY = 256
_SOME_FAILED = 1
_MISUSED = 2
_OUTPUT_CLOSED = 141
"""128 + SIGPIPE, as shells report a program whose output was closed."""

_EPILOG = f"""\
With --out the results are Parquet files, which --resume completes after an interruption; see docs/ray.md.
Without --url the model runs in this process, with the server's settings: VIT_API_DEVICE, VIT_API_DTYPE and so on.
A server's API key is read from the environment variable {KEY_VARIABLE}, or from the one that --key-env names.
Exit status: 0 on success, 1 if an image failed, 2 on a usage error, 130 after Ctrl-C.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments to a parser's subcommands."""
    parser = commands.add_parser(
        "classify",
        help="classify image files",
        description="Classify image files, and the image files in folders at any depth.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `--key secret` must not be read as --key-env
    )
    parser.add_argument("files", nargs="+", metavar="FILE|DIR")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="server address (default: none, run the model in this process)")
    where.add_argument("--model", help="without --url: hub id, directory or `digits` (default: VIT_API_MODEL)")
    parser.add_argument(
        "--top-k",
        type=_top_k,
        metavar="K",
        help=f"number of classes to print, or `{ALL}` (default: {DEFAULT_TOP_K}; with --threshold: {ALL})",
    )
    parser.add_argument(
        "--threshold", type=_share, metavar="P", help="minimum probability of a class, 0 to 1 (default: any)"
    )
    parser.add_argument(
        "--frames",
        type=integer_up_to(MAX_FRAMES),
        default=1,
        metavar="N",
        help=f"frames of an animation, or pages of a document, to classify, 1 to {MAX_FRAMES} (default: 1);"
        " prints each class's largest probability",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image, failed ones included")
    parser.add_argument(
        "--concurrency",
        type=integer_up_to(_MAX_CONCURRENCY),
        metavar="N",
        help=f"concurrent requests (default: {_DEFAULT_REQUESTS}); without --url, threads that read and decode, and"
        " on the CPU compute (default: cores)",
    )
    parser.add_argument(
        "--key-env", metavar="NAME", help=f"environment variable that holds the API key (default: {KEY_VARIABLE})"
    )
    add_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status. Ctrl-C is left to the caller."""
    try:
        return _classify(arguments)
    except UsageError as error:
        arguments.parser.print_usage(sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        return _MISUSED
    except BrokenPipeError:
        # Python flushes standard output again at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OUTPUT_CLOSED


def _classify(arguments: argparse.Namespace) -> int:
    if arguments.key_env and arguments.url is None:
        raise UsageError("The option --key-env requires --url.")
    check_options(arguments)
    if arguments.out is not None:
        return _to_parquet(arguments)
    client = None if arguments.url is None else _client(arguments)
    unreadable: list[tuple[Path, UnreadableInput]] = []
    found = find_images(map(Path, arguments.files), lambda path, why: unreadable.append((path, UnreadableInput(why))))
    paths = [path for path in found if arguments.shard.has(str(path))]
    report = _report(arguments, [*paths, *(path for path, _ in unreadable)])
    with contextlib.closing(report):
        for path, error in unreadable:
            report.add(path, error)
        if client is not None:
            requests = arguments.concurrency or _DEFAULT_REQUESTS
            asyncio.run(_on_server(client, paths, report, requests, arguments))
        elif paths:
            _in_process(arguments, paths, report)
    return _SOME_FAILED if report.failed else 0


def _client(arguments: argparse.Namespace) -> AsyncClient:
    name = arguments.key_env or KEY_VARIABLE
    key = os.environ.get(name) or None
    if arguments.key_env and key is None:
        # The name is not repeated: it may be the key itself, by mistake.
        raise UsageError("The environment variable that --key-env names is not set: set it to the API key.")
    try:
        return AsyncClient(arguments.url, api_key=key)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _report(arguments: argparse.Namespace, paths: list[Path]) -> Report:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may contain bytes that are not text
    lines = JsonLines() if arguments.json else Table(max((len(str(path)) for path in paths), default=0))
    return Report(sys.stdout, sys.stderr, lines, Progress(sys.stderr, len(paths)))


async def _on_server(
    client: AsyncClient, paths: list[Path], report: Report, requests: int, arguments: argparse.Namespace
) -> None:
    options = {"concurrency": requests, "top_k": arguments.top_k, "frames": arguments.frames}
    options["threshold"] = arguments.threshold
    async with client, contextlib.aclosing(client.classify_many(paths, **options)) as outcomes:
        names = iter(paths)
        async for outcome in outcomes:
            report.add(next(names), outcome)


def _in_process(arguments: argparse.Namespace, paths: list[Path], report: Report) -> None:
    # Imported here: with --url, torch and LitServe are not needed, nor need they be installed.
    from vit_api.checkpoints.checkpoint import CheckpointError
    from vit_api.classify.local import Shown, load_local

    settings = _settings(arguments)
    threads = arguments.concurrency or available_cores()
    try:
        shown = Shown.of(arguments.top_k, arguments.threshold)
        images = len(paths) * arguments.frames
        classifier = load_local(settings, threads, images, shown=shown, frames=arguments.frames)
    except (CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    many = classifier.classify_many(paths, arguments.top_k, arguments.frames, threshold=arguments.threshold)
    with contextlib.closing(many) as outcomes:
        for path, outcome in zip(paths, outcomes, strict=True):
            report.add(path, outcome)


def _top_k(text: str) -> int | str:
    """Parse a number of classes."""
    if text == ALL:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer or {ALL!r}, not {text!r}")
    return int(text)


def _share(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return number


def _settings(arguments: argparse.Namespace) -> Settings:
    from vit_api.command_line import SettingsError, load_settings
    from vit_api.logs import configure_logging

    try:
        settings = load_settings([] if arguments.model is None else [f"--model={arguments.model}"])
    except SettingsError as error:
        raise UsageError(str(error)) from error
    configure_logging("warning", settings.log_format)
    return settings


def _to_parquet(arguments: argparse.Namespace) -> int:
    from vit_api.classify.bulk.run import run  # needs pyarrow

    return _SOME_FAILED if run(arguments, _settings(arguments)) else 0
