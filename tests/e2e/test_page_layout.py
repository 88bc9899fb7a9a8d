"""What is on the first screen of the page, and what is beside what."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.chromium import draw, show_as
from tests.support.page import SEVEN, Page, needs_browser
from tests.support.server import RunningServer, wait_until

pytestmark = needs_browser

_ONE = [(0.5, 0.1), (0.5, 0.9)]


def _bottom(page: Page, selector: str) -> float:
    return float(page.js("return document.querySelector(arguments[0]).getBoundingClientRect().bottom", selector))


def _top(page: Page, selector: str) -> float:
    return float(page.js("return document.querySelector(arguments[0]).getBoundingClientRect().top", selector))


def _has_strokes(page: Page) -> bool:
    """Return whether something is drawn on the pad."""
    script = """const pad = document.getElementById("pad"), copy = new OffscreenCanvas(pad.width, pad.height);
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(pad, 0, 0);
    return context.getImageData(0, 0, pad.width, pad.height).data.some((value) => value !== 255)"""
    return bool(page.js(script))


def test_an_example_is_classified_on_load(page: Page) -> None:
    """The page shows what a result looks like, and the next load has it from the cache."""
    page.wait_for("digit-2.png: 2")
    assert page.count("#answer .bars li") == 5

    def is_from_cache() -> bool:
        page.open(page.driver.current_url)
        page.wait_for("digit-2.png: 2")
        return page.text("#answer .badge") == "From cache"

    wait_until(is_from_cache)


def test_no_example_is_classified_of_a_server_that_does_not_answer(page: Page) -> None:
    """The reason stays on the page."""
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/info"]})
    try:
        page.open(page.driver.current_url)
        page.wait_for("The server could not be reached.")
        assert page.count("#answer > *") == 0
    finally:
        page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
        page.complaints()


def test_the_first_screen(page: Page) -> None:
    """The drawing pad, all examples and the result are on a screen of 1180 x 900."""
    page.wait_for("digit-2.png: 2")
    for selector in ("#pad", "#clear", "#examples", "#answer .times"):
        assert 0 < _bottom(page, selector) < 900, selector
    assert _top(page, "#pad") < _bottom(page, "#examples")  # beside each other
    hrefs = page.js("return [...document.querySelectorAll('header nav a')].map((link) => link.getAttribute('href'))")
    assert hrefs == ["docs", "info", "metrics"]


def test_a_drawing_does_not_stay_beside_another_result(page: Page) -> None:
    """It is erased once another image is chosen, and stays beside its own result."""
    draw(page.driver, page.find("#pad"), _ONE)
    page.wait_for("drawing.png: 1")
    assert _has_strokes(page)
    assert page.texts("#answer .file a") == ["Save image"]
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    assert not _has_strokes(page)
    assert page.texts("#answer .file a") == []  # the user has that file already
    draw(page.driver, page.find("#pad"), _ONE)
    page.wait_for("drawing.png: 1")
    page.find("#examples button").click()
    page.wait_for("digit-2.png: 2")
    assert not _has_strokes(page)


def test_what_is_no_image_has_no_thumbnail(page: Page, tmp_path: Path) -> None:
    """Nor a link to save it; an image has a thumbnail."""
    wrong = tmp_path / "README.md"
    wrong.write_text("# no image")
    page.choose(wrong)
    page.wait_for("README.md was not classified.")
    wait_until(lambda: page.count("#answer .file img") == 0)
    assert page.text("#answer .file").split() == ["README.md", "10", "B"]
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    wait_until(lambda: page.js("return document.querySelector('#answer img')?.naturalWidth > 0"))


@pytest.mark.parametrize(("width", "height"), [(390, 844), (360, 740)])
def test_a_phone_shows_the_result(page: Page, digits_server: RunningServer, width: int, height: int) -> None:
    """It comes into view once an image is chosen or drawn, and not before; the camera is the first button."""
    show_as(page.driver, "light", width, height, is_phone=True)
    page.open(digits_server.url + "/")
    page.wait_for("digit-2.png: 2")
    assert page.js("return window.scrollY") == 0
    assert _top(page, "#photograph") < _top(page, "#pick")
    assert _bottom(page, "#photograph") < height
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    wait_until(lambda: _top(page, "#status") >= 0 and _bottom(page, "#answer .bars li") < height)
    draw(page.driver, page.find("#pad"), _ONE)
    page.wait_for("drawing.png: 1")
    assert 0 < _bottom(page, "#status") <= height
    assert _bottom(page, "#pad") > height / 4  # still in view, for the next stroke
    assert page.js("return document.documentElement.scrollWidth") <= width
