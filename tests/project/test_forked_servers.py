"""Forked servers look like started ones to tests: status, output, variables, folder and session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.harness.servers import environment_with, free_port
from tests.support import forked_servers
from tests.support.server import ROOT

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.mark.parametrize("start", [pytest.param(s, id=s.__module__) for s in (subprocess.Popen, forked_servers.start)])
def test_a_bad_setting_ends_it(start: Start, tmp_path: Path) -> None:
    """The status is 1 or 2 as of the program, the variables are the caller's, and its log has the reason."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = start(
            [sys.executable, str(ROOT / "server.py")],
            cwd=tmp_path,
            env=environment_with(port="none"),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    assert process.wait(60) == process.poll() != 0
    assert "VIT_API_PORT" in log.read_text()


def test_a_killed_one_has_its_signal(tmp_path: Path) -> None:
    """As with Popen; until then it is a process group and session of its own, in the folder that was asked for."""
    command = [sys.executable, "-m", "tests.support.slow_server"]
    process = forked_servers.start(command, cwd=tmp_path, env=environment_with(model="digits", port=free_port()))
    assert isinstance(process, forked_servers.ForkedServer)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    assert os.getsid(process.pid) == process.pid
    process.kill()
    assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("variables", [{"HF_HOME": "/nowhere"}, {"OMP_NUM_THREADS": "3"}], ids=str)
def test_variables_that_imports_read_are_not_ignored(variables: dict[str, str], tmp_path: Path) -> None:
    """A server with such variables gets an interpreter of its own."""
    environment = environment_with(port="none") | variables
    process = forked_servers.start(
        [sys.executable, str(ROOT / "server.py")],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,  # type: ignore[arg-type]
        stderr=subprocess.DEVNULL,  # type: ignore[arg-type]
    )
    assert not isinstance(process, forked_servers.ForkedServer)
    assert process.wait(60) != 0
