"""Rerun every benchmark with a committed result, one by one, and write the tables: `make results`.

    python -m benchmarks.rerun [NAME ...]

Prints first how long it takes. Each benchmark runs in its own process and writes its own result. A failed one is
reported at the end, and does not stop the others. `--quick` runs each in its shortest form, and writes the results to a
temporary folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import machine, results


class _Planned(NamedTuple):
    """A benchmark.

    Attributes:
        name: The name of its module and its result.
        minutes: Its approximate duration on two cores.
        quick: The arguments of its shortest form.
    """

    name: str
    minutes: float
    quick: tuple[str, ...]


_SHORT_COURSE = ("--rise-s", "4", "--roll-out-s", "14", "--fall-s", "28", "--end-s", "50")
_TURN = ("--rounds", "1", "--seconds", "1")
PLAN = (
    _Planned("accuracy", 1, ("--max-images", "20")),
    _Planned("compare", 44, ("--quick",)),
    _Planned("batching", 8, ("--rates", "20", *_TURN)),
    _Planned("scaling", 8, ("--only", "camera", *_TURN)),
    _Planned("resizing", 1, ("--max-images", "20")),
    _Planned("engines", 10, ("--models", "ViT-S/14", *_TURN)),
    _Planned("quantized", 4, ("--connections", "8", *_TURN)),
    _Planned("profile", 2, ("--seconds", "2")),
    _Planned("tune", 15, ("--settings", "max_wait_ms", "--connections", "8", *_TURN)),
    _Planned("overload", 3, ("--rounds", "1", "--seconds", "2")),
    _Planned("urgency", 2.5, ("--rounds", "1", "--seconds", "2")),
    _Planned("worst_uploads", 2, ("--repeats", "1", "--share", "0.1")),
    _Planned("cache_hit", 6, ("--rounds", "1")),
    _Planned("cache_memory", 1, ("--entries", "2000")),
    _Planned("answer_table", 2, ("--rounds", "1", "--entries", "100", "--look-ups", "10")),
    _Planned("metrics_cost", 1, ("--rounds", "1", "--counts", "100")),
    _Planned("bulk", 13, ("--quick",)),
    _Planned("ray_serve", 8, ("--rounds", "1", "--seconds", "2")),
    _Planned("autoscaling", 16, ("--speed", "30", "--batch-s", "0.4", "--rate", "40", *_SHORT_COURSE)),
    _Planned("versions", 8, ("--clients", "100", "--requests", "1000", "--kills", "1")),
    _Planned("neighbours", 16, ("--rounds", "1", "--seconds", "2", "--loads", "1")),
    _Planned("soak", 5.5, ("--minutes", "0.2")),
)


_TABLES = ("benchmarks.report", "scripts.space_costs")
"""What writes the tables of results."""


def run(planned: _Planned, folder: Path | None) -> int:
    """Run one benchmark; return its exit status.

    Args:
        planned: The benchmark.
        folder: The folder for the result of its shortest form; None runs it in full, for the committed result.
    """
    arguments = () if folder is None else (*planned.quick, "--out", str(folder / f"{planned.name}.json"))
    return _run_module(f"benchmarks.{planned.name}", *arguments)


def _run_module(name: str, *arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", name, *arguments], cwd=machine.ROOT, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks of the command line; exit with status 1 if one failed or must not be written."""
    names = [planned.name for planned in PLAN]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rerun", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run (default: {', '.join(names)})")
    parser.add_argument("--quick", action="store_true", help="the shortest form of each, whose result is not kept")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if not options.quick and (reason := results.refusal(results.FOLDER)):
        sys.exit(reason)
    chosen = [planned for planned in PLAN if planned.name in options.names or not options.names]
    if not options.quick:
        print(f"{len(chosen)} benchmarks, about {sum(planned.minutes for planned in chosen):.0f} minutes.", flush=True)
    if failed := _run_all(chosen, is_quick=options.quick):
        sys.exit(f"Failed: {', '.join(failed)}; see above.")


def _run_all(chosen: Sequence[_Planned], *, is_quick: bool) -> list[str]:
    """Run benchmarks, and write the tables of their results; return the names of those that failed."""
    failed = []
    with tempfile.TemporaryDirectory() as name:
        for planned in chosen:
            print(f"--- {planned.name}", flush=True)
            started = time.monotonic()
            if run(planned, Path(name) if is_quick else None):
                failed.append(planned.name)
            print(f"--- {planned.name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    if not is_quick:
        failed += [module for module in _TABLES if _run_module(module)]
    return failed


if __name__ == "__main__":
    main()
