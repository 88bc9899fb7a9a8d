"""The image as it is deployed: read-only, without privileges, stopped by its runtime."""

from __future__ import annotations

import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.container.engine import BASE, Container, Engine, serve
from tests.support.fake_hub import FIRST, NAME, FakeHub, hub_server
from tests.support.samples import make_checkpoint
from tests.support.server import ROOT, wait_until

pytestmark = pytest.mark.container

_UPLOADS = {digit: (ROOT / "examples" / f"digit-{digit}.png").read_bytes() for digit in "37"}
_MB = 10**6


@pytest.mark.parametrize("digit", _UPLOADS)
@pytest.mark.parametrize("form", [False, True], ids=["raw", "form"])
def test_images_are_classified(digits: Container, digit: str, form: bool) -> None:
    body: dict[str, Any] = {"files": {"file": _UPLOADS[digit]}} if form else {"content": _UPLOADS[digit]}
    answer = httpx.post(f"{digits.url}/predict", timeout=60, **body)
    assert answer.json()["predictions"][0]["label"] == digit


def test_health_and_metrics(digits: Container) -> None:
    """The endpoints that orchestrators and Prometheus use."""
    assert httpx.get(f"{digits.url}/health/live").status_code == 200
    assert httpx.get(f"{digits.url}/health").json()["status"] == "ok"
    assert re.search(r"^inference_ready\S* 1", httpx.get(f"{digits.url}/metrics").text, re.MULTILINE)


def test_it_has_no_privileges(digits: Container) -> None:
    """It runs as an ordinary user, has no capabilities and can't gain any, and has no compiler."""
    assert digits.execute("id", "-u").stdout.strip() == "1000"
    status = dict(line.split(":\t", 1) for line in digits.execute("cat", "/proc/1/status").stdout.splitlines())
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    for program in ("cc", "gcc", "cpp", "ld", "as"):
        assert digits.execute("sh", "-c", f"command -v {program}", check=False).returncode != 0


@pytest.mark.parametrize("folder", ["/", "/app", "/opt/venv", "/home/user", "/etc", "/var/tmp"])
def test_its_root_is_read_only(digits: Container, folder: str) -> None:
    result = digits.execute("touch", f"{folder}/file", check=False)
    assert result.returncode != 0
    assert "Read-only file system" in result.stderr


def test_it_writes_only_to_tmp(digits: Container) -> None:
    """Its layer has nothing but mount points."""
    listed = digits.engine.run("podman", "diff", "--format=json", digits.name).stdout
    changes = json.loads(listed)
    assert set(changes.get("added") or []) <= {"/run/.containerenv", "/run/secrets", "/etc/mtab"}
    assert set(changes.get("changed") or []) <= {"/etc", "/run"}
    assert "Traceback" not in digits.log()
    assert " ERROR " not in digits.log()


def test_its_caches_are_its_own(digits: Container) -> None:
    """A volume gets the folder's owner, and so it is writable."""
    folders = ("/home/user", "/home/user/.cache", "/home/user/.cache/huggingface")
    assert digits.execute("stat", "--format=%u:%g", *folders).stdout.split() == ["1000:1000"] * len(folders)


def test_nothing_of_the_build_is_left(digits: Container) -> None:
    """Neither pip's configuration, which may contain a password, nor files that the server does not need."""
    assert digits.execute("sh", "-c", "test -s /etc/pip.conf", check=False).returncode != 0
    names = set(digits.execute("ls", "-A", "/app").stdout.split())
    assert names == {"server.py", "healthcheck.py", "vit_api", "__pycache__"}


def test_the_health_check_of_the_image(digits: Container, measured: dict[str, Any]) -> None:
    """As the runtime runs it, and with a port that nothing listens on."""
    start = time.monotonic()
    digits.engine.run("podman", "healthcheck", "run", digits.name)
    measured["healthcheck_s"] = round(time.monotonic() - start, 2)
    failing = digits.execute("env", "VIT_API_PORT=1", "python", "/app/healthcheck.py", check=False)
    assert failing.returncode == 1
    assert "Traceback" not in failing.stderr


def test_a_stop_answers_a_request_in_flight(engine: Engine, image: str) -> None:
    """`podman stop` in the middle of an upload: the client gets its response, and the exit status is 0."""
    with (
        serve(engine, image, VIT_API_MODEL="digits") as container,
        _connect(container) as client,
        ThreadPoolExecutor(1) as operator,
    ):
        upload = _UPLOADS["7"]
        head = (
            f"POST /predict HTTP/1.1\r\nHost: server\r\nContent-Length: {len(upload)}\r\nExpect: 100-continue\r\n\r\n"
        )
        client.sendall(head.encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 100")  # so it waits for the body
        client.sendall(upload[:100])
        status = operator.submit(container.stop)
        wait_until(lambda: _is_refused(container))
        assert not status.done()
        client.sendall(upload[100:])
        answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"label":"7"' in answer
        assert status.result(60) == 0
        assert "Traceback" not in container.log()


def test_a_stop_is_quick(engine: Engine, image: str, measured: dict[str, Any]) -> None:
    """It takes much less than the 10 s after which runtimes kill."""
    with serve(engine, image, VIT_API_MODEL="digits") as container:
        start = time.monotonic()
        assert container.stop() == 0
        measured["stop_s"] = round(time.monotonic() - start, 1)
        assert measured["stop_s"] < 10


def test_the_layers(engine: Engine, image: str, measured: dict[str, Any]) -> None:
    """A change of the code changes only a small layer; packages are in a separate one."""
    layers = engine.layers(image)
    measured["image_mb"] = round(sum(size for size, _ in layers) / _MB)
    measured["layers_mb"] = [{"mb": round(size / _MB, 1), "by": _without_digests(by)} for size, by in layers[:5]]
    base = sum(size for size, _ in engine.layers(BASE))
    measured["base_mb"] = round(base / _MB)
    venv, *others = [size for size, by in layers if ("imported from tarball" not in by and size < base) or "COPY" in by]
    assert sum(others) < 20 * _MB < venv


def test_a_preloaded_model_needs_no_hub(engine: Engine, image: str, tmp_path: Path) -> None:
    """And no writable folder but /tmp."""
    folder = make_checkpoint(tmp_path / "vit")
    with hub_server({file.name: file.read_bytes() for file in folder.iterdir()}) as hub:
        arguments = {"PRELOAD_MODEL": NAME, "PRELOAD_REVISION": FIRST, "HF_ENDPOINT": hub.endpoint}
        engine.build("localhost/vit-api-preloaded", **arguments)
        _check_what_was_fetched(hub)
    with serve(engine, "localhost/vit-api-preloaded", HF_ENDPOINT="http://127.0.0.1:1") as container:
        info = httpx.get(f"{container.url}/info").json()
    assert (info["model"], info["revision"]) == (NAME, FIRST)


def _without_digests(instruction: str) -> str:
    return re.sub(":[0-9a-f]{64}", "", instruction).replace("/bin/sh -c #(nop) ", "")[:70].strip()


def _check_what_was_fetched(hub: FakeHub) -> None:
    """Pickled weights are never downloaded."""
    assert hub.requested_files() == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_a_preloaded_model_must_be_pinned(engine: Engine, image: str) -> None:
    """A branch could contain another model at the next build."""
    with pytest.raises(AssertionError, match="PRELOAD_MODEL needs PRELOAD_REVISION"):
        engine.build("localhost/vit-api-unpinned", PRELOAD_MODEL=NAME, PRELOAD_REVISION="main")


def _connect(container: Container) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(container.url.rpartition(":")[2])), timeout=60)


def _is_refused(container: Container) -> bool:
    try:
        _connect(container).close()
    except ConnectionRefusedError:
        return True
    return False
