"""Redis with TLS and a private CA: the cache and the rate limits use it, and don't trust another."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.servers import free_port
from tests.support.redis_server import RedisServer, redis_server
from tests.support.server import ROOT, serve, wait_until

DIGIT = (ROOT / "examples" / "digit-7.png").read_bytes()


def _openssl(*arguments: str | Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; on Debian: apt-get install openssl")
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a CA, another one, and a certificate for 127.0.0.1 that also authenticates clients."""
    folder = tmp_path_factory.mktemp("certificates")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for ca in ("ca", "other-ca"):
        files = ("-keyout", folder / f"{ca}.key", "-out", folder / f"{ca}.pem")
        _openssl("req", "-x509", "-days", "2", *new_key, "-subj", f"/CN={ca}", *files)
    signed = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", folder / "redis.key", "-out", folder / "redis.pem")
    usage = ("-addext", "basicConstraints=critical,CA:FALSE")
    _openssl("req", "-x509", "-days", "2", *new_key, "-subj", "/CN=redis", *signed, *usage, *files)
    return folder


@pytest.fixture(scope="module")
def redis_port() -> int:
    return free_port()


@pytest.fixture
def redis(certificates: Path, redis_port: int) -> Iterator[RedisServer]:
    """Run a Redis that requires TLS and a client certificate; its plain port is for the test."""
    tls = {"port": redis_port, "cert-file": "redis.pem", "key-file": "redis.key", "ca-cert-file": "ca.pem"}
    options = [part for name, value in tls.items() for part in (f"--tls-{name}", str(value))]
    options = [str(certificates / part) if part.endswith((".pem", ".key")) else part for part in options]
    with redis_server(*options) as server:
        yield server


def _url(port: int, folder: Path, ca: str, more: str = "") -> str:
    return (
        f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={folder}/{ca}.pem"
        f"&ssl_certfile={folder}/redis.pem&ssl_keyfile={folder}/redis.key{more}"
    )


@pytest.mark.parametrize(
    ("ca", "more"),
    [
        pytest.param("ca", "", id="private CA"),
        pytest.param("other-ca", "&ssl_cert_reqs=none&ssl_check_hostname=false", id="unverified"),
    ],
)
def test_results_and_budgets_are_shared_over_tls(
    redis: RedisServer, redis_port: int, certificates: Path, ca: str, more: str
) -> None:
    """Both clients of Redis understand the options."""
    url = _url(redis_port, certificates, ca, more)
    with serve(redis_url=url, rate_limit="1000/hour") as server:
        wait_until(lambda: "cache_redis_connections 2.0" in server.get("/metrics").text)

        def has_both() -> bool:
            assert server.predict(DIGIT).status_code == 200
            names = [name.decode() for name in redis.client.scan_iter()]
            return len({name.partition(":")[0].partition("/")[0] for name in names}) == 2

        wait_until(has_both)
        assert "ERROR" not in server.log.read_text()


def test_a_redis_of_another_ca_is_not_trusted(redis: RedisServer, redis_port: int, certificates: Path) -> None:
    """It counts as down, the log says why, and the server goes on without it."""
    with serve(redis_url=_url(redis_port, certificates, "other-ca"), rate_limit="1000/hour") as server:
        assert server.predict(DIGIT).status_code == 200
        wait_until(lambda: "certificate" in server.log.read_text().lower())
        assert "cache_redis_connections 0.0" in server.get("/metrics").text
        assert redis.client.dbsize() == 0
