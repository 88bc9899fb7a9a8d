"""Runs wrk, whose overhead is low enough to share two cores with the server under load."""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from vit_api.load.uploads import FREE_BOX

_TIMEOUT_S = 60
_MARK = b"{unique-request}"
"""The placeholder for the box's content, which differs in each request."""


@dataclass(frozen=True)
class Load:
    """What a client measured; latencies are over all responses.

    Attributes:
        requests: The responses, errors among them.
        seconds: The duration of the load.
        failures: Requests without a response, and responses with an error status.
        p50_ms: The median latency.
        p99_ms: Its 99th percentile.
        error_statuses: The responses with an error status.
    """

    requests: int
    seconds: float
    failures: int
    p50_ms: float
    p99_ms: float
    error_statuses: int = 0

    @property
    def successes(self) -> int:
        """The responses without an error status."""
        return self.requests - self.error_statuses

    @property
    def rate(self) -> float:
        """Successful requests/s."""
        return self.successes / self.seconds

    def check(self, name: str) -> None:
        """Raise a RuntimeError with this name unless there were requests and none failed."""
        if self.failures or not self.requests:
            raise RuntimeError(f"{name}: {self.failures} of {self.requests} requests failed.")


def is_installed() -> bool:
    """Return whether wrk is installed."""
    return shutil.which("wrk") is not None


def require() -> None:
    """Exit with status 1 unless wrk is installed."""
    if not is_installed():
        sys.exit("wrk is not installed: on Debian, run `apt-get install wrk`.")


def marked(upload: bytes) -> bytes:
    """Return an upload that `post` makes unique in each request, so that no cache has it."""
    return upload + FREE_BOX + _MARK


_SCRIPT = """
local file = io.open("BODY", "rb")
local body = file:read("*a")
file:close()
wrk.method, wrk.body = "POST", body
local from, to = body:find("MARK", 1, true)
if from then
  local before, after, count
  function init()
    local whole = wrk.format()
    before = whole:sub(1, #whole - #body + from - 1)
    after, count = body:sub(to + 1), 0
  end
  function request()
    count = count + 1
    return before .. string.format("RUN%08x", count) .. after
  end
end
function done(summary, latency)
  local e = summary.errors
  local failures = e.connect + e.read + e.write + e.status + e.timeout
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  print(string.format("counted %d %d %d %d %d %d",
    summary.requests, summary.duration, failures, p50, p99, e.status))
end
"""


def _script(body: Path, headers: Mapping[str, str]) -> str:
    lines = [f'wrk.headers["{name}"] = "{value}"\n' for name, value in headers.items()]
    filled = _SCRIPT.replace("BODY", str(body)).replace("MARK", _MARK.decode()).replace("RUN", secrets.token_hex(4))
    return "".join(lines) + filled


def post(
    url: str,
    body: bytes,
    content_type: str,
    *,
    connections: int,
    seconds: float,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Load:
    """Send one body repeatedly, with one thread; an upload in it that is `marked` is unique in each request.

    Raises:
        RuntimeError: wrk failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        body_file, script = Path(folder) / "body", Path(folder) / "post.lua"
        body_file.write_bytes(body)
        script.write_text(_script(body_file, {"Content-Type": content_type, **headers}))
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{math.ceil(seconds)}s",
            f"--timeout={_TIMEOUT_S}s",
            "-s",
            str(script),
            url,
        ]
        output = _output_of(command, seconds)
    counted = re.search(r"^counted (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$", output, re.MULTILINE)
    if counted is None:
        raise RuntimeError(f"wrk failed: {output}")
    requests, microseconds, failures, p50_us, p99_us, statuses = map(int, counted.groups())
    return Load(requests, microseconds / 1e6, failures, p50_us / 1e3, p99_us / 1e3, statuses)


def _output_of(command: Sequence[str], seconds: float) -> str:
    """Run wrk; return what it printed. It counts whole seconds only, so it is interrupted before the end of the last.

    Raises:
        subprocess.TimeoutExpired: It did not end; it was killed.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            if seconds % 1:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.communicate(timeout=seconds)[0]
                process.send_signal(signal.SIGINT)
            return process.communicate(timeout=seconds + _TIMEOUT_S)[0]
        except BaseException:
            process.kill()
            raise
