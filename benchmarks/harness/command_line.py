"""The command line shared by the benchmarks. Rejects a result that must not be written before anything is measured."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.harness import results


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a benchmark's parser, with `--out`.

    Args:
        name: The benchmark's name; its result is committed as `results/NAME.json`.
        doc: The docstring of its module, whose first line becomes the description.
    """
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").split("\n")[0])
    made.add_argument("--out", type=Path, default=results.file_of(name), help="result file (default: %(default)s)")
    return made


def add_turns(to: argparse.ArgumentParser, *, rounds: int, seconds: float, note: str = "") -> None:
    """Add `--rounds` and `--seconds` of turns."""
    to.add_argument("--rounds", type=int, default=rounds, help="turns of each measurement (default: %(default)s)")
    to.add_argument("--seconds", type=float, default=seconds, help=f"length of a turn{note} (default: %(default)s)")


def parse(with_parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; exit with status 1 if the result must not be written where it should go.

    From now on SIGTERM, which `timeout` sends, ends the benchmark like Ctrl-C: its servers are stopped first.
    """
    options = with_parser.parse_args(arguments)
    if reason := results.refusal(options.out):
        sys.exit(reason)
    signal.signal(signal.SIGTERM, _stop)
    return options


def run_turns(
    name: str,
    doc: str | None,
    measure: Callable[[int, float], Any],
    arguments: Sequence[str] | None,
    *,
    rounds: int,
    seconds: float,
) -> None:
    """Run a benchmark whose only options are those of its turns; print and write what `measure` returns."""
    with_parser = parser(name, doc)
    add_turns(with_parser, rounds=rounds, seconds=seconds)
    options = parse(with_parser, arguments)
    result = measure(options.rounds, options.seconds)
    print(json.dumps(result, indent=1))
    results.write(options.out, {"result": result})


def _stop(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
