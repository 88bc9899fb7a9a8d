"""Routes of several models: what the query chooses, and what the chosen model's handler gets."""

from __future__ import annotations

from typing import Any

import pytest

from vit_api.deployments.listing import load_deployments
from vit_api.errors import BadRequest, NotFound
from vit_api.web.core.deployment_choice import DeploymentChoice
from vit_api.web.dispatch import Dispatch
from vit_api.web.requests import Admission, BodyLimit, Request
from vit_api.web.responses import Response
from vit_api.web.routes import HotRoute

pytestmark = pytest.mark.anyio

_MODELS = """[{"name": "shop", "version": "1.0", "model": "digits", "traffic": 90},
 {"name": "shop", "version": "2.0", "model": "digits", "traffic": 10},
 {"name": "a/b", "version": "1", "model": "digits"}]"""


class Handler:
    """The handler of one model."""

    def __init__(self, number: int) -> None:
        self.number = number

    def limit(self, _: Request) -> BodyLimit:
        return BodyLimit(self.number, self.number)

    async def handle(self, request: Request) -> Response:
        return Response(200, request.query, ((b"x-handler", b"%d" % self.number),))

    def find(self, _: Request, body: bytes) -> Response | None:
        return Response(200, body) if body == b"cached %d" % self.number else None


@pytest.fixture
def dispatch() -> Dispatch:
    deployments = load_deployments(_MODELS)
    return Dispatch(deployments, DeploymentChoice(deployments, lambda _: False))


@pytest.fixture
def route(dispatch: Dispatch) -> HotRoute:
    handlers = [Handler(number) for number in range(3)]
    return dispatch.merge([HotRoute("POST", "/x", "/x", one.handle, one.limit, None, one.find) for one in handlers])


def _request(query: bytes = b"", **headers: bytes) -> Request:
    scope: dict[str, Any] = {"method": "POST", "path": "/x", "query_string": query, "client": ("192.0.2.1", 1)}
    scope["headers"] = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return Request(scope, b"an-id", arrived_at=0.0, timeout_s=1.0)


@pytest.mark.parametrize(
    ("query", "number", "rest"),
    [
        pytest.param(b"model=a/b", 2, b"", id="model"),
        pytest.param(b"model=a%2Fb&top_k=3", 2, b"top_k=3", id="escaped, and a parameter"),
        pytest.param(b"version=2.0", 1, b"", id="version of the default"),
        pytest.param(b"top_k=1&version=1.0&model=shop&x=%20", 0, b"top_k=1&x=+", id="both, among others"),
        pytest.param(b"model=&version=", None, b"", id="empty"),
        pytest.param(b"top_k=3", None, b"top_k=3", id="neither"),
        pytest.param(b"model=shop&model=shop", None, b"", id="the same twice"),
        pytest.param(b"model=a/b&" + b"x=" + b"y" * 300, 2, b"x=" + b"y" * 300, id="long"),
    ],
)
async def test_the_query_chooses(route: HotRoute, query: bytes, number: int | None, rest: bytes) -> None:
    """Its handler gets the other parameters; the limit of the body is that of its model."""
    request = _request(query)
    limit = route.body_limit(request)
    assert request.deployment is not None
    assert limit.max_bytes == request.deployment.number
    response = await route.handler(request)
    assert response.body == rest
    if number is not None:
        assert request.deployment.number == number
        assert response.headers == ((b"x-handler", b"%d" % number),)


async def test_the_response_names_what_was_chosen(route: HotRoute) -> None:
    """Beside the headers of rate limits, and also if the handler fails: they belong to the request."""
    request = _request(b"version=2.0")
    request.admission = Admission(headers=((b"ratelimit", b"9"),))
    route.body_limit(request)
    assert request.admission.headers == ((b"ratelimit", b"9"), (b"x-model", b"shop"), (b"x-model-version", b"2.0"))
    assert b"x-model: shop\r\nx-model-version: 2.0\r\n" in Response(404, b"").header_lines(request)


async def test_a_cached_answer_is_that_of_its_model(route: HotRoute) -> None:
    """Another model's cache is not looked at."""
    assert route.find is not None
    for number, query in ((0, b"version=1.0"), (1, b"version=2.0"), (2, b"model=a/b")):
        request = _request(query)
        route.body_limit(request)
        found = [route.find(request, b"cached %d" % other) for other in range(3)]
        assert [response is not None for response in found] == [other == number for other in range(3)]


@pytest.mark.parametrize(
    ("query", "kind", "message"),
    [
        pytest.param(b"model=zzz", NotFound, "There is no model 'zzz'", id="unknown model"),
        pytest.param(b"model=a/b&version=2.0", NotFound, "has no version '2.0'. Its versions are '1'.", id="version"),
        pytest.param(b"model=shop&model=a/b", BadRequest, "'model' has more than one value", id="two models"),
        pytest.param(b"modell=shop", BadRequest, "Did you mean 'model'?", id="slip"),
        pytest.param(b"Version=1.0", BadRequest, "Did you mean 'version'?", id="case"),
        pytest.param(b"&".join([b"x=1"] * 101), BadRequest, "too many parameters", id="too many"),
    ],
)
async def test_what_can_not_be_chosen(route: HotRoute, query: bytes, kind: type[Exception], message: str) -> None:
    """Before any of the body is read, and nothing is noted of it."""
    request = _request(query)
    with pytest.raises(kind, match=message.replace("?", r"\?")):
        route.body_limit(request)
    assert request.deployment is None
    assert request.admission.headers == ()


async def test_a_client_is_its_session_or_else_its_key_or_address(dispatch: Dispatch) -> None:
    """One session is one client whatever its address; without, each key is, and then each address."""

    def versions(*requests: Request) -> set[str]:
        return {dispatch.choose(request, None, None).version for request in requests}

    sessions = [_request(x_session_id=b"session %d" % number) for number in range(100)]
    assert versions(*sessions) == {"1.0", "2.0"}
    for number in range(100):
        mine = [_request(x_session_id=b"session %d" % number) for _ in range(2)]
        mine[1].scope["client"] = ("192.0.2.99", 2)
        mine[1].admission = Admission(key_digest=b"other")
        assert len(versions(*mine)) == 1
    keys = [_request() for _ in range(100)]
    for number, request in enumerate(keys):
        request.admission = Admission(key_digest=b"%d" % number)
    assert versions(*keys) == {"1.0", "2.0"}
    addresses = [_request() for _ in range(100)]
    for number, request in enumerate(addresses):
        request.scope["client"] = (f"192.0.2.{number}", 1)
    assert versions(*addresses) == {"1.0", "2.0"}
    assert len(versions(*[_request() for _ in range(9)])) == 1
