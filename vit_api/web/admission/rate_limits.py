"""Rate limits over HTTP: the `RateLimit` headers, 429. Knows nothing of how usage is counted.

Every response of a limited path has the headers of two drafts of draft-ietf-httpapi-ratelimit-headers: of 06
`RateLimit-Limit`, `-Remaining`, `-Reset` and `-Policy`, which most clients read; of 10 `RateLimit` and
`RateLimit-Policy`, which name each policy. The items of the two policies differ: both are sent, the older one first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from vit_api.access.rate_limiter import RateLimiter, Verdict
from vit_api.access.rates import Rate
from vit_api.errors import RateLimited
from vit_api.web.openapi.descriptions import refusal_of
from vit_api.web.requests import Headers, Request


class RateLimits:
    """Limit how many images each client may have classified.

    Args:
        limiter: Counts each client's images.
        rates: The limits of each client.
    """

    def __init__(self, limiter: RateLimiter, rates: Sequence[Rate]) -> None:
        self._limiter = limiter
        self._policy = ", ".join(f"{rate.amount};w={rate.window_s}" for rate in rates).encode()
        self._names = {rate: _name_of(rate) for rate in rates}
        named = (f'"{name}";q={rate.amount};w={rate.window_s}' for rate, name in self._names.items())
        self._named_policy = ", ".join(named).encode()

    async def charge(self, request: Request) -> None:
        """Count one image for a request's client, before the body is read, so that a refused upload costs nothing.

        Further images of the request are counted by `Admission.charge` before they reach the model.

        Raises:
            RateLimited: The client exceeds a limit; the image was not counted.
        """
        await self._charge(request, request.client, 1)

    def charge_now(self, request: Request) -> bool:
        """Do what `charge` does, unless other servers have to be asked; return whether it was done.

        Raises:
            RateLimited: The client exceeds a limit; the image was not counted.
        """
        client = request.client
        verdict = self._limiter.take_now(client, 1)
        if verdict is None:
            return False
        self._apply(request, client, 1, verdict)
        return True

    def charge_hit(self, client: str) -> bytes | None:
        """Count an image for a client; return the headers to send, a line break before each.

        None: it exceeds a limit, so that nothing was counted, or other servers have to be asked.
        """
        verdict = self._limiter.take_now(client, 1)
        if verdict is None or verdict.is_refused:
            return None
        return b"".join([b"\r\n%b: %b" % header for header in self._headers_of(verdict, _reset_of(verdict))])

    async def _charge(self, request: Request, client: str, images: int) -> None:
        self._apply(request, client, images, await self._limiter.take(client, images))

    def _apply(self, request: Request, client: str, images: int, verdict: Verdict) -> None:
        reset_s = _reset_of(verdict)
        others = without_limits(request.admission.headers)
        request.admission = request.admission._replace(
            charge=functools.partial(self._charge, request, client),
            headers=(*others, *self._headers_of(verdict, reset_s)),
        )
        if verdict.is_refused:
            raise RateLimited(_refusal(verdict, images), reset_s)

    def _headers_of(self, verdict: Verdict, reset_s: int) -> Headers:
        return (
            (b"ratelimit-limit", b"%d" % verdict.rate.amount),
            (b"ratelimit-remaining", b"%d" % verdict.remaining),
            (b"ratelimit-reset", b"%d" % reset_s),
            (b"ratelimit-policy", self._policy),
            (b"ratelimit-policy", self._named_policy),
            (b"ratelimit", f'"{self._names[verdict.rate]}";r={verdict.remaining};t={reset_s}'.encode()),
        )


def without_limits(headers: Headers) -> Headers:
    """Return headers without those of the rate limit."""
    return [header for header in headers if not header[0].startswith(b"ratelimit")]


def _reset_of(verdict: Verdict) -> int:
    return max(1, math.ceil(verdict.reset_s))


def describe_limits(schema: dict[str, Any]) -> None:
    """Add the 429 response of the classification paths to an OpenAPI description."""
    description = "The rate limit is exceeded; `Retry-After` says when to retry"
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "classification" in operation.get("tags", ()):
                operation["responses"]["429"] = refusal_of(operation, description)


def _name_of(rate: Rate) -> str:
    """Return the name of a rate's policy; letters, digits and underscores alone, as huggingface_hub reads them."""
    return f"{rate.amount}_per_{rate.window_s}s"


def _refusal(verdict: Verdict, images: int) -> str:
    rate = verdict.rate
    limit = f"The rate limit of {rate.amount} images per {rate.window_s} s is exceeded."
    if images >= rate.amount:
        return f"{limit} Send fewer images in one request."
    return f"{limit} Retry as Retry-After says."
