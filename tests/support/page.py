"""The page at `/` in a real browser, driven by what a user sees and does."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from scripts.chromium import BROWSER, DRIVER
from tests.support.server import ROOT, wait_until

needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
)
SEVEN = ROOT / "examples" / "digit-7.png"
THREE = ROOT / "examples" / "digit-3.png"
_EXPECTED_MESSAGES = ("the server responded with a status of 4", "for its sandbox attribute")
TAB, ENTER, RIGHT = "\ue004", "\ue007", "\ue014"


class Page:
    """The page in a browser, by what a user sees and does."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Open a URL, and wait until the page knows the model."""
        self.driver.get(url)
        wait_until(lambda: self.count("#examples button") > 0)

    def js(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def count(self, selector: str) -> int:
        return int(self.js("return document.querySelectorAll(arguments[0]).length", selector))

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
        return list(self.js(script, selector))

    def choose(self, *paths: Path) -> None:
        """Choose files, as with the file dialog."""
        self.find("#files").send_keys("\n".join(map(str, paths)))

    def wait_for(self, status: str) -> None:
        """Wait until the page shows this status."""
        self.wait_until_text("#status", status)

    def wait_until_text(self, selector: str, part: str) -> None:
        """Wait until an element's text contains this."""
        try:
            wait_until(lambda: part in self.text(selector))
        except AssertionError:
            pytest.fail(f"instead of {part!r} the page says {self.text(selector)!r}")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def violations(self) -> list[str]:
        """Return what axe-core finds: the rule and the element. WCAG 2.1 A and AA, and axe's best practices."""
        self.js((files("axe_core_python") / "axe.min.js").read_text())
        script = "const done = arguments[0]; axe.run().then(({ violations }) => done(violations))"
        found = self.driver.execute_async_script(script)
        return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]

    def complaints(self) -> list[str]:
        """Return the console's new messages, except those that the tests cause on purpose."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in messages if not any(part in message for part in _EXPECTED_MESSAGES)]
