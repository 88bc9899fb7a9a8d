"""The fixture that runs a test with each of the two clients."""

from __future__ import annotations

import pytest

from tests.support.client_drivers import AsyncDriver, Driver, SyncDriver


@pytest.fixture(params=[pytest.param(SyncDriver, id="sync"), pytest.param(AsyncDriver, id="async")])
def driver(request: pytest.FixtureRequest) -> Driver:
    """Return a driver of each client."""
    driver: Driver = request.param()
    return driver
