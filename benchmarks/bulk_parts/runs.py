"""Runs `classify --out` as a user would, and measures it from outside."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ray_environment
from benchmarks.harness.machine import ROOT
from benchmarks.harness.process_tree import ProcessTree

_POLL_S = 0.25
_FINISHED = re.compile(r"^(\d+) images in ", re.MULTILINE)
_STEADY = (0.25, 0.85)
"""Shares of the files between which a run is compared with itself: after its start, and before decoding ends."""


@dataclass(frozen=True)
class Sample:
    """A run at one moment.

    Attributes:
        at_s: Seconds of the monotonic clock.
        done: Files whose results are written.
        cpu_s: CPU time of all its processes until then.
        memory_bytes: What they have in memory; 0 if that was not asked for.
    """

    at_s: float
    done: int
    cpu_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Run:
    """What a run took.

    Attributes:
        files: The number of files.
        seconds: From the start of the command until its last results were written.
        samples: What was seen meanwhile, at least one.
    """

    files: int
    seconds: float
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Rate:
    """What one more image takes.

    Attributes:
        images_per_s: Images per second.
        cpu_us: CPU time of an image, in microseconds.
        start_s: What a run takes beside its images.
    """

    images_per_s: float
    cpu_us: float
    start_s: float

    @classmethod
    def of(cls, run: Run) -> Rate:
        """Return the rate in the middle of a run.

        There, as many files are decoded and not yet classified at the end as at the start.

        Raises:
            RuntimeError: The run was too short to see its middle.
        """
        first, last = (
            next((sample for sample in run.samples if sample.done >= share * run.files), None) for share in _STEADY
        )
        if first is None or last is None or first.done == last.done:
            raise RuntimeError("The run was too short to be measured: give it more images.")
        images = last.done - first.done
        rate = images / (last.at_s - first.at_s)
        return cls(rate, (last.cpu_s - first.cpu_s) / images * 1e6, run.seconds - run.files / rate)


def classify(folder: Path, out: Path, options: Sequence[str], *, part_size: int, memory: bool = False) -> Run:
    """Classify all files of a folder, with one thread of torch, as the limit has.

    Args:
        folder: The folder.
        out: Where results go; deleted before and after.
        options: Options of `classify`.
        part_size: Files in a file of results.
        memory: Whether samples have it, which takes the measured processes' time.

    Raises:
        RuntimeError: The command failed, or a file has no row.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [str(ray_environment.PYTHON), "-m", "vit_api", "classify", str(folder), "--out", str(out)]
    command += ["--part-size", str(part_size), *options]
    variables = ray_environment.variables(VIT_API_CPU_THREADS="1")
    samples: list[Sample] = []
    started = time.time()
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        with ProcessTree(process.pid) as tree:
            while process.poll() is None:
                done = len(_parts(out)) * part_size
                samples.append(Sample(time.monotonic(), done, tree.cpu_seconds(), tree.memory_bytes() if memory else 0))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        _, log = process.communicate()
        finished = _FINISHED.search(log)
        if process.returncode or not finished:
            raise RuntimeError(f"{' '.join(command)} failed: {log}")
        files = int(finished[1])
        if "--shard" not in options and files != len(os.listdir(folder)):  # noqa: PTH208
            raise RuntimeError(f"{' '.join(command)} classified {files} files.")
        ended = max(part.stat().st_mtime for part in _parts(out))
        return Run(files, ended - started, samples)
    finally:
        process.kill()
        shutil.rmtree(out, ignore_errors=True)


def _parts(out: Path) -> list[Path]:
    return list(out.glob("part-*.parquet"))


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Have the processes that are started in this context run on so many of this process's cores."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)
