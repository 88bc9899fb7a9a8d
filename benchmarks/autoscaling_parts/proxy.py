"""Runs HAProxy with deploy/haproxy/haproxy.cfg in front of all ports that a replica may get."""

from __future__ import annotations

import contextlib
import csv
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import machine, servers

CONFIG = machine.ROOT / "deploy" / "haproxy" / "haproxy.cfg"
_CONNECTIONS = 2000
_BACKEND = "vit_api"


class Proxy:
    """A running HAProxy.

    Args:
        url: Its base address.
        admin: The path of its socket for statistics.
    """

    def __init__(self, url: str, admin: Path) -> None:
        self.url = url
        self._admin = admin

    def statistics(self) -> dict[str, dict[str, str]]:
        """Return its statistics of the replicas, by their names, and of all, as `BACKEND`."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._admin))
            connection.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(answer.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == _BACKEND}

    def up(self) -> int:
        """Return how many replicas it sends requests to.

        Those are also the ones that it has not checked yet, or that failed one check: their status is `UP 1/2`.
        """
        return sum(row["status"].startswith("UP") for name, row in self.statistics().items() if name != "BACKEND")

    def repeated(self) -> int:
        """Return how many times it sent a request again, to the same or to another replica."""
        total = self.statistics()["BACKEND"]
        return int(total["wretr"]) + int(total["wredis"])


@contextlib.contextmanager
def running(folder: Path, ports: Sequence[int]) -> Iterator[Proxy]:
    """Run HAProxy; it finds by its health checks which of the ports have a replica that is ready."""
    port, admin = servers.free_port(), folder / "admin"
    config = CONFIG.read_text()
    listed = "\n".join(f"    server vit-api-{port} 127.0.0.1:{port}" for port in ports)
    for old, new in (
        ("\nglobal\n", f"\nglobal\n    stats socket {admin}\n"),
        ("maxconn 8000", f"maxconn {_CONNECTIONS}"),
        ("bind :80", f"bind 127.0.0.1:{port}"),
        ("    server vit-api-1 127.0.0.1:7860", listed),
    ):
        if old not in config:
            raise ValueError(f"{CONFIG} has no {old!r}.")
        config = config.replace(old, new)
    (folder / "haproxy.cfg").write_text(config)
    url = f"http://127.0.0.1:{port}"
    command = ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
    with servers.running(command, url + "/health/ready", cwd=folder, log=folder / "haproxy.log"):
        yield Proxy(url, admin)
