"""The page's contrast, layout on a phone, keyboard use and accessible names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.chromium import show_as
from tests.support.page import ENTER, RIGHT, SEVEN, TAB, THREE, Page, needs_browser

pytestmark = needs_browser


# For each element with text of its own, the contrast with what is behind it: WCAG 2.2, "contrast ratio".
_CONTRASTS = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (colour) => {
  const [r, g, b] = numbers(colour).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (numbers(colour)[3] !== 0) return colour;
  }
};
return [...document.querySelectorAll('body *')].filter((element) =>
  element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
).map((element) => {
  const [low, high] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => a - b);
  return [element.textContent.trim().slice(0, 40), (high + 0.05) / (low + 0.05)];
});
"""

# For each control that shows a frame, the contrast of that with what the control is on: WCAG 2.2, 1.4.11.
_FRAME_CONTRASTS = (
    _CONTRASTS.partition("return [...document")[0]
    + """
return [...document.querySelectorAll('button, canvas, input[type=number], input[type=password]')].filter((element) =>
  element.checkVisibility() && getComputedStyle(element).borderTopWidth !== '0px'
).map((element) => {
  const [low, high] = [light(getComputedStyle(element).borderTopColor), light(behind(element.parentElement))].sort(
    (a, b) => a - b);
  return [element.id || element.title, (high + 0.05) / (low + 0.05)];
});
"""
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_are_visible_in_either_scheme(page: Page, scheme: str) -> None:
    """Borders have a contrast of at least 3 (WCAG AA), in the dialog too."""
    show_as(page.driver, scheme, 1180, 900)
    page.js("document.getElementById('key-dialog').showModal()")
    contrasts = page.js(_FRAME_CONTRASTS)
    assert {"pick", "top-k", "pad", "clear", "copy", "key", "key-cancel"} <= {name for name, _ in contrasts}
    assert not [(name, ratio) for name, ratio in contrasts if ratio < 3]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_either_scheme(page: Page, scheme: str, tmp_path: Path) -> None:
    """Results and errors have a contrast of at least 4.5 (WCAG AA)."""
    show_as(page.driver, scheme, 1180, 900)
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no image")
    for files, status in (
        ([SEVEN], "digit-7.png: 7"),
        ([SEVEN, wrong], "1 failed"),
        ([wrong], "wrong.png was not"),
    ):
        page.choose(*files)
        page.wait_for(status)
        contrasts = page.js(_CONTRASTS)
        assert len(contrasts) > 20
        assert not [(text, ratio) for text, ratio in contrasts if ratio < 4.5]
    is_dark = page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 28)"
    assert is_dark is (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1180, 360])
def test_axe_finds_no_violation(page: Page, scheme: str, width: int, tmp_path: Path) -> None:
    """Not with one result, with several, with an error, with all panels open, nor in the dialog."""
    show_as(page.driver, scheme, width, 800, is_phone=width < 500)
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no image")
    page.js("for (const panel of document.querySelectorAll('details')) panel.open = true")
    for files, status in (([SEVEN], "digit-7.png: 7"), ([SEVEN, wrong], "1 failed"), ([wrong], "wrong.png was not")):
        page.choose(*files)
        page.wait_for(status)
        assert page.violations() == []
    page.js("document.getElementById('key-dialog').showModal()")
    assert page.violations() == []
    page.js("document.getElementById('key-dialog').close(); document.getElementById('pick').textContent = ''")
    assert [found.partition(":")[0] for found in page.violations()] == ["button-name"]  # it does find one


def test_a_narrow_phone(page: Page, tmp_path: Path) -> None:
    """Nothing is wider than the screen, and there is a camera button."""
    show_as(page.driver, "light", 360, 740, is_phone=True)
    long = tmp_path / f"{'long' * 30}.png"
    shutil.copy(SEVEN, long)
    page.js("document.getElementById('live').open = true")
    for files, status in (([long], ": 7"), ([long, THREE], "2 images of 2")):
        page.choose(*files)
        page.wait_for(status)
        assert page.js("return document.documentElement.scrollWidth") <= 360
    assert page.js("return document.getElementById('photograph').checkVisibility()")
    assert page.js("return document.getElementById('photo').getAttribute('capture')") == "environment"


def test_keyboard_alone(page: Page) -> None:
    """Every control is reachable by keyboard, and the focus is visible."""
    seen = []
    page.js("document.activeElement.blur()")
    while not seen or seen[-1] != "call":
        page.press(TAB)
        seen.append(
            page.js(
                "const at = document.activeElement; return at.id || at.name || at.firstElementChild?.id || at.title"
            )
        )
        assert (
            page.js("return getComputedStyle(document.activeElement).outlineStyle") != "none" or seen[-1] == "language"
        )
        assert len(seen) < 40
    assert [name for name in seen if name] == [
        *("pick", "top-k", "frames", "fresh", "original"),
        *(f"A handwritten {digit}" for digit in (2, 3, 5, 7)),
        *("clear", "send-many", "language", "copy", "call"),
    ]
    page.js("document.querySelector('#examples button').focus()")
    page.press(ENTER)
    page.wait_for("digit-2.png: 2")
    page.js("document.querySelector('[name=language]').focus()")
    page.press(RIGHT)
    assert "urlopen" in page.text("#call")


def test_screen_readers_have_a_name_for_everything(page: Page) -> None:
    """Every control has an accessible name, and results are announced in a live region."""
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "checkbox", "spinbutton", "radio", "link", "image", "img", "progressbar", "list", "region"}
    controls = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    assert len(controls) > 15
    assert not [node for node in controls if not node.get("name", {}).get("value")]
    names = {(node["role"]["value"], node["name"]["value"]) for node in controls}
    assert ("region", "Code") in names
    assert page.js("return document.getElementById('status').role") == "status"
    assert page.js("return document.documentElement.lang") == "en"
