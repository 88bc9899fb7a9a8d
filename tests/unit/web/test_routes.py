"""The table of routes in a whole HTTP process: exactly what is described is served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.door_transport import DoorTransport
from vit_api.app import Application
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.settings import Settings
from vit_api.shared.server import Shared
from vit_api.web.process import build_application
from vit_api.web.routes import HotRoute, Operation, described

_NOT_SERVED = {404, 405}
_METHODS = {"GET", "POST", "PUT", "DELETE", "PATCH"}


_MODELS = """[{"name": "digits", "version": "1", "model": "digits", "traffic": 90},
 {"name": "digits", "version": "2", "model": "digits", "traffic": 10},
 {"name": "team/other", "version": "1", "model": "digits"}]"""


@pytest.fixture(scope="module", params=[pytest.param(None, id="one model"), pytest.param(_MODELS, id="several")])
def transport(request: pytest.FixtureRequest) -> DoorTransport:
    """Return a transport to the application of an HTTP process whose workers have not started."""
    settings = Settings(api_servers=1, models=request.param)
    checkpoints = [load_checkpoint("digits", served_name=one.name) for one in settings.deployments]
    shared = Shared(settings, checkpoints or [load_checkpoint("digits")], ["cpu"])
    return DoorTransport(build_application(shared, Application(shared).lit_api_of, 0))


async def _ask(transport: DoorTransport, method: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def _filled(path: str, operation: dict[str, Any]) -> str:
    """Return a path with the only value that each of its parameters may have."""
    values = {one["name"]: one["schema"]["enum"][0] for one in operation.get("parameters", []) if one["in"] == "path"}
    return path.format(**values)


@pytest.mark.anyio
async def test_every_described_operation_is_served(transport: DoorTransport) -> None:
    """No operation is answered with 404 or 405, by the door or by FastAPI."""
    document = (await _ask(transport, "GET", "/openapi.json")).json()
    for method, path, operation in _operations(document):
        filled = _filled(path, operation)
        assert (await _ask(transport, method, filled)).status_code not in _NOT_SERVED, f"{method} {filled}"


@pytest.mark.anyio
async def test_no_other_method_is_served(transport: DoorTransport) -> None:
    """Every other method is refused, with the described ones in `Allow`."""
    document = (await _ask(transport, "GET", "/openapi.json")).json()
    for path, operations in document["paths"].items():
        served = {method.upper() for method in operations}
        filled = _filled(path, next(iter(operations.values())))
        if filled.endswith("/infer"):
            continue  # as a GET it is the metadata of a model with such a name
        for method in _METHODS - served:
            response = await _ask(transport, method, filled)
            assert response.status_code == 405, f"{method} {filled}"
            assert set(response.headers["allow"].split(", ")) - {"HEAD"} == served


@pytest.mark.anyio
async def test_head_is_answered_on_every_path_of_the_table(transport: DoorTransport) -> None:
    """It has the status and headers of GET and no body, on paths that are not described, too."""
    document = (await _ask(transport, "GET", "/openapi.json")).json()
    paths = {_filled(path, operation) for method, path, operation in _operations(document) if method == "GET"}
    hidden = {"/docs", "/openapi.json", "/page/page.js", "/page/examples/CREDITS.md"}
    assert len(paths) > 10
    for path in sorted(paths | hidden):
        got, head = await _ask(transport, "GET", path), await _ask(transport, "HEAD", path)
        assert got.status_code not in _NOT_SERVED, path
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"], path


@pytest.mark.anyio
async def test_every_hot_route_is_described_where_it_is_served(transport: DoorTransport) -> None:
    """A path of the table is an instance of its description's template."""
    document = (await _ask(transport, "GET", "/openapi.json")).json()
    classify = {
        (method, _filled(path, operation))
        for method, path, operation in _operations(document)
        if "classification" in operation["tags"]
    }
    start = "/v2/models/digits"
    hot = {"/predict", "/predict/batch", "/", "/v1/moderations", "/v1/embeddings"}
    hot |= {f"{start}/infer", f"{start}/versions/1/infer"}
    if "/models/{model_name}" in document["paths"]:
        hot.add("/models/digits")
    assert classify == {("POST", path) for path in hot}


def test_a_route_may_share_the_description_of_another() -> None:
    """Without an operation of its own it is served, but not described again."""

    async def never(_: object) -> Any:
        raise AssertionError("no request is answered here")

    operation = Operation("/x/{name}", "do_it", "Do it.", {"image/*": {"schema": {"type": "string"}}})

    def limit(_: object) -> Any:
        raise AssertionError("no body is read here")

    routes = [
        HotRoute("POST", "/x/y", "/predict", never, limit, operation),
        HotRoute("POST", "/x/z", "/predict", never, limit),
    ]
    assert [(route.path, route.methods, route.name) for route in described(routes)] == [
        ("/x/{name}", {"POST"}, "do_it")
    ]
