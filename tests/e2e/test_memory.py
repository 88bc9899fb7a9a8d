"""What an HTTP process takes while the largest uploads arrive together, in each way of sending them.

The kernel's figure of the highest resident set, reset before each attack, is compared with what the process took at the
start and the bound in docs/security.md: the memory for uploads and that for decoding, with a margin for the allocator
and the sockets. After the attack, no more than the margin is left.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.server import PLAIN_HTTP, RunningServer, http_processes_of, serve, wait_until

pytestmark = pytest.mark.anyio

MIB = 2**20
MAX_PENDING_MB, MAX_DECODE_MB = 512, 350
MARGIN_MB = 100
UPLOAD_BYTES = 32 * MIB - 4096
FORM = {"content-type": "multipart/form-data; boundary=b"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(is_fresh=True, api_servers=1, max_pending_mb=MAX_PENDING_MB, max_decode_mb=MAX_DECODE_MB) as running:
        yield running


@pytest.fixture(scope="module")
def start_mb(server: RunningServer) -> float:
    """What the HTTP process takes before the first upload."""
    (process,) = http_processes_of(server)
    return resident_mb(process)


def upload() -> bytes:
    return os.urandom(UPLOAD_BYTES)


def part(name: str, content: bytes) -> bytes:
    return b'--b\r\ncontent-disposition: form-data; name="%s"; filename="a"\r\n\r\n%s\r\n' % (name.encode(), content)


def base64_json(line_length: int) -> bytes:
    """A base64 text, in lines, as MIME has it: what costs the most copies."""
    text = base64.b64encode(upload()).decode()
    lines = [text[at : at + line_length] for at in range(0, len(text), line_length)]
    return json.dumps({"image": "\n".join(lines)}).encode()


def binary_tensor() -> bytes:
    files = b"".join(len(file).to_bytes(4, "little") + file for file in [upload()] * 3)
    header = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(files)}}]
    }
    start = json.dumps(header).encode()
    return b"%08d" % len(start) + start + files


WAYS: dict[str, tuple[str, int, Callable[[], bytes], dict[str, str]]] = {
    "raw": ("/predict", 18, upload, {}),
    "form": ("/predict", 18, lambda: part("file", upload()) + b"--b--\r\n", FORM),
    "form of several": ("/predict/batch", 6, lambda: part("files", upload()) * 3 + b"--b--\r\n", FORM),
    "json": ("/predict", 12, lambda: json.dumps({"image": base64.b64encode(upload()).decode()}).encode(), JSON),
    "json in lines": ("/predict", 12, lambda: base64_json(76), JSON),
    "gzip": ("/predict", 12, lambda: gzip.compress(bytes(UPLOAD_BYTES), 1), {"content-encoding": "gzip"}),
    "wide text": ("/predict", 12, lambda: b'{"image": "\\ud83d\\ude00' + b"A" * UPLOAD_BYTES + b'"}', JSON),
    "binary tensor": ("/v2/models/digits/infer", 6, binary_tensor, {}),
}


def resident_mb(pid: int, kind: str = "VmRSS") -> float:
    """Return the resident set in MiB; `VmHWM` for the highest since it was reset."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) / 1024


@pytest.mark.parametrize("way", WAYS)
async def test_the_largest_uploads_take_no_more_memory_than_stated(
    server: RunningServer, start_mb: float, way: str
) -> None:
    """However they are sent, and it is returned afterwards; those that don't fit get a 503."""
    path, count, build, headers = WAYS[way]
    body = build()
    if way == "binary tensor":
        headers = {"inference-header-content-length": str(int(body[:8]))}
        body = body[8:]
    (process,) = http_processes_of(server)
    Path(f"/proc/{process}/clear_refs").write_text("5")
    async with httpx.AsyncClient(base_url=server.url, timeout=120, headers=headers, **PLAIN_HTTP) as client:
        responses = await asyncio.gather(
            *(client.post(path, content=body) for _ in range(count)), return_exceptions=True
        )
    statuses = [response.status_code for response in responses if isinstance(response, httpx.Response)]
    grown_mb = resident_mb(process, "VmHWM") - start_mb
    assert grown_mb < MAX_PENDING_MB + MAX_DECODE_MB + MARGIN_MB
    wait_until(lambda: resident_mb(process) - start_mb < MARGIN_MB)
    assert set(statuses) <= {200, 400, 413, 415, 503, 504}
    assert httpx.get(server.url + "/health", timeout=30, **PLAIN_HTTP).status_code == 200


async def test_photos_take_no_more_memory_than_stated() -> None:
    """Their blocks of less than 8 MiB are kept for further ones, until the process is idle for a minute.

    What is announced, and does not arrive, takes memory only in proportion to what has arrived: neither at first nor
    once the process has freed blocks of that size, which it would have to clear.
    """
    with serve(api_servers=1, max_pending_mb=MAX_PENDING_MB, max_decode_mb=MAX_DECODE_MB) as server:
        (process,) = http_processes_of(server)
        start_mb = resident_mb(process)
        arrived_mb = await announce(server)
        assert resident_mb(process, "VmHWM") - start_mb < 4 * arrived_mb + MARGIN_MB
        async with httpx.AsyncClient(base_url=server.url, timeout=120, **PLAIN_HTTP) as client:
            for size, count in ((2_500_000, 220), (7 * MIB, 80)):
                photo = os.urandom(size)
                await asyncio.gather(
                    *(client.post("/predict", content=photo) for _ in range(count)), return_exceptions=True
                )
        assert resident_mb(process, "VmHWM") - start_mb < MAX_PENDING_MB + MAX_DECODE_MB + MARGIN_MB
        before_mb = resident_mb(process)
        Path(f"/proc/{process}/clear_refs").write_text("5")
        arrived_mb = await announce(server)
        assert resident_mb(process, "VmHWM") - before_mb < 4 * arrived_mb + MARGIN_MB


async def announce(server: RunningServer, count: int = 300, first_bytes: int = 70_000) -> float:
    """Begin large uploads that never end, and return how much of them has arrived, in MiB."""
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (8 * MIB - 4096)
    with contextlib.ExitStack() as connections:
        for _ in range(count):
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
            connection.sendall(head + bytes(first_bytes))
        assert httpx.get(server.url + "/health", timeout=30, **PLAIN_HTTP).status_code == 200
    return count * first_bytes / MIB
