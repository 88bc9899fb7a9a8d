"""What a service manager is told, through a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vit_api.processes.service_manager import ServerStatus, ServiceManager

LOADING = ServerStatus(is_ready=False, is_stopping=False, is_healthy=True, text="The model is loading.")
SERVING = ServerStatus(is_ready=True, is_stopping=False, is_healthy=True, text="Serving.")


class Manager:
    """A service manager's end of the socket, and the server's status and clock."""

    def __init__(self, receiver: socket.socket, address: str, **variables: str) -> None:
        self.status, self.now = LOADING, 100.0
        self._receiver = receiver
        environment = {"NOTIFY_SOCKET": address, **variables}
        self._ours = ServiceManager(lambda: self.status, environment, lambda: self.now)

    def lines(self) -> list[str]:
        """Update, and return what arrives."""
        self._ours.update()
        try:
            return self._receiver.recv(4096).decode().split("\n")
        except BlockingIOError:
            return []


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@vit-api-test-{os.getpid()}"


@pytest.fixture
def receiver(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setblocking(False)
        receiver.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        yield receiver


def test_each_state_is_sent_once(receiver: socket.socket, address: str) -> None:
    """And the status whenever it changes."""
    manager = Manager(receiver, address)
    assert manager.lines() == ["STATUS=The model is loading."]
    assert manager.lines() == []
    manager.status = SERVING
    assert manager.lines() == ["READY=1", "STATUS=Serving."]
    manager.status = replace(SERVING, is_ready=False, is_stopping=True, text="Stopping.")
    assert manager.lines() == ["STOPPING=1", "STATUS=Stopping."]
    assert manager.lines() == []


def test_what_finds_the_queue_full_is_sent_again(receiver: socket.socket, address: str) -> None:
    """The system keeps few messages for a service manager that does not read."""
    manager = Manager(receiver, address, WATCHDOG_USEC="30000000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"other", address.replace("@", "\0", 1) if address.startswith("@") else address)
    manager.status = SERVING
    while (lines := manager.lines()) == ["other"]:
        pass
    assert lines == ["READY=1", "STATUS=Serving.", "WATCHDOG=1"]
    assert manager.lines() == []


def test_the_watchdog_is_told_while_the_server_is_healthy(receiver: socket.socket, address: str) -> None:
    """Three times within its limit, and not at all otherwise."""
    manager = Manager(receiver, address, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    assert manager.lines()[-1] == "WATCHDOG=1"
    manager.now += 9
    assert manager.lines() == []
    manager.now += 1
    assert manager.lines() == ["WATCHDOG=1"]
    manager.status = replace(LOADING, is_healthy=False)
    manager.now += 60
    assert manager.lines() == []


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}])
def test_without_a_watchdog_of_ours_nothing_is_sent(
    receiver: socket.socket, address: str, variables: dict[str, str]
) -> None:
    """The variables may be missing, or meant for a parent."""
    manager = Manager(receiver, address, **variables)
    manager.now += 1000
    assert "WATCHDOG=1" not in manager.lines()


def test_nobody_listens(tmp_path: Path) -> None:
    """Neither a missing variable nor a socket that is gone is an error."""
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        ServiceManager(lambda: SERVING, environment).update()
