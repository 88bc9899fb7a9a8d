"""Starts, stops and kills real Redis servers for tests, without persistence."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from benchmarks.harness.servers import free_port
from tests.support.server import wait_until


class RedisServer:
    """A Redis server on a free port, which can be killed and started again, empty.

    Attributes:
        url: The URL for clients.
        client: A connected client.
    """

    def __init__(self, folder: str, *options: str) -> None:
        self._port = free_port()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.client = redis.Redis.from_url(self.url)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it responds."""
        command = ["redis-server", "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with Path(self._folder, "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--dir", self._folder, *self._options], stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def entries(self) -> dict[bytes, bytes]:
        """Return all keys and values."""
        names: list[bytes] = list(self.client.scan_iter())
        return {name: self.client.get(name) for name in names}


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run a Redis server until the context ends; skip the test if Redis is not installed."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed; on Debian: apt-get install redis-server")
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(folder, *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
            server.client.close()
