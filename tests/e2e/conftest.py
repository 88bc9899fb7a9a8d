"""A browser and the page for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from scripts.chromium import chromium, show_as
from tests.support.page import Page
from tests.support.prefix_proxy import prefix_proxy
from tests.support.server import RunningServer


@pytest.fixture(scope="session")
def driver() -> Iterator[Chrome]:
    """Run one browser: its start takes as long as ten tests."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def browser(driver: Chrome) -> Iterator[Page]:
    """Open a tab; what was emulated in others is not emulated in it."""
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    driver.get_log("browser")
    yield Page(driver)
    driver.close()
    driver.switch_to.window(first)


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
