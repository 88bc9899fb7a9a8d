"""The service of systemd: the unit is valid and hardened, and the server speaks systemd's protocol."""

from __future__ import annotations

import configparser
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.process_group import living
from tests.support.server import (
    ROOT,
    RunningServer,
    http_processes_of,
    paused,
    serve_by,
    wait_until,
    workers_of,
)
from vit_api.settings import Settings

UNIT = ROOT / "deploy" / "systemd" / "vit-api.service"
END_S = 10.0


def _service() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


@pytest.fixture
def analyze() -> str:
    command = shutil.which("systemd-analyze")
    if command is None:
        pytest.skip("systemd-analyze is not installed; on Debian: apt-get install systemd")
    return command


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Return the unit with this checkout's paths."""
    text = UNIT.read_text().replace("/opt/vit-api/.venv/bin/python", sys.executable)
    path = tmp_path / UNIT.name
    path.write_text(text.replace("/opt/vit-api", str(ROOT)))
    return path


def test_systemd_accepts_the_unit(analyze: str, unit: Path) -> None:
    """Without a warning."""
    result = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    ours = [line for line in result.stderr.splitlines() if UNIT.name in line]
    assert (result.returncode, ours) == (0, []), result.stderr


def test_the_service_is_hardened(analyze: str, unit: Path) -> None:
    """By systemd's own measure, from 0 to 10."""
    command = [analyze, "security", "--offline=true", "--threshold=25", unit]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-500:]


def test_a_stop_has_time_to_drain() -> None:
    """With the default settings."""
    defaults = {name: Settings.model_fields[name].default for name in ("drain_delay_s", "drain_timeout_s")}
    assert int(_service()["TimeoutStopSec"]) > sum(defaults.values()) + END_S


def test_the_server_tells_systemd(tmp_path: Path) -> None:
    """That it loads, that it is ready, again and again that it is alive, and that it stops; then it stops cleanly."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(60)
        lines: list[str] = []
        deadline = time.monotonic() + 120

        def receive(until: str, times: int = 1) -> None:
            while sum(line.startswith(until) for line in lines) < times:
                assert time.monotonic() < deadline, lines
                lines.extend(receiver.recv(4096).decode().split("\n"))

        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "900000"}
        command = [sys.executable, str(ROOT / "server.py")]
        with serve_by(command, tmp_path, variables, model="digits", host="127.0.0.1") as server:
            receive("READY=1")
            assert "loading" in next(line for line in lines if line.startswith("STATUS="))
            receive("STATUS=Serving digits")
            receive("WATCHDOG=1", times=6)
            os.killpg(server.process.pid, signal.SIGTERM)
            receive("STOPPING=1")
            assert server.process.wait(60) == 0
            assert "ERROR" not in server.log.read_text()
            wait_until(lambda: living(server.process.pid) == [])
        assert lines.index("STOPPING=1") > lines.index("READY=1")
        assert lines.count("READY=1") == 1


class Watchdog:
    """systemd's end of the socket: a server with one HTTP process, and when its watchdog is told."""

    def __init__(self, receiver: socket.socket, server: RunningServer) -> None:
        self._receiver = receiver
        self.server = server

    def wait_until_told(self, times: int = 1) -> None:
        self._receiver.settimeout(60)
        while times:
            times -= "WATCHDOG=1" in self._receiver.recv(4096).decode()

    def clear(self) -> None:
        """Drop what was sent before."""
        self._receiver.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while self._receiver.recv(4096):
                pass

    def is_told_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            self._receiver.settimeout(left_s)
            try:
                if "WATCHDOG=1" in self._receiver.recv(4096).decode():
                    return True
            except TimeoutError:
                return False
        return False


@pytest.fixture
def watchdog(tmp_path: Path) -> Iterator[Watchdog]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "900000"}
        command = [sys.executable, str(ROOT / "server.py")]
        settings = {"model": "digits", "host": "127.0.0.1", "api_servers": 1}
        with serve_by(command, tmp_path, variables, **settings) as server:
            ours = Watchdog(receiver, server)
            ours.wait_until_told()
            yield ours


def test_the_watchdog_is_not_told_while_the_main_process_hangs(watchdog: Watchdog) -> None:
    """Nothing else may tell it; systemd would then kill the service."""
    with paused(watchdog.server.process.pid):
        watchdog.clear()
        assert not watchdog.is_told_within(2)
    watchdog.wait_until_told()
    assert len(workers_of(watchdog.server)) == 1


def test_a_hung_http_process_is_replaced_and_the_service_goes_on(watchdog: Watchdog) -> None:
    """The watchdog is told until then: systemd need not restart what repairs itself."""
    (hung,) = http_processes_of(watchdog.server)
    with paused(hung):
        while http_processes_of(watchdog.server) in ([hung], []):
            assert watchdog.is_told_within(10)
    watchdog.wait_until_told(3)
    assert watchdog.server.get("/health/ready").status_code == 200


def test_the_watchdog_is_not_told_while_no_http_process_answers(watchdog: Watchdog) -> None:
    """If each one that is started hangs, the server does not work, although its main process does."""
    hung: set[int] = set()

    def is_silent() -> bool:
        for process in set(http_processes_of(watchdog.server)) - hung:
            os.kill(process, signal.SIGSTOP)
            hung.add(process)
        return len(hung) > 1 and not watchdog.is_told_within(1.5)

    try:
        wait_until(is_silent, 90)
        assert watchdog.server.process.poll() is None
    finally:
        for process in http_processes_of(watchdog.server):
            os.kill(process, signal.SIGCONT)
    watchdog.wait_until_told(3)
    assert watchdog.server.get("/health/ready").status_code == 200
