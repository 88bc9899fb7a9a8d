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


def test_a_server_that_is_being_started_is_stopped_as_well(tmp_path: Path) -> None:
    """A SIGTERM that arrives while its process is made ends the benchmark only when somebody would stop it."""
    program = """
import os, signal, subprocess, sys, threading
from benchmarks.harness import servers

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
make = subprocess.Popen

def make_and_terminate(*arguments, **options):
    process = make(*arguments, **options)
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    return process

subprocess.Popen = make_and_terminate
with servers.running([sys.executable, "-c", "import time; time.sleep(600)"], "http://127.0.0.1:9"):
    print("started")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 3, done.stderr
    group = int(done.stdout)
    assert not process_group.living(group)
