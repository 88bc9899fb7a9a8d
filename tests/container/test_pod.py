"""The pod of deploy/kubernetes/base with the built image: its start, its probes, its rights and its stop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.container.engine import Engine
from tests.container.pod import Pod, play
from tests.support.server import ROOT

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(not shutil.which("catatonit"), reason="needs Debian's package catatonit"),
]

SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
READY_S = 120.0


@pytest.fixture
def pod(engine: Engine, image: str, tmp_path: Path) -> Iterator[Pod]:
    """Play the pod, which has just been started."""
    with play(engine, image, tmp_path) as played:
        yield played


def classify(pod: Pod) -> httpx.Response:
    return httpx.post(pod.url + "/predict", content=SEVEN, timeout=60)


def test_it_starts_answers_and_drains(pod: Pod) -> None:
    """The startup probe succeeds in its time; a stop turns readiness off while requests are still answered."""
    startup = pod.server["startupProbe"]
    pod.wait_for("startup", startup["periodSeconds"] * startup["failureThreshold"])
    pod.wait_for("readiness", READY_S)
    assert classify(pod).json()["predictions"][0]["label"] == "7"
    with ThreadPoolExecutor(1) as kubelet:
        status = kubelet.submit(pod.stop)
        pod.wait_until(lambda: pod.probe("readiness") == 503, READY_S + 30)
        assert pod.probe("liveness") == 200
        answer = classify(pod)
        assert not status.done()
        assert (answer.status_code, answer.json()["predictions"][0]["label"]) == (200, "7")
        assert status.result(120) == 0
    log = pod.log()
    assert "Traceback" not in log
    assert '"level": "error"' not in log


def test_it_is_restricted(pod: Pod) -> None:
    """Podman applies what the manifest says: user, capabilities, a read-only root, and the limits."""
    pod.wait_for("readiness", READY_S)
    host = pod.inspect()["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert (host["Memory"], host["NanoCpus"]) == (4 * 2**30, 4 * 10**9)
    status = dict(line.split(":\t", 1) for line in pod.execute("cat", "/proc/1/status").splitlines())
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1000"] * 4
    pod.execute("touch", "/tmp/file", "/home/user/.cache/file")
    assert "Read-only file system" in pod.execute("touch", "/app/file", check=False)
