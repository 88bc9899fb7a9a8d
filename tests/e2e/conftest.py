"""A browser and the page for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts.chromium import chromium, show_as
from tests.support.page import Page
from tests.support.prefix_proxy import prefix_proxy
from tests.support.server import RunningServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as driver:
        yield Page(driver)


@pytest.fixture(scope="module")
def proxy(digits_server: RunningServer) -> Iterator[str]:
    with prefix_proxy(digits_server.url) as url:
        yield url


@pytest.fixture
def page(browser: Page, digits_server: RunningServer) -> Iterator[Page]:
    """Open the page on a desktop screen; at the end the console has no errors."""
    show_as(browser.driver, "light", 1180, 900)
    browser.open(digits_server.url + "/")
    yield browser
    assert browser.complaints() == []
