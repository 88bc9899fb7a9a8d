"""Runs the limit of bulk classification, one process per core. See `benchmarks.baselines.bulk_limit`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from benchmarks.bulk_parts.runs import Rate
from benchmarks.harness.machine import ROOT

_STOP_S = 30.0


class Limit:
    """Processes that read, decode and run full batches on command.

    Args:
        processes: With the baseline running in each.
    """

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    @classmethod
    @contextlib.contextmanager
    def running(cls, model: Path) -> Iterator[Limit]:
        """Run one process per core until the context ends."""
        command = [sys.executable, "-m", "benchmarks.baselines.bulk_limit", str(model)]
        with contextlib.ExitStack() as stack:
            processes = []
            for _ in os.sched_getaffinity(0):
                process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                stack.callback(process.communicate, timeout=_STOP_S)  # closes its input, which makes it end
                processes.append(process)
            for process in processes:
                _line(process.stdout)
            yield cls(processes)

    def rate(self, folder: Path) -> Rate:
        """Return what all processes together take for the files of a folder, each for its share."""
        files, count = len(os.listdir(folder)), len(self._processes)  # noqa: PTH208
        for first, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(f"{first} {count} {folder}\n")
            process.stdin.flush()
        took = [tuple(map(float, _line(process.stdout).split())) for process in self._processes]
        return Rate(files / max(seconds for seconds, _ in took), sum(cpu for _, cpu in took) / files * 1e6, 0.0)


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    line = stream.readline()
    if not line:
        raise RuntimeError("A process of the limit ended.")
    return line
