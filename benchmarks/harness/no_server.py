"""The upper limit of any server on this machine: one process per core, without HTTP. See the baseline."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

from benchmarks.harness.machine import ROOT

_STOP_S = 30.0


class NoServer:
    """Processes that decode and run full batches on command.

    Args:
        processes: With `benchmarks.baselines.no_server` running in each.
    """

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self._processes = processes

    @classmethod
    @contextlib.contextmanager
    def running(cls, model: str, dtype: str) -> Iterator[NoServer]:
        """Run one process per core until the context ends."""
        command = [sys.executable, "-m", "benchmarks.baselines.no_server", model, "--dtype", dtype]
        with contextlib.ExitStack() as stack:
            processes = []
            for _ in os.sched_getaffinity(0):
                process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                stack.callback(_end, process)
                processes.append(process)
            for process in processes:
                _line(process.stdout)
            yield cls(processes)

    def images_per_s(self, upload: bytes, seconds: float) -> float:
        """Return the images/s of all processes together, measured over some seconds."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(b"%f %d\n%b" % (seconds, len(upload), upload))
            process.stdin.flush()
        return sum(float(_line(process.stdout)) for process in self._processes)


def _line(stream: IO[bytes] | None) -> bytes:
    assert stream is not None
    line = stream.readline()
    if not line:
        raise RuntimeError("A process of the baseline without a server ended.")
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=_STOP_S)  # closes its input, which makes it end
