"""The limits of a container's CPU and memory, and what fits into them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_api.command_line import load_settings
from vit_api.environment import capacity, cgroup

V2 = {"cgroup.controllers": "cpu memory"}
GIB = 2**30


def _limits(folder: Path, cgroups: str, files: dict[str, str]) -> tuple[float | None, int | None]:
    """Return the CPU and the memory limit of a process with these cgroups."""
    for name, content in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    own = folder / "self"
    own.write_text(cgroups)
    return cgroup.cpu_limit(own, folder / "cgroup"), cgroup.memory_limit(own, folder / "cgroup")


@pytest.mark.parametrize(
    ("cgroups", "files", "limits"),
    [
        pytest.param("0::/\n", V2 | {"cpu.max": "150000 100000", "memory.max": "4294967296"}, (1.5, 4 * GIB), id="v2"),
        pytest.param("0::/\n", V2 | {"cpu.max": "max 100000", "memory.max": "max"}, (None, None), id="v2, no limits"),
        pytest.param(
            "0::/a/b\n",
            V2
            | {"a/b/memory.max": "max", "a/memory.max": "2147483648", "memory.max": "4294967296"}
            | {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"},
            (2.0, 2 * GIB),
            id="v2, the smallest up the tree",
        ),
        pytest.param(
            "0::/kubepods/pod1/x\n", V2 | {"memory.max": "1073741824"}, (None, GIB), id="v2, path of the host"
        ),
        pytest.param("0::/../../x\n", V2 | {"memory.max": "1073741824"}, (None, GIB), id="v2, path above the mount"),
        pytest.param(
            "5:memory:/a/b\n3:cpu,cpuacct:/a\n",
            {"memory/a/b/memory.limit_in_bytes": "9223372036854771712", "memory/a/memory.limit_in_bytes": "3221225472"}
            | {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            (0.5, 3 * GIB),
            id="v1",
        ),
        pytest.param(
            "5:memory:/docker/x\n3:cpu:/docker/x\n0::/\n",
            {"memory/memory.limit_in_bytes": "2147483648", "cpu/cpu.cfs_quota_us": "-1"}
            | {"cpu/cpu.cfs_period_us": "100000"},
            (None, 2 * GIB),
            id="v1 beside v2, path of the host",
        ),
        pytest.param("", {}, (None, None), id="no cgroups"),
    ],
)
def test_limits(tmp_path: Path, cgroups: str, files: dict[str, str], limits: tuple[float | None, int | None]) -> None:
    """Of both versions, and of all cgroups above."""
    assert _limits(tmp_path, cgroups, files) == limits


@pytest.mark.parametrize(
    ("memory", "cores", "arguments", "processes", "pending_mb"),
    [
        pytest.param(65_536.0, 8, [], 8, 512, id="enough"),
        pytest.param(4096.0, 64, [], 5, 164, id="64 cores and 4 GiB"),
        pytest.param(4096.0, 4, [], 4, 318, id="4 cores and 4 GiB"),
        pytest.param(4096.0, 4, ["--max-pending-mb", "256"], 4, 256, id="as in deploy/kubernetes"),
        pytest.param(4096.0, 64, ["--max-pending-mb", "600"], 2, 600, id="more for uploads, fewer processes"),
        pytest.param(512.0, 2, [], 1, 100, id="too little: one process, one largest request"),
        pytest.param(4096.0, 64, ["--api-servers", "8", "--queue-size", "8"], 8, 100, id="as the operator says"),
    ],
)
def test_what_fits(
    monkeypatch: pytest.MonkeyPatch, memory: float, cores: int, arguments: list[str], processes: int, pending_mb: float
) -> None:
    """What the operator sets stays as it is."""
    monkeypatch.setattr(capacity, "memory_mb", lambda: memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(cgroup, "cpu_limit", lambda: None)
    monkeypatch.delenv("VIT_API_API_SERVERS", raising=False)
    settings = load_settings(arguments)
    assert (settings.api_servers, settings.max_pending_mb) == (processes, pending_mb)


def test_this_machine_has_memory() -> None:
    """The real files can be read."""
    memory = capacity.memory_mb()
    assert memory is not None
    assert memory > 256
