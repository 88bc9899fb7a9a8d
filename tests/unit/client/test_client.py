"""Requests, results, errors and inputs of both clients, against a scripted server."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.client_drivers import Driver
from tests.support.samples import image_files
from tests.support.scripted_server import ok, reply, scripted
from tests.support.server import ROOT
from vit_api.client import (
    Classification,
    ClassifyError,
    Client,
    Rejected,
    Retries,
    ScoredLabel,
    ServerFailed,
    UnexpectedAnswer,
    Unreachable,
    UnreadableInput,
)

pytestmark = pytest.mark.anyio


async def test_a_result(driver: Driver) -> None:
    """All fields of the response and its headers are in the result."""
    headers = {"x_cache": "miss", "x_queue_time_ms": "0.5", "x_inference_time_ms": "1.25", "x_batch_size": "3"}
    with scripted(ok(x_request_id="id-1", **headers)) as server:
        result = await driver.classify(server.url)
    assert result == Classification(
        predictions=(ScoredLabel("7", 0.9), ScoredLabel("1", 0.1)),
        cached=False,
        processing_time_ms=3.5,
        model="digits",
        request_id="id-1",
        source="miss",
        queue_time_ms=0.5,
        inference_time_ms=1.25,
        batch_size=3,
    )
    assert result.top == ScoredLabel("7", 0.9)


async def test_a_request(driver: Driver) -> None:
    """The bytes are sent unchanged, with the options as this API expects them and the key as in RFC 6750."""
    with scripted(ok()) as server:
        await driver.classify(server.url + "/models/a/", b"bytes", top_k=3, fresh=True, client={"api_key": "k-1"})
        (request,) = server.requests
    assert request.line == "POST /models/a/predict?top_k=3 HTTP/1.1"
    assert request.body == b"bytes"
    assert request.headers["authorization"] == "Bearer k-1"
    assert request.headers["cache-control"] == "no-cache"


async def test_a_request_without_options(driver: Driver) -> None:
    """Without a key or `fresh`, their headers are not sent."""
    with scripted(ok()) as server:
        await driver.classify(server.url)
        (request,) = server.requests
    assert not {"authorization", "cache-control"} & request.headers.keys()


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        pytest.param(reply(502, b"<html>", content_type="text/html"), ServerFailed, "http_502", id="bad gateway"),
        pytest.param(reply(403, b"<html>", content_type="text/html"), Rejected, "http_403", id="forbidden"),
        pytest.param(reply(200, b"<html>", content_type="text/html"), UnexpectedAnswer, "unexpected_answer", id="page"),
        pytest.param(reply(307, b"", location="https://host/"), UnexpectedAnswer, "http_307", id="redirect"),
        pytest.param(
            reply(200, b"no gzip", content_encoding="gzip"), UnexpectedAnswer, "unexpected_answer", id="damaged"
        ),
        pytest.param(reply(200, b" " * 2**21), UnexpectedAnswer, "unexpected_answer", id="too long"),
    ],
)
async def test_foreign_responses_raise(driver: Driver, answer: bytes, kind: type[ClassifyError], code: str) -> None:
    """Responses that are not this API's raise errors with the same base class."""
    with scripted(answer) as server, pytest.raises(kind) as raised:
        await driver.classify(server.url)
    assert raised.value.code == code


async def test_another_protocol_is_unreachable(driver: Driver) -> None:
    """A server that does not speak HTTP counts as unreachable."""
    with scripted(handler=lambda _: b"SSH-2.0-OpenSSH_9.9\r\n\r\n") as server, pytest.raises(Unreachable):
        await driver.classify(server.url, client={"retries": Retries(tries=2)})


def test_connections_are_reused() -> None:
    """Three images are sent on one connection."""
    with scripted(ok(), ok(), ok()) as server, Client(server.url) as client:
        for _ in range(3):
            client.classify(b"image")
        assert server.connections == 1


@pytest.mark.parametrize(
    ("options", "query"),
    [
        pytest.param({}, "top_k=5", id="default"),
        pytest.param({"top_k": "all"}, "top_k=all", id="all"),
        pytest.param({"top_k": 1000}, "top_k=1000", id="many"),
        pytest.param({"threshold": 0.5}, "threshold=0.5", id="threshold alone"),
        pytest.param({"threshold": 0, "top_k": 3, "frames": 2}, "top_k=3&threshold=0&frames=2", id="all options"),
    ],
)
async def test_options_are_sent(driver: Driver, options: dict[str, Any], query: str) -> None:
    """Each option is a parameter; a threshold alone leaves the number of classes to the server."""
    with scripted(ok()) as server:
        await driver.classify(server.url, **options)
    (request,) = server.requests
    assert request.line == f"POST /predict?{query} HTTP/1.1"


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
async def test_threshold_out_of_range_raises(driver: Driver, threshold: float) -> None:
    """Nothing is sent."""
    with scripted() as server, pytest.raises(ValueError, match="threshold"):
        await driver.classify(server.url, threshold=threshold)
    assert server.requests == []


@pytest.mark.parametrize("top_k", [0, -1, "ALL", "5"])
async def test_top_k_out_of_range_raises(driver: Driver, top_k: int | str) -> None:
    """It raises before anything is sent."""
    with scripted() as server, pytest.raises(ValueError, match="top_k"):
        await driver.classify(server.url, top_k=top_k)


@pytest.mark.parametrize(
    "options",
    [pytest.param({"timeout_s": 0}, id="zero timeout"), pytest.param({"api_key": "a b"}, id="key with a space")],
)
def test_invalid_settings_raise(options: dict[str, Any]) -> None:
    """The client's constructor validates them."""
    with pytest.raises(ValueError, match=r"timeout_s|API key"):
        Client("http://host", **options)


def _closed_file() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


def _truncated_image() -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(image_files()["jpeg"][:1000]))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: "no/such/file.png", id="missing"),
        pytest.param(lambda: ROOT, id="folder"),
        pytest.param(lambda: "null\0character", id="invalid file name"),
        pytest.param(_closed_file, id="closed file"),
        pytest.param(_truncated_image, id="Pillow image of a truncated file"),
    ],
)
async def test_unreadable_inputs_raise(driver: Driver, make: Callable[[], Any]) -> None:
    """They raise `UnreadableInput`, and nothing is sent."""
    with scripted() as server, pytest.raises(UnreadableInput):
        await driver.classify(server.url, make())


@pytest.mark.parametrize(
    "wrong",
    [pytest.param(7, id="number"), pytest.param(None, id="none"), pytest.param(io.StringIO("text"), id="text file")],
)
async def test_unsupported_types_raise(driver: Driver, wrong: Any) -> None:
    """A programming error raises TypeError, not `ClassifyError`."""
    with scripted() as server, pytest.raises(TypeError):
        await driver.classify(server.url, wrong)


def test_the_client_imports_none_of_the_servers_packages() -> None:
    """It starts fast, and works where they are not installed."""
    code = "import sys, vit_api.client.blocking; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert not loaded & {"torch", "transformers", "litserve", "fastapi", "starlette", "pydantic", "numpy", "PIL"}
