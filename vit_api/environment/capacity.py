"""Fits the number of HTTP processes, and the memory of each for uploads, to the memory of this container or machine."""

from __future__ import annotations

from pathlib import Path

from vit_api.environment import cgroup

MODEL_MB = 1024.0
"""What is left for the main process and the worker, whose figures docs/operations.md has."""
HTTP_PROCESS_MB = 100.0
"""What an HTTP process takes besides uploads and decoding: 79 MiB resident once it has started, and 10,000 cache
entries of up to 2.3 KB."""

_MEMORY = Path("/proc/meminfo")


def memory_mb() -> float | None:
    """Return the memory that this process and its children may use, in MiB; None if unknown."""
    limits = [limit for limit in (cgroup.memory_limit(), _machine()) if limit is not None]
    return min(limits) / 2**20 if limits else None


def fit(
    memory: float, cores: int, *, processes: int | None, pending_mb: float, decode_mb: float, request_mb: float
) -> tuple[int, float]:
    """Return how many HTTP processes fit, and the memory of each for uploads in MiB.

    At least one process, with memory for the largest request.

    Args:
        memory: The memory for all processes, in MiB.
        cores: The number of cores; further processes bring nothing.
        processes: The number of processes if it is already decided.
        pending_mb: The most memory for uploads that a process is to have.
        decode_mb: The memory for decoding in each process.
        request_mb: The size of the largest request.
    """
    room = max(0.0, memory - MODEL_MB)
    taken = HTTP_PROCESS_MB + decode_mb
    if processes is None:
        processes = max(1, min(cores, int(room // (taken + request_mb))))
    return processes, max(request_mb, min(pending_mb, float(int(room / processes - taken))))


def _machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
        return int(lines["MemTotal"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
