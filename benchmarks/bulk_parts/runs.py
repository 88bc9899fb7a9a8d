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

_POLL_S = 0.5
_FINISHED = re.compile(r"^(\d+) images in ", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """What a run took.

    Attributes:
        files: The number of files.
        seconds: From the start of the command until its last results were written.
        cpu_s: CPU time of all its processes.
        memory: Samples of the number of finished files and the bytes that all processes had.
    """

    files: int
    seconds: float
    cpu_s: float
    memory: Sequence[tuple[int, int]]


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
    def between(cls, few: Run, many: Run) -> Rate:
        """Return the difference of two runs: both start Python, Ray and the model once."""
        images, seconds = many.files - few.files, many.seconds - few.seconds
        rate = images / seconds
        return cls(rate, (many.cpu_s - few.cpu_s) / images * 1e6, many.seconds - many.files / rate)


def classify(folder: Path, out: Path, options: Sequence[str], *, part_size: int = 512) -> Run:
    """Classify all files of a folder, with one thread of torch, as the limit has.

    Args:
        folder: The folder.
        out: Where results go; deleted before and after.
        options: Options of `classify`.
        part_size: Files in a file of results.

    Raises:
        RuntimeError: The command failed, or a file has no row.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [str(ray_environment.PYTHON), "-m", "vit_api", "classify", str(folder), "--out", str(out)]
    command += ["--part-size", str(part_size), *options]
    variables = ray_environment.variables(VIT_API_CPU_THREADS="1")
    memory: list[tuple[int, int]] = []
    started = time.time()
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        with ProcessTree(process.pid) as tree:
            while process.poll() is None:
                memory.append((len(_parts(out)) * part_size, tree.memory_bytes()))
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
        return Run(files, ended - started, tree.cpu_seconds(), memory)
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
