"""API keys in requests: which paths need one, and whether it is valid. Knows nothing of what a path does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import starlette.requests

from vit_api.access.api_keys import KeyRing, digest_of
from vit_api.errors import Forbidden, Unauthorized
from vit_api.web.openapi.descriptions import refusal_of
from vit_api.web.page.files import PAGE_FOLDER, PAGE_PATH
from vit_api.web.page.security_headers import STATIC_FOLDER
from vit_api.web.requests import Request

_OPERATOR_PATH = "/cache/clear"
_OPERATOR_FOLDER = "/v2/repository/models/"
"""Their handlers check the operator key themselves."""

METRICS_PATH = "/metrics"

# Probes have no key, and a browser can send one only from a script, not when it opens a page. The API's description,
# which such a script reads, reveals nothing secret.
PROBES = frozenset({"/health", "/health/ready", "/health/live", "/v2/health/ready", "/v2/health/live"})
_OPEN_PATHS = PROBES | {"/docs", "/openapi.json", PAGE_PATH}
_OPEN_FOLDERS = (f"{STATIC_FOLDER}/", PAGE_FOLDER)
_READING = ("GET", "HEAD")

_BEARER = b"bearer"
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer <key>`"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "`X-API-Key: <key>`"},
}
_EITHER: list[dict[str, list[str]]] = [{name: []} for name in _SCHEMES]


def is_of_operator(path: str) -> bool:
    """Return whether the operator key, and no other, authorises requests for a path."""
    return path == _OPERATOR_PATH or path.startswith(_OPERATOR_FOLDER)


def check_operator(request: starlette.requests.Request, operator_key: str | None, what: str) -> None:
    """Check the operator key of a request.

    Args:
        request: The request.
        operator_key: The server's; None if it has none.
        what: What the key authorises, the subject of a sentence.

    Raises:
        Forbidden: The server has none.
        Unauthorized: The key is missing or invalid.
    """
    if operator_key is None:
        raise Forbidden(f"{what} is disabled: set VIT_API_OPERATOR_KEY and restart the server to enable it.")
    check_key(KeyRing([digest_of(operator_key)]), dict(request.scope["headers"]), "operator key")


def presented_key(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key in a request's headers, which have lower-case names; empty if there is none.

    `X-API-Key` takes precedence: `Authorization` may be meant for a proxy in between.
    """
    key = headers.get(b"x-api-key")
    if key:
        return key.strip()
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == _BEARER else b""


def check_key(ring: KeyRing, headers: Mapping[bytes, bytes], kind: str) -> bytes:
    """Return the digest of the request's key.

    Args:
        ring: The valid keys.
        headers: The request's headers, with lower-case names.
        kind: What error messages call the key.

    Raises:
        Unauthorized: There is no key, or it is not in the ring.
    """
    key = presented_key(headers)
    found = ring.find(key)
    if found is None:
        no_key = f"No {kind} was sent: send it as `Authorization: Bearer <key>` or `X-API-Key: <key>`."
        raise Unauthorized(f"Invalid {kind}." if key else no_key, is_wrong=bool(key))
    return found


class KeyCheck:
    """Admit requests that have a valid key, or that need none.

    Args:
        digests: Digests of the keys that are valid for all paths but the operator's.
        has_public_metrics: Whether `/metrics` needs no key.
    """

    def __init__(self, digests: Iterable[bytes], *, has_public_metrics: bool) -> None:
        self._ring = KeyRing(digests)
        self._open = _OPEN_PATHS | ({METRICS_PATH} if has_public_metrics else set())

    def is_open(self, method: str, path: str) -> bool:
        """Return whether a request needs none of these keys; open paths are open only for GET and HEAD."""
        is_page = path in self._open or path.startswith(_OPEN_FOLDERS)
        return is_of_operator(path) or (is_page and method in _READING)

    def check(self, request: Request) -> None:
        """Check the request's key and store its digest on the request, before the body is read.

        Raises:
            Unauthorized: The key is missing or invalid.
        """
        if not self.is_open(request.method, request.path):
            digest = check_key(self._ring, request.headers, "API key")
            request.admission = request.admission._replace(key_digest=digest)


def describe_keys(schema: dict[str, Any], keys: KeyCheck | None) -> None:
    """Add to an OpenAPI description how keys are sent, and which paths need one; see OpenAPI 3.1, section 4.8.27."""
    schema.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if is_of_operator(path) or (keys is not None and not keys.is_open(method.upper(), path)):
                operation["security"] = _EITHER
                operation["responses"].setdefault("401", refusal_of(operation, "The key is missing or invalid"))
