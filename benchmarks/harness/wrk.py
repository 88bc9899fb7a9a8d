"""Runs wrk, whose overhead is low enough to share two cores with the server under load."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 60
BOUNDARY = "----benchmark-5f1d"
RAW = "application/octet-stream"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True)
class Load:
    """What wrk measured; latencies are over all requests."""

    requests: int
    seconds: float
    failures: int
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Requests/s."""
        return self.requests / self.seconds

    def check(self, name: str) -> None:
        """Raise a RuntimeError with this name unless there were requests and none failed."""
        if self.failures or not self.requests:
            raise RuntimeError(f"{name}: {self.failures} of {self.requests} requests failed.")


def is_installed() -> bool:
    """Return whether there is a wrk to run."""
    return shutil.which("wrk") is not None


def require() -> None:
    """Exit with status 1 unless wrk is installed."""
    if not is_installed():
        sys.exit("wrk is not installed: on Debian, run `apt-get install wrk`.")


def as_form(upload: bytes) -> bytes:
    """Return a form with the upload in the field `file`, as browsers send it."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    )
    return head.encode() + upload + f"\r\n--{BOUNDARY}--\r\n".encode()


def post(url: str, body: bytes, content_type: str, *, connections: int, seconds: float) -> Load:
    """Send one body repeatedly, with one thread.

    Raises:
        RuntimeError: wrk failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        body_file, script = Path(folder) / "body", Path(folder) / "post.lua"
        body_file.write_bytes(body)
        script.write_text(
            f'local file = io.open("{body_file}", "rb")\n'
            'wrk.method, wrk.body = "POST", file:read("*a")\n'
            f'wrk.headers["Content-Type"] = "{content_type}"\n'
            "file:close()\n"
            "function done(summary, latency)\n"
            "  local e = summary.errors\n"
            "  local failures = e.connect + e.read + e.write + e.status + e.timeout\n"
            "  local p50, p99 = latency:percentile(50), latency:percentile(99)\n"
            '  print(string.format("counted %d %d %d %d %d", summary.requests, summary.duration, failures, p50, p99))\n'
            "end\n"
        )
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            f"--timeout={_TIMEOUT_S}s",
            "-s",
            str(script),
            url,
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    counted = re.search(r"^counted (\d+) (\d+) (\d+) (\d+) (\d+)$", result.stdout, re.MULTILINE)
    if counted is None:
        raise RuntimeError(f"wrk failed: {result.stdout}{result.stderr}")
    requests, microseconds, failures, p50_us, p99_us = map(int, counted.groups())
    return Load(requests, microseconds / 1e6, failures, p50_us / 1e3, p99_us / 1e3)
