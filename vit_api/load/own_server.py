"""Starts a server on this machine for `vit-api bench`, and stops it. Knows it by its command line and its health."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO

import httpx

_START_S = 900.0
"""Time for a model to be downloaded and loaded."""
_STOP_S = 60.0
_POLL_S = 0.1
_SHOWN_CHARACTERS = 2000


class StartFailed(Exception):
    """The server ended before it was ready, or was not ready in time; the message has the end of its log."""


@contextlib.contextmanager
def own_server(model: str) -> Iterator[str]:
    """Run a server with this model on a free port until the context ends; yield its address.

    Raises:
        StartFailed: It does not become ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vit_api", "serve", "--model", model, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartFailed(f"The server did not start: {_end_of(log)}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health/ready", timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(_POLL_S)
    raise StartFailed(f"The server was not ready within {_START_S:g} s: {_end_of(log)}")


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip()[-_SHOWN_CHARACTERS:]
