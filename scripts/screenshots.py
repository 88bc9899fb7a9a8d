"""Take the pictures of the page in docs/: `python -m scripts.screenshots URL`, of a server with the digits model."""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from scripts.chromium import chromium, show_as

FOLDER = Path(__file__).resolve().parent.parent / "docs"

_COLOURS = 128
_WAIT_S = 30.0
# Name, colour scheme, width, height, whether it is a phone.
_PICTURES = (
    ("page-light", "light", 1120, 760, False),
    ("page-dark", "dark", 1120, 760, False),
    ("page-phone", "light", 360, 740, True),
)


def take(driver: Chrome, url: str, name: str, scheme: str, width: int, height: int, *, is_phone: bool) -> None:
    """Classify an example, open the live figures, and save what is on the screen, or on a phone what is below that."""
    show_as(driver, scheme, width, height, is_phone=is_phone)
    driver.get(url)
    wait = WebDriverWait(driver, _WAIT_S)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#examples button"))
    driver.find_elements(By.CSS_SELECTOR, "#examples button")[-1].click()
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#answer .bars"))
    driver.execute_script("document.getElementById('live').open = true; document.activeElement.blur()")
    wait.until(lambda page: page.find_element(By.CSS_SELECTOR, "#figures dd").text != "–")
    if is_phone:
        driver.execute_script("document.getElementById('result').scrollIntoView()")
    _save(driver, FOLDER / f"{name}.png", is_phone=is_phone)


def _save(driver: Chrome, path: Path, *, is_phone: bool) -> None:
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": not is_phone})
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    url = parser.parse_args().url
    with chromium() as driver:
        for name, scheme, width, height, is_phone in _PICTURES:
            take(driver, url, name, scheme, width, height, is_phone=is_phone)


if __name__ == "__main__":
    main()
