"""Rate limits over HTTP: the `RateLimit-*` headers, 429. Knows nothing of how usage is counted.

`RateLimit-Limit`, `-Remaining`, `-Reset` and `-Policy` are those of draft-ietf-httpapi-ratelimit-headers-06; later
drafts merge them into one header, which few clients read yet. Every response of a limited path has them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from vit_api.access.rate_limiter import RateLimiter, Verdict
from vit_api.access.rates import Rate
from vit_api.errors import RateLimited
from vit_api.web.requests import Request


class RateLimits:
    """Limit how many images each client may have classified.

    Args:
        limiter: Counts each client's images.
        rates: The limits of each client.
    """

    def __init__(self, limiter: RateLimiter, rates: Sequence[Rate]) -> None:
        self._limiter = limiter
        self._policy = ", ".join(f"{rate.amount};w={rate.window_s}" for rate in rates).encode()

    async def charge(self, request: Request) -> None:
        """Count one image for a request's client, before the body is read, so that a refused upload costs nothing.

        Further images of the request are counted by `Admission.charge` before they reach the model.

        Raises:
            RateLimited: The client exceeds a limit; the image was not counted.
        """
        await self._charge(request, request.client, 1)

    async def _charge(self, request: Request, client: str, images: int) -> None:
        verdict = await self._limiter.take(client, images)
        reset_s = max(1, math.ceil(verdict.reset_s))
        request.admission = request.admission._replace(
            charge=functools.partial(self._charge, request, client),
            headers=(
                (b"ratelimit-limit", b"%d" % verdict.rate.amount),
                (b"ratelimit-remaining", b"%d" % verdict.remaining),
                (b"ratelimit-reset", b"%d" % reset_s),
                (b"ratelimit-policy", self._policy),
            ),
        )
        if verdict.is_refused:
            raise RateLimited(_refusal(verdict, images), reset_s)


def describe_limits(schema: dict[str, Any]) -> None:
    """Add the 429 response of the classification paths to an OpenAPI description."""
    refusal = {
        "description": "The rate limit is exceeded; `Retry-After` says when to retry",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
    }
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "classification" in operation.get("tags", ()):
                operation["responses"]["429"] = refusal


def _refusal(verdict: Verdict, images: int) -> str:
    rate = verdict.rate
    limit = f"The rate limit of {rate.amount} images per {rate.window_s} s is exceeded."
    if images >= rate.amount:
        return f"{limit} Send fewer images in one request."
    return f"{limit} Retry as Retry-After says."
