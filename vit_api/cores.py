"""Determines how many CPU cores this process may use. Knows nothing of what they are used for."""

from __future__ import annotations

import os
from pathlib import Path

from vit_api import space

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available_cores() -> int:
    """Return the number of cores in the affinity mask, or fewer if a CPU limit (cgroup) or the Space's is lower."""
    cores = len(os.sched_getaffinity(0))
    limits = [limit for limit in (_cgroup_quota(), space.cpu_cores()) if limit is not None]
    return max(1, min([cores, *map(round, limits)]))


def _cgroup_quota() -> float | None:
    """Return the cgroup's CPU quota in cores, or None if there is none."""
    try:
        if _CGROUP_V2.exists():
            quota, period = _CGROUP_V2.read_text().split()
        else:
            quota, period = (path.read_text() for path in _CGROUP_V1)
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return None
