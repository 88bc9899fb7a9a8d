"""Routes of a server with several models: chooses the model of each request, whose own handler answers it.

`?model=` and `?version=` choose on the paths that every model has. Headers of the response name what was chosen, also
if it failed. Knows nothing of what a handler does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from vit_api.deployments.listing import Deployment
from vit_api.errors import BadRequest
from vit_api.web.core.classifier_result import CachedPrediction
from vit_api.web.core.deployment_choice import Chosen, DeploymentChoice
from vit_api.web.in_flight import InFlight
from vit_api.web.openapi.schemas import ErrorResponse
from vit_api.web.parameters import refuse_slip
from vit_api.web.repeats import HeldHit, Hit, HitFinder
from vit_api.web.requests import Admission, BodyLimit, Headers, Request
from vit_api.web.responses import Response
from vit_api.web.routes import HotRoute, Operation

MODEL, MODEL_VERSION = b"x-model", b"x-model-version"
"""Headers of responses: what was chosen."""

_SESSION = b"x-session-id"
_NAMES = ("model", "version")
_OTHERS = frozenset(("top_k", "threshold", "frames", "function_to_apply"))
"""Parameters of the handlers, which need not be compared with these."""

_MAX_FIELDS = 100
_MAX_SHOWN = 64
_MAX_CACHED_BYTES = 256

UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "The model or version does not exist"}
}


class _Query(NamedTuple):
    """A query without the choice of a model."""

    name: str | None
    version: str | None
    others: bytes


class _HeldWhileChosen:
    """A held hit of a version that may lose its clients."""

    def __init__(self, held: HeldHit, is_chosen: Callable[[], bool]) -> None:
        self._held = held
        self._is_chosen = is_chosen
        self.count = held.count

    def is_cached(self) -> bool:
        """Return whether it still is, and this version's."""
        return self._is_chosen() and self._held.is_cached()


class Dispatch:
    """Choose the deployment of requests.

    Args:
        deployments: All of them.
        choice: Chooses among them.
        in_flight: Counts the requests for each; None: nothing does.
    """

    def __init__(
        self, deployments: Sequence[Deployment], choice: DeploymentChoice, in_flight: InFlight | None = None
    ) -> None:
        self._in_flight = in_flight
        self._deployments = deployments
        self._choice = choice
        self._headers: list[Headers] = [
            ((MODEL, one.name.encode()), (MODEL_VERSION, one.version.encode())) for one in deployments
        ]

    def choose(self, request: Request, name: str | None, version: str | None) -> Chosen:
        """Choose the deployment of a request, which its response will name.

        Raises:
            NotFound: There is no such model or version.
        """
        request.named = (name, version)
        chosen = self._choice.of(name, version, functools.partial(_client_of, request))
        if self._in_flight is not None:
            self._in_flight.add(chosen.place, request.deployment)
        request.deployment = chosen
        admission = request.admission
        headers = (*admission.headers, *self._headers[chosen.number])
        request.admission = Admission(admission.key_digest, admission.charge, headers)
        return chosen

    def find(self, name: str, version: str | None) -> Chosen:
        """Return a deployment.

        Raises:
            NotFound: There is no such model or version.
        """
        return self._choice.of(name, version, lambda: "")

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        return list(dict.fromkeys(one.name for one in self._deployments))

    def by_query(self, request: Request) -> Chosen:
        """Choose by the query, and take these parameters out of it.

        Raises:
            NotFound: There is no such model or version.
            BadRequest: A parameter is there twice, or misspelt.
        """
        query = self.take_query(request)
        return self.choose(request, query.name, query.version)

    def take_query(self, request: Request) -> _Query:
        """Return what the query of a request says of the model, and take that out of it."""
        query = request.query
        if not query:
            return _Query(None, None, b"")
        parse = _parse_cached if len(query) <= _MAX_CACHED_BYTES else _parse
        parsed = parse(query)
        request.query = parsed.others
        return parsed

    def merge(
        self,
        routes: Sequence[HotRoute],
        choose: Callable[[Request], Chosen] | None = None,
        *,
        path: str | None = None,
        operation: Operation | None = None,
        is_described: bool = True,
    ) -> HotRoute:
        """Return the route of all deployments for those of each.

        Args:
            routes: The same route of each deployment, by number.
            choose: Chooses the deployment of a request; None: by the query.
            path: Its path; None: that of the routes.
            operation: Its description; None: that of the routes, with the parameters of the query.
            is_described: Whether it has a description; another route's may describe it, too.
        """
        choose = choose or self.by_query

        def body_limit(request: Request) -> BodyLimit:
            return routes[choose(request).number].body_limit(request)

        async def handle(request: Request) -> Response:
            return await routes[_number_of(request)].handler(request)

        def find(request: Request, body: bytes) -> Response | None:
            own = routes[_number_of(request)].find
            return None if own is None else own(request, body)

        def repeat(request: Request, response: Response) -> HitFinder | None:
            own = routes[_number_of(request)].repeat
            finder = None if own is None else own(request, response)
            return None if finder is None else self._while_chosen(request, finder)

        first = routes[0]
        return dataclasses.replace(
            first,
            path=path or first.path,
            body_limit=body_limit,
            handler=handle,
            find=None if first.find is None else find,
            repeat=None if first.repeat is None else repeat,
            operation=(operation or self._described(first.operation)) if is_described else None,
        )

    def _while_chosen(self, request: Request, finder: HitFinder) -> HitFinder | None:
        """Return what finds hits as long as the same version is chosen; None: that depends on the client's address.

        A client that its head identifies stays with its version, unless the workers of that one fail.
        """
        name, version = request.named
        if not self._choice.is_by_client(name, version):
            return finder
        if _SESSION not in request.headers and not request.admission.key_digest:
            return None
        client, chosen = _client_of(request), request.deployment

        def is_chosen() -> bool:
            return self._choice.of(name, version, lambda: client) == chosen

        def find(body: bytes) -> Hit | None:
            return finder.find(body) if is_chosen() else None

        def hold(cached: CachedPrediction) -> HeldHit | None:
            held = finder.hold(cached)
            return None if held is None else _HeldWhileChosen(held, is_chosen)

        return HitFinder(find, hold)

    def _described(self, operation: Operation | None) -> Operation | None:
        if operation is None:
            return None
        parameters = [*operation.parameters, *self.parameters()]
        return dataclasses.replace(operation, parameters=parameters, responses={**operation.responses, **UNKNOWN})

    def parameters(self) -> list[dict[str, Any]]:
        """Describe the parameters of the query."""
        names = self.names
        versions = list(dict.fromkeys(one.version for one in self._deployments))
        return [
            {
                "name": "model",
                "in": "query",
                "description": "The model that answers",
                "schema": {"type": "string", "enum": names, "default": names[0]},
            },
            {
                "name": "version",
                "in": "query",
                "description": "The model's version; by default each client gets one by the traffic of each",
                "schema": {"type": "string", "enum": versions},
            },
            {
                "name": "X-Session-Id",
                "in": "header",
                "description": "Who the client is for the choice of a version; default: its key, or its address",
                "schema": {"type": "string"},
            },
        ]


def _number_of(request: Request) -> int:
    assert request.deployment is not None
    return request.deployment.number


def _client_of(request: Request) -> str:
    session = request.headers.get(_SESSION)
    return request.client if session is None else f"session {session.decode('latin-1')}"


def _parse(query: bytes) -> _Query:
    try:
        sent = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise BadRequest(f"The query has too many parameters. Send at most {_MAX_FIELDS}.") from None
    values: dict[str, str] = {}
    others = []
    for name, value in sent:
        if name in _NAMES:
            if values.setdefault(name, value) != value:
                shown = ", ".join(repr(one)[:_MAX_SHOWN] for one in (values[name], value))
                raise BadRequest(f"'{name}' has more than one value: {shown}. Send it once.")
            continue
        if name not in _OTHERS:
            refuse_slip(name, _NAMES)
        others.append((name, value))
    rest = urlencode(others, encoding="latin-1").encode() if values else query
    return _Query(values.get("model") or None, values.get("version") or None, rest)


_parse_cached = functools.lru_cache(maxsize=1024)(_parse)
