"""The commands `vit-api load` and `vit-api bench`: their arguments, and what they print and write.

--concurrency is a closed loop: each connection sends its next request once the previous one is answered. --rate is an
open loop: requests are sent on a schedule and latency is measured from the scheduled time, so that no stall is hidden.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_DEFAULT_URL = "http://127.0.0.1:7860"
_FAILED = 1
_MISUSED = 2


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands and their arguments to a parser's subcommands."""
    description = (__doc__ or "").partition("\n\n")[2]
    load = commands.add_parser(
        "load",
        help="put a running server under load",
        description="Put a server under load: any server with POST /predict.\n\n" + description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    load.add_argument("url", nargs="?", default=_DEFAULT_URL, help="the server's address (default: %(default)s)")
    _add_options(load)
    load.set_defaults(run=run_load, parser=load)
    bench = commands.add_parser(
        "bench",
        help="start a server on this machine, and put it under load",
        description="Start a server on this machine with the settings of the environment, put it under load, and stop "
        "it. Client and server share the cores: compare such figures with each other only.\n\n" + description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument("--model", default="digits", help="hub id, directory or `digits` (default: %(default)s)")
    _add_options(bench)
    bench.set_defaults(run=run_bench, parser=bench)


def run_load(options: argparse.Namespace) -> int:
    """Put a server under load and report; return the exit status: 1 if nothing was answered, 2 on misuse."""
    from vit_api.load import report, run  # not at the top: they need packages that other commands don't

    try:
        before = None if options.compare is None else report.read(options.compare)
        console = run.new_console()
        measured = run.measure(options, console)
        console.print(report.title_of(measured))
        console.print(report.table(measured["runs"]))
        if before is not None:
            console.print(report.comparison(before, measured))
    except (run.LoadError, report.ReportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _FAILED if isinstance(error, run.LoadError) else _MISUSED
    problem = _write(options, measured, before)
    if problem is None and not any(one["goodput_per_s"] for one in measured["runs"]):
        problem = "No request was answered: see the errors above."
    if problem is None:
        return 0
    print(f"error: {problem}", file=sys.stderr)
    return _FAILED


def run_bench(options: argparse.Namespace) -> int:
    """Start a server, put it under load, report, and stop it; return the exit status as `run_load` does."""
    from vit_api.load.own_server import StartFailed, own_server

    try:
        with own_server(options.model) as options.url:
            return run_load(options)
    except StartFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return _FAILED


def _write(options: argparse.Namespace, measured: dict[str, Any], before: dict[str, Any] | None) -> str | None:
    """Write the files that the options name; return what failed."""
    from vit_api.load import report

    try:
        if options.json:
            report.write(options.json, measured)
        if options.csv:
            report.write_csv(options.csv, measured["runs"])
        if options.plot:
            from vit_api.load import plot  # matplotlib takes a while

            plot.save({"after": measured} if before is None else {"before": before, "after": measured}, options.plot)
    except OSError as error:
        return f"{error.filename} can't be written: {error.strerror}."
    return None


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency",
        type=_numbers,
        default="1,8,32,128",
        metavar="N,...",
        help="connections of a closed loop (default: %(default)s)",
    )
    load.add_argument(
        "--rate", type=_numbers, metavar="R,...", help="requests/s of an open loop, all processes together"
    )
    add("--arrivals", choices=("poisson", "constant"), default="poisson", help="of an open loop (default: %(default)s)")
    add("--seconds", type=_positive, default=10.0, metavar="S", help="length of each load (default: %(default)g)")
    add("--warm-up", type=float, default=2.0, metavar="S", help="seconds of each before that (default: %(default)g)")
    add("--images", type=Path, metavar="DIR", help="folder of images to send (default: generated photos, 500 x 375)")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--unique", action="store_true", help="send every upload once (the default)")
    share.add_argument(
        "--repeat-share",
        type=float,
        default=0.0,
        metavar="P",
        help="share of requests that repeat an upload, 0 to 1 (default: %(default)g)",
    )
    add("--form", action="store_true", help="send multipart forms (default: raw bodies)")
    add("--header", action="append", default=[], metavar="H", help='additional header, as "Name: value"')
    add("--timeout", type=_positive, default=60.0, metavar="S", help="time limit of a request (default: %(default)g)")
    add("--goodput-ms", type=_positive, metavar="MS", help="maximum latency of goodput (default: none)")
    add("--processes", type=int, default=1, metavar="N", help="client processes that share each load (default: 1)")
    add("--seed", type=int, default=0, metavar="N", help="seed of images and arrivals (default: 0)")
    add("--json", type=Path, metavar="FILE", help="write all figures, for --compare")
    add("--csv", type=Path, metavar="FILE", help="write a line for each load")
    add("--plot", type=Path, metavar="FILE", help="plot latency over goodput as a PNG")
    add("--compare", type=Path, metavar="FILE", help="compare with an earlier run's --json, in the plot, too")


def _numbers(text: str) -> list[float]:
    try:
        return [_positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError("must be positive numbers separated by commas") from None


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be a positive number")
    return number
