"""Rate limits as clients see them: who is counted, the headers, and 429. Knows nothing of how it is counted.

`RateLimit-Limit`, `-Remaining`, `-Reset` and `-Policy` are those of draft-ietf-httpapi-ratelimit-headers-06; later
drafts put all into one, which few clients read yet. They are on every answer of a limited path.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from vit_api.access.client_address import ClientAddresses
from vit_api.access.rate_limiter import RateLimiter, Verdict
from vit_api.access.rates import Rate
from vit_api.errors import RateLimited
from vit_api.web.requests import Request
from vit_api.web.responses import Response
from vit_api.web.routes import HotRoute


class RateLimits:
    """Limit what each client may use of the handlers that classify.

    Args:
        limiter: Counts.
        addresses: Tells clients apart that have no key.
        rates: What each client may use.
    """

    def __init__(self, limiter: RateLimiter, addresses: ClientAddresses, rates: Sequence[Rate]) -> None:
        self._limiter = limiter
        self._addresses = addresses
        self._policy = ", ".join(f"{rate.amount};w={rate.window_s}" for rate in rates).encode()

    def limited(self, route: HotRoute) -> HotRoute:
        """Return a route whose handler is called only while its client is within its limits.

        One image is counted before the body is read, so that a refused upload costs nothing; what else turns out to
        be in it, `Admission.charge` counts before the model sees it.
        """

        async def limited_handler(request: Request) -> Response:
            client = request.admission.key_digest.hex() or self._addresses.of(request.scope)
            request.admission.charge = functools.partial(self._charge, request, client)
            await self._charge(request, client, 1)
            return await route.handler(request)

        return dataclasses.replace(route, handler=limited_handler)

    async def _charge(self, request: Request, client: str, images: int) -> None:
        """Count images for a client.

        Raises:
            RateLimited: They are too many, and were not counted.
        """
        verdict = await self._limiter.take(client, images)
        reset_s = max(1, math.ceil(verdict.reset_s))
        request.admission.headers = (
            (b"ratelimit-limit", b"%d" % verdict.rate.amount),
            (b"ratelimit-remaining", b"%d" % verdict.remaining),
            (b"ratelimit-reset", b"%d" % reset_s),
            (b"ratelimit-policy", self._policy),
        )
        if verdict.is_refused:
            raise RateLimited(_refusal(verdict, images), reset_s)


def describe_limits(schema: dict[str, Any]) -> None:
    """Add to an OpenAPI description what the paths answer that classify when a client may not."""
    refusal = {
        "description": "Too many images in a time; `Retry-After` says when to try again",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
    }
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "classification" in operation.get("tags", ()):
                operation["responses"]["429"] = refusal


def _refusal(verdict: Verdict, images: int) -> str:
    rate = verdict.rate
    what = f"this server takes {rate.amount} images in {rate.window_s} s from each client"
    if images >= rate.amount:
        return f"{what}; send fewer in one request"
    return f"{what}; come back later, see Retry-After"
