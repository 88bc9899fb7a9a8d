"""Who may ask for what: looks for a client's key in its request's headers. Knows nothing of what a path does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vit_api.access.api_keys import KeyRing
from vit_api.errors import Unauthorized
from vit_api.web.page.files import PAGE_FOLDER, PAGE_PATH
from vit_api.web.page.security_headers import STATIC_FOLDER
from vit_api.web.requests import Request

OPERATOR_PATH = "/cache/clear"
"""It looks for the operator's key itself."""

METRICS_PATH = "/metrics"

# Probes have no key. Neither has a browser that opens a page: it can send one with a script's requests alone, and the
# description of the API, which that script reads, is the same for every server of this version.
_PROBED = frozenset({"/health", "/health/ready", "/health/live", "/v2/health/ready", "/v2/health/live"})
_OPEN_PATHS = _PROBED | {"/docs", "/openapi.json", PAGE_PATH}
_OPEN_FOLDERS = (f"{STATIC_FOLDER}/", PAGE_FOLDER)
_READING = ("GET", "HEAD")

_BEARER = b"bearer"
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The key as `Authorization: Bearer <key>`"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The key as `X-API-Key: <key>`"},
}
_EITHER: list[dict[str, list[str]]] = [{name: []} for name in _SCHEMES]


def presented_key(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key in a request's headers, by lower-case name; empty if there is none.

    `X-API-Key` comes first: what is in `Authorization` may be for a proxy on the way.
    """
    key = headers.get(b"x-api-key")
    if key:
        return key.strip()
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == _BEARER else b""


def check_key(ring: KeyRing, headers: Mapping[bytes, bytes], whose: str) -> bytes:
    """Return the digest of the request's key.

    Args:
        ring: The keys that do.
        headers: The request's, by lower-case name.
        whose: What to call the key, for a client that has none.

    Raises:
        Unauthorized: There is no key, or another one.
    """
    key = presented_key(headers)
    found = ring.find(key)
    if found is None:
        raise Unauthorized(f"send {whose} as `Authorization: Bearer <key>` or in `X-API-Key`", is_wrong=bool(key))
    return found


class KeyCheck:
    """Let requests with a key pass, and any request for what is open to all.

    Args:
        digests: Of the keys that open everything but the operator's paths.
        has_public_metrics: Whether the metrics are open to all.
    """

    def __init__(self, digests: Iterable[bytes], *, has_public_metrics: bool) -> None:
        self._ring = KeyRing(digests)
        self._open = _OPEN_PATHS | ({METRICS_PATH} if has_public_metrics else set())

    def is_open(self, method: str, path: str) -> bool:
        """Tell whether a path needs none of these keys: what is open is so for reading alone."""
        is_page = path in self._open or path.startswith(_OPEN_FOLDERS)
        return path == OPERATOR_PATH or (is_page and method in _READING)

    def admit(self, request: Request) -> None:
        """Note whose request it is, before anything of its body is read.

        Raises:
            Unauthorized: It has no key where it needs one, or a wrong one.
        """
        if not self.is_open(request.method, request.path):
            request.admission.key_digest = check_key(self._ring, request.headers, "a key")


def describe_keys(schema: dict[str, Any], keys: KeyCheck | None) -> None:
    """Add to an OpenAPI description how keys come, and which paths need one; see OpenAPI 3.1, section 4.8.27."""
    schema.setdefault("components", {})["securitySchemes"] = _SCHEMES
    refusal = {
        "description": "No key or a wrong one",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if path == OPERATOR_PATH or (keys is not None and not keys.is_open(method.upper(), path)):
                operation["security"] = _EITHER
                operation["responses"].setdefault("401", refusal)
