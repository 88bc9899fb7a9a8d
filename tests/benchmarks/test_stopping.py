"""A benchmark that is terminated leaves no server behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import process_group
from tests.support.server import ROOT, wait_until


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_terminated_benchmark_stops_its_servers(tmp_path: Path) -> None:
    """SIGTERM, which `timeout` sends, stops the servers, including a suspended one."""
    command = [sys.executable, "-m", "benchmarks.cache_hit", "--rounds", "1000", "--out", str(tmp_path / "result.json")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as benchmark:
        servers: list[int] = []

        def has_servers() -> bool:
            servers[:] = _children(benchmark.pid)
            return len(servers) >= 2

        try:
            wait_until(has_servers, 120)
            benchmark.send_signal(signal.SIGTERM)
            assert benchmark.wait(60) != 0
        finally:
            benchmark.kill()
    wait_until(lambda: not any(map(process_group.living, servers)), 30)
