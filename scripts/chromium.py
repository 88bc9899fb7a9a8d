"""Runs a headless Chromium by WebDriver, without access to other machines. Knows nothing of what it shows."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence

from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.remote.webelement import WebElement

BROWSER = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")

_SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # Chromium has no sandbox as root, as which CI runs
    "--disable-dev-shm-usage",  # it is small in containers
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-extensions",
    "--disable-features=Translate,MediaRouter,OptimizationHints",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)


@contextlib.contextmanager
def chromium(width: int = 1180, height: int = 900) -> Iterator[Chrome]:
    """Run a browser until the context ends; it keeps its console's messages.

    Raises:
        FileNotFoundError: Chromium or its driver is not installed.
    """
    if BROWSER is None or DRIVER is None:
        raise FileNotFoundError("Chromium is not installed: install Debian's packages chromium and chromium-driver.")
    options = ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in (*_SWITCHES, f"--window-size={width},{height}"):
        options.add_argument(switch)
    driver = Chrome(options, ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def show_as(driver: Chrome, scheme: str, width: int, height: int, *, scale: float = 1, is_phone: bool = False) -> None:
    """Emulate a colour scheme, `light` or `dark`, and a screen size in CSS pixels."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    screen = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": is_phone, "maxTouchPoints": 1})


def draw(driver: Chrome, element: WebElement, points: Sequence[tuple[float, float]]) -> None:
    """Draw one stroke with the mouse through points, in coordinates relative to an element's size."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    width, height = element.size["width"], element.size["height"]
    # WebDriver's offsets start at the element's centre.
    offsets = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in points]
    actions = ActionChains(driver, duration=30)
    actions.move_to_element_with_offset(element, *offsets[0]).click_and_hold()
    for offset in offsets[1:]:
        actions.move_to_element_with_offset(element, *offset)
    actions.release().perform()
