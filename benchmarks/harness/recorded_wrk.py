"""Runs wrk with many clients, each with a session of its own, and records which version answered each request.

Knows nothing of when versions change.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vit_api.load.uploads import FREE_BOX

_FOREVER_S = 3600
_STOP_S = 60.0
_TIMEOUT_S = 60

_SCRIPT = """
local file = io.open("BODY", "rb")
local body = file:read("*a")
file:close()
local record = io.open("RECORD", "w")
record:setvbuf("line")
local count = 0
function request()
  count = count + 1
  local headers = {["x-request-id"] = tostring(count), ["x-session-id"] = "RUN" .. count % CLIENTS}
  return wrk.format("POST", nil, headers, body .. string.format("RUN%08x", count))
end
function response(status, headers)
  record:write(headers["x-request-id"] or 0, " ", status, " ", headers["x-model-version"] or "-", "\\n")
end
function done(summary)
  local e = summary.errors
  print(string.format("counted %d %d", summary.requests, e.connect + e.read + e.write + e.timeout))
end
"""


class Answer(NamedTuple):
    """A response.

    Attributes:
        number: That of the request, in the order in which they were sent, from 1.
        status: The HTTP status.
        version: The version that answered.
    """

    number: int
    status: int
    version: str


class RecordedWrk:
    """A closed loop that runs until it is stopped.

    Args:
        url: Where each request goes.
        upload: The image; each request has one of its own, so that no request waits for another's answer.
        folder: For its files.
        connections: Number of connections.
        clients: Number of clients, which take turns.
    """

    def __init__(self, url: str, upload: bytes, folder: Path, *, connections: int, clients: int) -> None:
        self.connections = connections
        self.clients = clients
        self._record = folder / "record"
        body, script = folder / "body", folder / "script.lua"
        body.write_bytes(upload + FREE_BOX)
        filled = _SCRIPT.replace("BODY", str(body)).replace("RECORD", str(self._record))
        script.write_text(filled.replace("RUN", secrets.token_hex(4)).replace("CLIENTS", str(clients)))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{_FOREVER_S}s", f"--timeout={_TIMEOUT_S}s"]
        self._process = subprocess.Popen([*command, "-s", str(script), url], stdout=subprocess.PIPE, text=True)

    def answers(self) -> list[Answer]:
        """Return the responses so far, in their order."""
        if not self._record.exists():
            return []
        lines = self._record.read_text().split("\n")[:-1]  # the last one may be incomplete
        return [Answer(int(number), int(status), version) for number, status, version in map(str.split, lines)]

    def count(self) -> int:
        """Return the number of responses so far."""
        return self._record.read_bytes().count(b"\n") if self._record.exists() else 0

    def wait_for(self, count: int, deadline_s: float = 900.0) -> None:
        """Wait until so many further requests were answered.

        Raises:
            RuntimeError: It took too long, or wrk has ended.
        """
        wanted, end = self.count() + count, time.monotonic() + deadline_s
        while self.count() < wanted:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"wrk ended, or {count} requests took more than {deadline_s:g} s.")
            time.sleep(0.2)

    def stop(self) -> int:
        """End it, and return the number of requests that got no response."""
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=_STOP_S)
        counted = re.search(r"^counted (\d+) (\d+)$", output, re.MULTILINE)
        if counted is None:
            raise RuntimeError(f"wrk failed: {output}")
        return int(counted[2])

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.communicate()


def sent_after(answers: Sequence[Answer], start: int, connections: int) -> list[Answer]:
    """Return those of the responses from `start` on whose requests were sent after the response before `start`.

    A closed loop has at most `connections` requests in flight, and they are numbered in the order of sending.
    """
    newest = max((answer.number for answer in answers[:start]), default=0)
    return [answer for answer in answers[start:] if answer.number > newest + connections]
