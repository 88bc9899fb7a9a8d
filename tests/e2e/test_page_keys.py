"""The page of a server that requires an API key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.page import ENTER, SEVEN, Page, needs_browser
from tests.support.server import RunningServer, serve, wait_until

pytestmark = needs_browser


_KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def locked() -> Iterator[RunningServer]:
    """Run a server that requires an API key."""
    with serve(api_servers=1, api_keys=_KEY) as server:
        yield server


def test_the_page_requests_a_key(browser: Page, locked: RunningServer) -> None:
    """The page requests a key until it is valid, and never shows it."""
    browser.driver.get(locked.url + "/")
    wait_until(lambda: browser.js("return document.getElementById('key-dialog').open"))
    browser.press("wrong-key", ENTER)
    wait_until(lambda: browser.text("#key-reason") == "Invalid API key.")
    browser.press(_KEY, ENTER)
    wait_until(lambda: browser.text("#model").startswith("digits"))
    browser.choose(SEVEN)
    browser.wait_for("digit-7.png: 7")
    assert "X-API-Key: $VIT_API_KEY" in browser.text("#call")
    assert _KEY not in browser.text("html")


def test_a_key_is_kept_for_the_tab(browser: Page, locked: RunningServer) -> None:
    """A key that is stored for the tab is used without a prompt."""
    browser.driver.get(locked.url + "/page/icon.svg")
    browser.js("sessionStorage.setItem('vit-api-key', arguments[0])", _KEY)
    browser.open(locked.url + "/")
    assert browser.text("#model").startswith("digits")


def test_without_a_key_the_page_says_so(browser: Page, locked: RunningServer) -> None:
    """The result and the live metrics say that a key is required."""
    _open_without_a_key(browser, locked)
    browser.find("#key-cancel").click()
    browser.wait_for("An API key is required.")
    browser.find("#live summary").click()
    wait_until(lambda: browser.text("#live-state") == "Metrics require an API key.")


def test_a_key_that_no_header_can_carry_is_refused(browser: Page, locked: RunningServer) -> None:
    """The dialog says why and stores nothing; the next key is used."""
    _open_without_a_key(browser, locked)
    browser.press("schlüssel–€", ENTER)  # noqa: RUF001
    wait_until(lambda: "ASCII" in browser.text("#key-reason"))
    assert browser.js("return sessionStorage.length") == 0
    browser.js("document.getElementById('key').select()")
    browser.press(_KEY, ENTER)
    wait_until(lambda: browser.text("#model").startswith("digits"))


def test_a_stored_key_that_no_header_can_carry_is_dropped(browser: Page, locked: RunningServer) -> None:
    """The page requests another one."""
    _open_without_a_key(browser, locked, kept="schlüssel–€")  # noqa: RUF001


def test_a_late_401_does_not_discard_a_new_key(browser: Page, locked: RunningServer) -> None:
    """A 401 for an older key does not open the dialog again once a new key was entered."""
    browser.driver.get(locked.url + "/page/icon.svg")
    browser.js("sessionStorage.setItem('vit-api-key', arguments[0])", _KEY)
    browser.open(locked.url + "/")
    browser.driver.execute_async_script(
        """const [key, done] = arguments;
        sessionStorage.clear();
        Promise.all(["key", "server"].map((name) => import(new URL(`page/${name}.js`, document.baseURI)))).then(
          ([{ Key }, { Server }]) => {
            const untold = new Key();
            untold.request("At first");
            new Server(untold).get("info").then((answer) => (window.late = answer.status));
            document.getElementById("key").value = key;
            document.getElementById("key-form").requestSubmit();
            done();
          });""",
        _KEY,
    )
    wait_until(lambda: browser.js("return window.late ?? document.getElementById('key-dialog').open"))
    assert browser.js("return window.late") == 200


def test_a_key_that_is_given_late_completes_the_page(browser: Page, locked: RunningServer) -> None:
    """Once a key is entered, the page shows the model's name, its examples and the pad."""
    _open_without_a_key(browser, locked)
    browser.find("#key-cancel").click()
    browser.wait_for("An API key is required.")
    browser.choose(SEVEN)
    wait_until(lambda: browser.js("return document.getElementById('key-dialog').open"))
    browser.press(_KEY, ENTER)
    browser.wait_for("digit-7.png: 7")
    wait_until(lambda: browser.text("#model").startswith("digits"))
    assert browser.js("return document.getElementById('pad').checkVisibility()")
    assert browser.js("return document.querySelector('#examples button').title") == "A handwritten 2"


def _open_without_a_key(browser: Page, locked: RunningServer, kept: str | None = None) -> None:
    """Open the page in a tab that has no key stored, or `kept`, and wait until it asks for one."""
    browser.driver.get(locked.url + "/page/icon.svg")
    browser.js("sessionStorage.clear(); if (arguments[0]) sessionStorage.setItem('vit-api-key', arguments[0])", kept)
    browser.driver.get(locked.url + "/")
    wait_until(lambda: browser.js("return document.getElementById('key-dialog').open"))
