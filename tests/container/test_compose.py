"""`docker compose up`, started for real: the server with Redis and Prometheus, as compose.yaml connects them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.container.composition import SERVICES, Composition, composed
from tests.container.engine import READY_S, Engine, has_networks
from tests.support.server import ROOT, wait_until

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(not has_networks(), reason="needs Debian's packages netavark and aardvark-dns"),
    pytest.mark.skipif(not shutil.which("iptables"), reason="needs Debian's package iptables"),
]

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_SCRAPED_S = 60.0  # four times the interval


@pytest.fixture(scope="module")
def composition(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    """All services but Grafana, with no more than the model set, as a newcomer would."""
    folder = tmp_path_factory.mktemp("compose")
    with composed(engine, image, folder, VIT_API_MODEL="digits") as started:
        wait_until(lambda: started.is_healthy("server"), READY_S)
        yield started


def _classify(composition: Composition, upload: bytes = _SEVEN) -> dict[str, Any]:
    answer = httpx.post(f"{composition.server_url}/predict", content=upload, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _query(composition: Composition, expression: str) -> list[float]:
    """Return the values that Prometheus has now."""
    answer = httpx.get(f"{composition.prometheus_url}/api/v1/query", params={"query": expression}, timeout=10)
    return [float(each["value"][1]) for each in answer.json()["data"]["result"]]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_healthy(composition: Composition, service: str) -> None:
    """By the check of compose.yaml, run in the container."""
    wait_until(lambda: composition.is_healthy(service), READY_S)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_no_rights(composition: Composition, service: str) -> None:
    """It has no capabilities, can't gain any, is no root, and can't write to its image."""
    facts = composition.inspect(service)
    assert facts["HostConfig"]["ReadonlyRootfs"]
    assert not facts["EffectiveCaps"]
    assert "no-new-privileges" in facts["HostConfig"]["SecurityOpt"]
    assert (
        composition.execute(service, "sh", "-c", "test $(id -u) != 0 && ! touch /etc/file", check=False).returncode == 0
    )


def test_the_server_is_scraped_and_watched(composition: Composition) -> None:
    """Prometheus finds the server by name, without a key, and has loaded the alerts."""
    assert _classify(composition)["predictions"][0]["label"] == "7"
    wait_until(lambda: _query(composition, "inference_images_total") not in ([], [0.0]), _SCRAPED_S)
    assert _query(composition, 'up{job="vit-api"}') == [1.0]
    rules = httpx.get(f"{composition.prometheus_url}/api/v1/rules", timeout=10).json()["data"]["groups"]
    assert {rule["name"] for group in rules for rule in group["rules"]} >= {"ViTLatencyHigh"}


def test_the_cache_outlives_the_server(composition: Composition) -> None:
    """Its results are in Redis when another server starts."""
    uploads = [_SEVEN + b"%d" % number for number in range(100)]  # PNG's decoder ignores what follows the picture
    # On a busy machine the server skips a Redis that takes longer than 15 ms, so each of many images has its chance.
    for upload in uploads:
        _classify(composition, upload)
    wait_until(lambda: int(composition.execute("redis", "redis-cli", "dbsize").stdout) > len(uploads) // 2)
    composition.compose("restart", "server")
    wait_until(lambda: composition.is_healthy("server"), READY_S)
    assert any(_classify(composition, upload)["cached"] for upload in uploads)
    assert "Traceback" not in composition.log()


def test_only_the_server_reaches_redis(composition: Composition) -> None:
    """Prometheus, on the other network, can't even find it by name, nor the server's host by port."""
    look_up = ("getent", "hosts", "redis")
    composition.execute("server", *look_up)
    composition.execute("prometheus", "getent", "hosts", "server")
    assert composition.execute("prometheus", *look_up, check=False).returncode != 0
    assert not composition.inspect("redis")["HostConfig"]["PortBindings"]


def test_a_stop_is_clean(composition: Composition) -> None:
    """The server exits with status 0 within the grace period of compose.yaml."""
    composition.compose("stop", "server")
    assert composition.inspect("server")["State"]["ExitCode"] == 0
