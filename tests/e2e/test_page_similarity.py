"""The page's comparison of two images by their embeddings."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx

from tests.support.page import SEVEN, Page, needs_browser
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer

pytestmark = needs_browser

_SAID = "#similarity-status"
_EXAMPLE = ROOT / "vit_api" / "web" / "page" / "static" / "examples" / "digit-3.png"


def _choose(page: Page, which: str, path: Path) -> None:
    page.find(f"#{which}-file").send_keys(str(path))


def _cosine(server: RunningServer, *paths: Path) -> float:
    urls = ["data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for path in paths]
    answer = httpx.post(server.url + "/v1/embeddings", json={"input": urls}, timeout=60, **PLAIN_HTTP).json()
    one, two = (item["embedding"] for item in answer["data"])
    return sum(a * b for a, b in zip(one, two, strict=True))


def test_two_images_are_compared(page: Page, digits_server: RunningServer) -> None:
    """First two examples, then those that the user chooses; an image is as similar to itself as can be."""
    page.find("#similarity summary").click()
    page.wait_until_text(_SAID, "Cosine similarity of digit-2.png and digit-3.png: ")
    _choose(page, "one", SEVEN)
    page.wait_until_text(_SAID, "Cosine similarity of digit-7.png and digit-3.png: ")
    assert float(page.text(_SAID).rpartition(" ")[2]) == round(_cosine(digits_server, SEVEN, _EXAMPLE), 3)
    _choose(page, "two", SEVEN)
    page.wait_until_text(_SAID, "Cosine similarity of digit-7.png and digit-7.png: 1.000")
    assert (
        page.js("return document.querySelector('#similarity-bar .fill').style.getPropertyValue('--share')") == "1.0000"
    )
    assert page.count("#similarity .picture img") == 2


def test_what_is_no_image_is_not_compared(page: Page, tmp_path: Path) -> None:
    """The error of the server is shown, in place of the number before."""
    page.find("#similarity summary").click()
    page.wait_until_text(_SAID, "Cosine similarity")
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no image")
    _choose(page, "two", wrong)
    page.wait_until_text(_SAID, "image")
    page.wait_until_text(_SAID, "not")
    assert page.count("#similarity-bar *") == 0
