"""A headless Chromium, by WebDriver, that reaches nothing but this machine. Knows nothing of what it shows."""

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
    "--no-sandbox",  # root, which CI is, gets none
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)


@contextlib.contextmanager
def chromium(width: int = 1180, height: int = 900) -> Iterator[Chrome]:
    """Run a browser until the context ends. Its console's messages can be asked for.

    Raises:
        FileNotFoundError: There is no Chromium, or no driver for it.
    """
    if BROWSER is None or DRIVER is None:
        raise FileNotFoundError("install Debian's packages chromium and chromium-driver")
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
    """Have pages see a colour scheme, `light` or `dark`, and a screen of that size in CSS pixels."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    screen = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": is_phone, "maxTouchPoints": 1})


def draw(driver: Chrome, element: WebElement, points: Sequence[tuple[float, float]]) -> None:
    """Draw one stroke with the mouse, through points whose coordinates are shares of an element's size."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    width, height = element.size["width"], element.size["height"]
    # WebDriver counts from the element's middle.
    places = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in points]
    actions = ActionChains(driver, duration=30)
    actions.move_to_element_with_offset(element, *places[0]).click_and_hold()
    for place in places[1:]:
        actions.move_to_element_with_offset(element, *place)
    actions.release().perform()
