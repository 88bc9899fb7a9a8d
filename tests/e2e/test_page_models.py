"""The page of a server with several models and versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.support.select import Select

from scripts.chromium import show_as
from tests.support.page import SEVEN, Page, needs_browser
from tests.support.samples import make_checkpoint
from tests.support.server import RunningServer, serve, wait_until

pytestmark = needs_browser


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Run two versions of `digits`, of which the second has thresholds, and another model."""
    large = make_checkpoint(tmp_path_factory.mktemp("models") / "large", classes=30)
    models = [
        {"name": "digits", "version": "1", "model": "digits", "traffic": 100},
        {"name": "digits", "version": "2", "model": "digits", "traffic": 0, "thresholds": {"7": 0.5, "*": 0.9}},
        {"name": "team/large-with-a-long-name", "version": "beta", "model": str(large)},
    ]
    with serve("", models=json.dumps(models), api_servers=1) as server:
        wait_until(lambda: all(one["ready"] for one in server.get("/health").json()["models"]), 240)
        yield server


@pytest.fixture
def page(browser: Page, several: RunningServer) -> Iterator[Page]:
    show_as(browser.driver, "light", 1180, 900)
    browser.open(several.url + "/")
    yield browser
    assert browser.complaints() == []


def _choose(page: Page, which: str, title: str) -> None:
    Select(page.find(which)).select_by_visible_text(title)


def test_what_answered_is_named(page: Page) -> None:
    """By traffic, and as chosen: then the image that is shown is classified again, and the code asks the same."""
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    assert page.text("#answer .answered") == "by digits, version 1"
    assert page.texts("#served option") == [
        "digits, by traffic",
        "digits, version 1 (100 %)",
        "digits, version 2 (0 %)",
        "team/large-with-a-long-name, by traffic",
        "team/large-with-a-long-name, version beta (100 %)",
    ]
    _choose(page, "#served", "digits, version 2 (0 %)")
    wait_until(lambda: page.text("#answer .answered") == "by digits, version 2")
    assert page.text("#call").endswith("predict?top_k=5&model=digits&version=2'")
    _choose(page, "#served", "team/large-with-a-long-name, by traffic")
    wait_until(lambda: page.text("#answer .answered") == "by team/large-with-a-long-name, version beta")
    page.find("#send-many").click()
    page.wait_until_text("#burst-status", "64 of 64 images classified.")
    page.find("#similarity summary").click()
    page.wait_until_text("#similarity-status", "Cosine similarity of digit-2.png and digit-3.png")


def test_thresholds_are_shown(page: Page) -> None:
    """Those of the version that answered, beside the labels."""
    _choose(page, "#served", "digits, version 2 (0 %)")
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    page.wait_for(", flagged")
    assert page.texts("#answer .limit") == ["threshold 50.0 %", *["threshold 90.0 %"] * 4]
    _choose(page, "#served", "digits, version 1 (100 %)")
    wait_until(lambda: page.text("#answer .answered") == "by digits, version 1")
    assert page.count("#answer .limit") == 0


def test_two_versions_on_one_image(page: Page, tmp_path: Path) -> None:
    """Their answers stand beside each other, each with its name; an error is that of both."""
    _choose(page, "#other", "digits, version 2 (0 %)")
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7, 96.6 % · 7, 96.6 %, flagged")
    assert page.texts("#answer .pair .answered") == ["by digits, version 1", "by digits, version 2"]
    assert page.count("#answer .pair .bars") == 2
    assert page.violations() == []
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no image")
    page.choose(wrong)
    page.wait_for("wrong.png: not classified · not classified")
    assert page.count("#answer .pair .error") == 2
    _choose(page, "#other", "Nothing")
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    assert page.count("#answer .pair") == 0


def test_a_narrow_phone(page: Page) -> None:
    """Neither the names of the models nor two answers are wider than the screen."""
    show_as(page.driver, "dark", 360, 740, is_phone=True)
    _choose(page, "#other", "digits, version 2 (0 %)")
    page.choose(SEVEN)
    page.wait_for("flagged")
    page.js("for (const panel of document.querySelectorAll('details')) panel.open = true")
    assert page.js("return document.documentElement.scrollWidth") <= 360
    assert page.violations() == []


def test_one_model_leaves_nothing_to_choose(browser: Page, digits_server: RunningServer) -> None:
    """The choice is hidden, and the answer has the model's name."""
    browser.open(digits_server.url + "/")
    browser.choose(SEVEN)
    browser.wait_for("digit-7.png: 7")
    assert not browser.js("return document.getElementById('models').checkVisibility()")
    assert browser.text("#answer .answered") == "by digits"
    assert "model=" not in browser.text("#call")
