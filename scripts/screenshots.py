"""Take the screenshots in docs/ of a server with the digits model: `python -m scripts.screenshots URL`."""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from scripts.chromium import chromium, draw, show_as

FOLDER = Path(__file__).resolve().parent.parent / "docs"

_COLOURS = 256
_WAIT_S = 30.0
_SEVEN = ((0.28, 0.2), (0.74, 0.2), (0.64, 0.42), (0.54, 0.64), (0.46, 0.84))


class Picture(NamedTuple):
    """A screenshot: the file's name and the emulated screen."""

    name: str
    scheme: str
    width: int
    height: int
    is_phone: bool


_PICTURES = (
    Picture("page-light", "light", 1120, 760, is_phone=False),
    Picture("page-dark", "dark", 1120, 760, is_phone=False),
    Picture("page-phone", "light", 360, 740, is_phone=True),
)


def take(driver: Chrome, url: str, picture: Picture) -> None:
    """Send 64 images, classify a drawing, and save the page, or for a phone only its screen."""
    show_as(driver, picture.scheme, picture.width, picture.height, is_phone=picture.is_phone)
    driver.get(url)
    _wait(driver, "document.querySelector('#answer .bars')")
    # What ran before belongs to the warm-up of the browser.
    for _ in range(2):
        driver.execute_script("document.getElementById('burst-status').textContent = ''")
        driver.find_element(By.ID, "send-many").click()
        _wait(driver, "document.getElementById('burst-status').textContent === '64 of 64 images classified.'")
    driver.execute_script("document.getElementById('fresh').click()")
    draw(driver, driver.find_element(By.ID, "pad"), _SEVEN)
    _wait(driver, "document.getElementById('status').textContent.startsWith('drawing.png: ')")
    driver.execute_script("document.activeElement.blur()")
    target = "pad" if picture.is_phone else "input"
    driver.execute_script("document.getElementById(arguments[0]).scrollIntoView()", target)
    _save(driver, FOLDER / f"{picture.name}.png", is_phone=picture.is_phone)


def _wait(driver: Chrome, condition: str) -> None:
    WebDriverWait(driver, _WAIT_S).until(lambda page: page.execute_script(f"return Boolean({condition})"))


def _save(driver: Chrome, path: Path, *, is_phone: bool) -> None:
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": not is_phone})
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


def main() -> None:
    """Take all screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    url = parser.parse_args().url
    with chromium() as driver:
        for picture in _PICTURES:
            take(driver, url, picture)


if __name__ == "__main__":
    main()
