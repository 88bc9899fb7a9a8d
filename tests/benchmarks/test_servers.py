"""The launcher of servers, with trivial servers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.harness import process_group, servers
from tests.support.server import wait_until

_ENDS = "import sys; print('no model', flush=True); sys.exit(3)"
_LEAVES_A_CHILD = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(os.getpid(), flush=True)
sys.exit(3)
"""


def file_server() -> tuple[list[str], str]:
    """Return the command of a server that answers every GET, and its URL."""
    port = servers.free_port()
    return [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], f"http://127.0.0.1:{port}/"


def test_a_server_runs_within_its_context(tmp_path: Path) -> None:
    """It is ready when the context begins, and afterwards no process of its group is left."""
    command, url = file_server()
    with servers.running(command, url, cwd=tmp_path, log=tmp_path / "log") as process:
        assert httpx.get(url, **servers.PLAIN_HTTP).status_code == 200
    assert process.returncode is not None
    assert process_group.living(process.pid) == []


def test_a_suspended_server_is_stopped(tmp_path: Path) -> None:
    """It is resumed first, since a suspended process handles no signals."""
    command, url = file_server()
    with servers.running(command, url, cwd=tmp_path, log=tmp_path / "log") as process:
        os.killpg(process.pid, signal.SIGSTOP)
    assert process.returncode == -signal.SIGTERM


def test_a_server_that_exits_early_is_an_error_with_its_log(tmp_path: Path) -> None:
    """The error is raised at once, not at the timeout."""
    _, url = file_server()
    with (
        pytest.raises(RuntimeError, match=r"ended with status 3\. Its log:\nno model"),
        servers.running([sys.executable, "-c", _ENDS], url, log=tmp_path / "log"),
    ):
        pass


def test_children_of_a_server_are_killed(tmp_path: Path) -> None:
    """They are in its process group."""
    _, url = file_server()
    log = tmp_path / "log"
    with pytest.raises(RuntimeError), servers.running([sys.executable, "-c", _LEAVES_A_CHILD], url, log=log):
        pass
    wait_until(lambda: not process_group.living(int(log.read_text())))


def test_the_cpu_time_of_exited_children_counts(tmp_path: Path) -> None:
    """Replacing a process does not lower a server's CPU time."""
    child = "import time\nwhile time.process_time() < 0.3: pass"
    program = f"import signal, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        wait_until(lambda: process_group.cpu_seconds(process.pid) >= 0.3 and _has_no_child(process.pid))
        assert process_group.cpu_seconds(process.pid) >= 0.3
    finally:
        process.kill()
        process.wait()


def _has_no_child(pid: int) -> bool:
    return process_group.living(pid) == [pid]


def test_settings_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the given settings are in the environment, together with unrelated variables."""
    monkeypatch.setenv("VIT_API_MODEL", "another")
    monkeypatch.setenv("UNRELATED", "kept")
    environment = servers.environment_with(cache_size=0)
    assert environment["VIT_API_CACHE_SIZE"] == "0"
    assert "VIT_API_MODEL" not in environment
    assert environment["UNRELATED"] == "kept"


@pytest.mark.parametrize("must_stop", [True, False])
def test_a_server_that_does_not_stop_is_killed(tmp_path: Path, must_stop: bool) -> None:
    """For a server that is only compared with, that is no error."""
    port = servers.free_port()
    program = tmp_path / "stubborn.py"
    program.write_text(
        "import http.server as web, signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "web.HTTPServer(('127.0.0.1', int(sys.argv[1])), web.SimpleHTTPRequestHandler).serve_forever()\n"
    )
    command = [sys.executable, str(program), str(port)]
    error = pytest.raises(subprocess.TimeoutExpired) if must_stop else contextlib.nullcontext()
    log = tmp_path / "log"
    with (
        error,
        servers.running(
            command, f"http://127.0.0.1:{port}/", cwd=tmp_path, log=log, stop_s=0.2, must_stop=must_stop
        ) as process,
    ):
        pass
    assert process.wait(10) == -signal.SIGKILL
