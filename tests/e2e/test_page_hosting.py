"""The page behind a path prefix, in frames, and its Content-Security-Policy."""

from __future__ import annotations

import httpx
import pytest

from tests.support.page import SEVEN, Page, needs_browser
from tests.support.prefix_proxy import FRAME_PATH, PREFIX
from tests.support.server import PLAIN_HTTP, RunningServer, wait_until

pytestmark = needs_browser


def test_below_a_path(page: Page, proxy: str) -> None:
    """The page works behind a proxy with a path prefix."""
    page.open(f"{proxy}{PREFIX}/")
    page.find("#examples button").click()
    page.wait_for("digit-2.png: 2")
    assert f"{proxy}{PREFIX}/predict?top_k=5" in page.text("#call")


@pytest.mark.parametrize("is_below", [True, False], ids=["below a path", "at the root"])
def test_the_docs_try_requests_out(page: Page, proxy: str, is_below: bool) -> None:
    """Swagger UI finds its files, the document and the endpoints behind any path prefix."""
    page.driver.get((f"{proxy}{PREFIX}" if is_below else page.driver.current_url.rstrip("/")) + "/docs")
    for selector in ('[data-path="/health"] a', ".try-out__btn", "button.execute"):
        wait_until(lambda selector=selector: page.count(selector) == 1)  # type: ignore[misc]
        page.js("document.querySelector(arguments[0]).click()", selector)
    wait_until(lambda: page.text(".live-responses-table .response .response-col_status").startswith("200"))
    assert '"status": "ok"' in page.text(".live-responses-table .response")


def test_within_a_frame(page: Page, proxy: str) -> None:
    """The page works in a sandboxed frame, as in a Space."""
    page.driver.get(f"{proxy}{FRAME_PATH}?{PREFIX}/")
    page.driver.switch_to.frame(0)
    wait_until(lambda: page.count("#examples button") > 0)
    page.find("#examples button").click()
    page.wait_for("digit-2.png: 2")
    page.driver.switch_to.default_content()


def test_other_sites_may_not_frame_it(page: Page, proxy: str, digits_server: RunningServer) -> None:
    """A page of another origin (here another port) can't frame it."""
    page.complaints()
    page.driver.get(f"{proxy}{FRAME_PATH}?{digits_server.url}/")
    assert any("frame-ancestors" in message for message in page.complaints())


def test_nothing_comes_from_another_host(page: Page, digits_server: RunningServer) -> None:
    """Neither the page nor a result loads anything from another host."""
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    urls = page.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(urls) > 10
    assert {url.startswith((digits_server.url + "/", f"blob:{digits_server.url}/")) for url in urls} == {True}


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("document.body.innerHTML = '<p>x</p>'", id="HTML from a string"),
        pytest.param(
            "document.head.append(Object.assign(document.createElement('script'), {text: 'x=1'}))", id="script"
        ),
        pytest.param("document.body.setAttribute('style', 'color: red')", id="style"),
        pytest.param("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:1/x'}))", id="image"),
    ],
)
def test_the_policy_refuses(page: Page, attack: str) -> None:
    """The Content-Security-Policy blocks what an injected script would need."""
    page.js(f"try {{ {attack} }} catch {{ }}")
    seen: list[str] = []

    def is_refused() -> bool:
        seen.extend(page.complaints())
        return any("Content Security Policy" in message or "Trusted" in message for message in seen)

    wait_until(is_refused)


def test_files_are_revalidated(digits_server: RunningServer) -> None:
    """An unchanged file gets a 304, so that a page never mixes scripts of two versions."""
    first = digits_server.get("/page/page.js")
    headers = {"if-none-match": first.headers["etag"]}
    again = httpx.get(digits_server.url + "/page/page.js", headers=headers, timeout=30, **PLAIN_HTTP)
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    missing = digits_server.get("/page/../settings.py")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert httpx.head(digits_server.url + "/", timeout=30, **PLAIN_HTTP).status_code == 200
