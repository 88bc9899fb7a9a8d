"""Determines how many CPU cores this process may use. Knows nothing of what they are used for."""

from __future__ import annotations

import os

from vit_api.environment import cgroup, space


def available_cores() -> int:
    """Return the number of cores in the affinity mask, or fewer if a CPU limit (cgroup) or the Space's is lower."""
    cores = len(os.sched_getaffinity(0))
    limits = [limit for limit in (cgroup.cpu_limit(), space.cpu_cores()) if limit is not None]
    return max(1, min([cores, *map(round, limits)]))
