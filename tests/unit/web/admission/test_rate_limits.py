"""Rate limits of requests: which client a request counts for."""

from __future__ import annotations

import pytest

from vit_api.access.rate_limiter import Budgets, RateLimiter
from vit_api.access.rates import Rate
from vit_api.errors import RateLimited
from vit_api.web.admission.rate_limits import RateLimits
from vit_api.web.requests import Admission, Request

pytestmark = pytest.mark.anyio

_ONE_A_DAY = Rate(1, 86_400)


async def _is_limited(limits: RateLimits, address: str, key_digest: bytes) -> bool:
    scope = {"method": "POST", "path": "/predict", "query_string": b"", "headers": [], "client": (address, 1)}
    request = Request(scope, b"id", arrived_at=0.0, timeout_s=30.0)
    request.admission = Admission(key_digest)
    try:
        await limits.charge(request)
    except RateLimited:
        return True
    return False


async def test_a_client_with_a_key_is_counted_by_its_key() -> None:
    """Its address does not matter: several clients may share one, and a client may change it."""
    limits = RateLimits(RateLimiter(Budgets([_ONE_A_DAY], 1), 0), [_ONE_A_DAY])
    clients = [("192.0.2.1", b"one"), ("192.0.2.2", b"one"), ("192.0.2.1", b"two")]
    assert [await _is_limited(limits, *client) for client in clients] == [False, True, False]


async def test_a_client_without_a_key_is_counted_by_its_address() -> None:
    """Each address has its own budget."""
    limits = RateLimits(RateLimiter(Budgets([_ONE_A_DAY], 1), 0), [_ONE_A_DAY])
    addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.1"]
    assert [await _is_limited(limits, address, b"") for address in addresses] == [False, False, True]
