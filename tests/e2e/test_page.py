"""Classifying images on the page at `/`, in a real browser."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver import ActionChains

from scripts.chromium import draw
from tests.support.page import SEVEN, THREE, Page, needs_browser
from tests.support.server import RunningServer, wait_until

pytestmark = needs_browser


# Holds the examples back until `release`, which has them come (or be given up) and then waits for another answer.
_SLOW_EXAMPLES = """
const get = window.fetch, held = [];
window.fetch = (url, options) => !String(url).includes("/examples/") ? get(url, options) :
  new Promise((resolve, reject) => held.push(() => get(url, options).then(resolve, reject)));
window.release = async () => {
  for (const go of held) go();
  await (await get("info", { cache: "no-store" })).text();
};
window.said = [];
new MutationObserver(() => window.said.push(document.getElementById("status").textContent)).observe(
  document.getElementById("status"), { childList: true });
"""

# Has the pen, when it is lifted from the pad, choose a file in the same moment.
_CHOOSE_AT_PEN_UP = """
const content = Uint8Array.from(atob(arguments[0]), (byte) => byte.charCodeAt(0));
document.getElementById("pad").addEventListener("pointerup", () => {
  const chosen = new DataTransfer();
  chosen.items.add(new File([content], "chosen.png", { type: "image/png" }));
  document.getElementById("files").files = chosen.files;
  document.getElementById("files").dispatchEvent(new Event("change"));
  setTimeout(() => (window.isPauseOver = true), 500);
});
"""


def test_a_chosen_image_is_classified(page: Page) -> None:
    """The result has labelled bars, its source, and the time of each stage."""
    page.js("document.getElementById('fresh').click()")
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7, 9")
    assert page.texts("#answer .label")[0] == "7"
    assert len(page.texts("#answer .value")) == 5
    assert page.texts("#answer .value")[0].endswith(" %")
    assert page.text("#answer .badge") == "Computed in a batch of 1"
    assert page.texts("#answer .times dt") == ["Network", "Queue", "Inference", "Other", "Total"]
    assert all(time.endswith("ms") for time in page.texts("#answer .times dd"))
    assert page.js("return document.querySelector('#answer img').naturalWidth") > 0


def test_the_frames_of_an_animation_are_listed(page: Page, tmp_path: Path) -> None:
    """As many as the user asks for, with their times; the bars have each label's largest probability."""
    animation = tmp_path / "digits.gif"
    digits = [Image.open(path).convert("RGB") for path in (SEVEN, THREE)]
    digits[0].save(animation, "GIF", save_all=True, append_images=digits[1:], duration=500)
    page.js("document.getElementById('frames').value = '2'")
    page.choose(animation)
    page.wait_for("digits.gif: ")
    frames = page.texts("#answer .frames li")
    assert [text.rpartition(",")[0] for text in frames] == ["Frame 1 at 0.00 s: 7", "Frame 2 at 0.50 s: 3"]
    assert set(page.texts("#answer .label")[:2]) == {"3", "7"}
    assert page.texts("#calls code")[0].endswith("frames=2'")
    page.js("document.getElementById('frames').value = '1'")
    page.choose(animation)
    page.wait_for("digits.gif: 7")
    assert page.texts("#answer .frames li") == []


def test_a_repeated_image_comes_from_the_cache(page: Page) -> None:
    """The page shows the cache as source, and the chosen number of classes."""
    page.js("document.getElementById('top-k').value = 2")
    page.choose(THREE)
    page.wait_for("digit-3.png: 3")
    wait_until(lambda: _is_hit_after_another_try(page))
    assert page.count("#answer .bars li") == 2


def _is_hit_after_another_try(page: Page) -> bool:
    page.js("document.getElementById('status').textContent = ''")
    page.choose(THREE)
    page.wait_for("digit-3.png: 3")
    return page.text("#answer .badge") == "From cache"


def test_a_dropped_image_is_classified(page: Page) -> None:
    """The browser drops the file, as from a file manager, anywhere on the page."""
    drag = {"items": [], "files": [str(SEVEN)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 500, "data": drag})
        assert page.js("return document.getElementById('drop').matches('.over')") is (kind != "drop")
    page.wait_for("digit-7.png: 7")


def test_a_pasted_image_is_classified(page: Page) -> None:
    """Pasting works anywhere on the page."""
    page.js(
        """const content = Uint8Array.from(atob(arguments[0]), (byte) => byte.charCodeAt(0));
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([content], "pasted.png", { type: "image/png" }));
        document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));""",
        base64.b64encode(SEVEN.read_bytes()).decode(),
    )
    page.wait_for("pasted.png: 7")


@pytest.mark.parametrize(("at", "label"), list(enumerate("2357")))
def test_an_example_is_classified(page: Page, at: int, label: str) -> None:
    """A click on an example classifies it."""
    page.driver.find_elements("css selector", "#examples button")[at].click()
    page.wait_for(f"digit-{label}.png: {label}")


def test_photographs_are_shown_for_other_models(page: Page) -> None:
    """Other models have photographs as examples, which can be classified."""
    page.driver.execute_async_script(
        """import(new URL("page/examples.js", document.baseURI)).then(({ showExamples }) =>
        showExamples(false, () => new AbortController().signal, (files) => (window.taken = files), () => {}))
        .then(arguments[0])"""
    )
    images = "[...document.querySelectorAll('#examples img')]"
    wait_until(lambda: page.js(f"return {images}.every((image) => image.complete && image.naturalWidth > 0)"))
    page.find("#examples button").click()
    wait_until(lambda: page.js("return window.taken?.[0].size > 0"))


def test_a_drawn_seven_is_classified(page: Page) -> None:
    """A small drawing in a corner is classified correctly."""
    draw(page.driver, page.find("#pad"), [(0.1, 0.15), (0.45, 0.15), (0.25, 0.6)])
    page.wait_for("drawing.png: 7")
    page.find("#clear").click()
    draw(page.driver, page.find("#pad"), [(0.5, 0.1), (0.5, 0.9)])
    page.wait_for("drawing.png: 1")


def test_several_images_have_a_row_each(page: Page, tmp_path: Path) -> None:
    """The page shows progress; a file that is not an image does not affect the others."""
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no image")
    page.choose(SEVEN, wrong, *[THREE] * 10)
    page.wait_for("11 images of 12 classified, 1 failed")
    assert page.count("#rows tr") == 12
    assert page.js("return document.getElementById('progress').value") == 12
    assert page.texts("#rows tr:first-child td")[0] == "7"
    page.find("#rows tr:first-child button").click()
    assert page.texts("#answer .label")[0] == "7"


def test_an_error_is_shown_as_the_api_returns_it(page: Page, digits_server: RunningServer, tmp_path: Path) -> None:
    """The error has its code and request id."""
    upload = tmp_path / "text.png"
    upload.write_text("this is no image")
    page.choose(upload)
    error = digits_server.predict(upload.read_bytes()).json()
    page.wait_for("text.png was not classified.")
    assert page.text("#answer .error .message") == error["error"]
    assert page.js("return document.querySelector('#answer .error').role") == "alert"
    assert "Status 415 · unsupported_image · request " in page.text("#answer .error .hint")


@pytest.mark.parametrize(
    ("language", "program"),
    [
        pytest.param("curl", ["bash"], id="curl"),
        pytest.param("python", ["python3"], id="python"),
        pytest.param("javascript", ["node", "--input-type=module"], id="javascript"),
    ],
)
@pytest.mark.parametrize("names", [["it's a $7.png"], ["a.png", "b.png"]], ids=["one", "several"])
def test_the_calls_run(page: Page, tmp_path: Path, language: str, program: list[str], names: list[str]) -> None:
    """Copied commands run, also for file names with shell metacharacters."""
    if shutil.which(program[0]) is None:
        pytest.skip(f"needs {program[0]}")
    for name in names:
        shutil.copy(SEVEN, tmp_path / name)
    page.js("document.getElementById('fresh').click()")
    page.choose(*(tmp_path / name for name in names))
    page.wait_for(f"{names[0]}: 7" if len(names) == 1 else "2 images of 2")
    page.js("document.querySelector(arguments[0]).click()", f"[value={language}]")
    call = page.text("#call")
    assert "no-cache" in call
    result = subprocess.run(
        program, input=call, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60, check=True
    )
    answers = [line.replace("'", '"').replace("False", "false") for line in result.stdout.splitlines()]
    assert [json.loads(answer)["predictions"][0]["label"] for answer in answers] == ["7"] * len(names)


def test_the_call_of_a_browser_runs(page: Page) -> None:
    """In a page with a file input, which is here one of the same server."""
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    page.js("document.querySelector('[value=browser]').click()")
    call = page.text("#call")
    assert "VIT_API_CORS_ORIGINS" in page.text("#call-hint")
    page.driver.get(page.driver.current_url + "page/examples/CREDITS.md")
    page.js(
        """const input = Object.assign(document.createElement("input"), { type: "file", id: "files", multiple: true });
        document.body.append(input);
        console.log = (answer) => (window.answers ??= []).push(answer);"""
    )
    page.js(call)
    page.choose(SEVEN, THREE)
    wait_until(lambda: page.js("return window.answers?.length") == 2)
    assert page.js("return window.answers.map(({ predictions }) => predictions[0].label)") == ["7", "3"]


def test_a_call_is_copied(page: Page) -> None:
    """The button copies the command; the page needs no permission for that."""
    page.find("#copy").click()
    wait_until(lambda: page.text("#copied") == "Copied.")
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    script = "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    assert page.driver.execute_async_script(script) == page.text("#call")


def test_the_parts_of_the_time_are_the_total(page: Page) -> None:
    """They add up, whether or not the browser reports the upload's duration."""
    found = page.driver.execute_async_script(
        """import(new URL("page/results.js", document.baseURI)).then(({ timeParts }) => {
          const headers = { "x-queue-time-ms": "3", "x-inference-time-ms": "4" };
          const header = (name) => headers[name];
          const parts = (sentBytes, sentMs, processing_time_ms) =>
            timeParts({ header, totalMs: 100, sentBytes, sentMs, body: { processing_time_ms } }).map(([, ms]) => ms);
          arguments[0]([parts(1000, 99, 10), parts(1e6, 80, 95), parts(1e6, null, 95), parts(1e6, 99, 95)]);
        })"""
    )
    assert found == [[90, 3, 4, 3], [80, 3, 4, 13], [5, 3, 4, 88], [93, 3, 4, 0]]


def test_a_response_of_another_server(page: Page) -> None:
    """A login page with status 200 is not taken for a result."""
    page.js(
        """const open = XMLHttpRequest.prototype.open;
        XMLHttpRequest.prototype.open = function () { open.call(this, "GET", "."); };"""
    )
    page.choose(SEVEN)
    page.wait_for("digit-7.png was not classified.")
    assert "did not come from this server" in page.text("#answer .error")


def test_a_slow_example_replaces_nothing_newer(page: Page) -> None:
    """An example that finishes loading after a newer choice is not classified."""
    page.wait_for("digit-2.png: 2")  # the example on load
    page.js(_SLOW_EXAMPLES)
    page.find("#examples button").click()
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    page.driver.execute_async_script("window.release().then(arguments[0])")
    page.choose(THREE)
    page.wait_for("digit-3.png: 3")
    said = " ".join(page.js("return window.said"))
    assert set(re.findall(r"digit-\d\.png", said)) == {"digit-7.png", "digit-3.png"}


def test_a_slow_example_does_not_erase_a_drawing(page: Page) -> None:
    """An example, such as the one on load, that finishes loading while a stroke is drawn is not classified."""
    page.wait_for("digit-2.png: 2")
    page.js(_SLOW_EXAMPLES)
    page.find("#examples button").click()
    stroke = ActionChains(page.driver, duration=30).move_to_element_with_offset(page.find("#pad"), 0, -80)
    stroke.click_and_hold().perform()
    page.driver.execute_async_script("window.release().then(arguments[0])")
    ActionChains(page.driver, duration=30).move_by_offset(0, 160).release().perform()
    page.wait_for("drawing.png: 1")
    assert "digit-2.png" not in " ".join(page.js("return window.said"))


def test_a_file_that_is_chosen_in_the_middle_of_a_stroke_ends_it(page: Page) -> None:
    """The rest of the stroke is not drawn, and is no error."""
    page.wait_for("digit-2.png: 2")
    ActionChains(page.driver, duration=30).move_to_element(page.find("#pad")).click_and_hold().perform()
    page.choose(SEVEN)
    page.wait_for("digit-7.png: 7")
    ActionChains(page.driver, duration=30).move_by_offset(0, 60).release().perform()
    page.choose(THREE)
    page.wait_for("digit-3.png: 3")


def test_a_drawing_replaces_nothing_newer(page: Page) -> None:
    """If a file is chosen in the pause after a stroke, the file is classified."""
    page.js(_CHOOSE_AT_PEN_UP, base64.b64encode(SEVEN.read_bytes()).decode())
    draw(page.driver, page.find("#pad"), [(0.5, 0.1), (0.5, 0.9)])
    wait_until(lambda: page.js("return window.isPauseOver === true"))
    page.wait_for("chosen.png: 7")


def test_an_example_that_is_not_served_is_not_classified(page: Page) -> None:
    """A proxy's page in place of an example is not classified."""
    page.js("window.fetch = async () => new Response('<html>', { status: 502 })")
    page.find("#examples button").click()
    page.wait_for("The example could not be loaded.")
