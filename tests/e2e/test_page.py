"""The page at `/`, in a real browser."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.chromium import BROWSER, DRIVER, chromium, draw, show_as
from tests.support.prefix_proxy import FRAME_PATH, PREFIX, prefix_proxy
from tests.support.server import ROOT, RunningServer, serve, wait_until
from vit_api.web.page.files import read_files

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's packages chromium and chromium-driver")

_SEVEN = ROOT / "examples" / "digit-7.png"
_THREE = ROOT / "examples" / "digit-3.png"
_KEY = "a-key-of-this-test"
_BROUGHT_ABOUT = ("the server responded with a status of 4", "for its sandbox attribute")
_TAB, _ENTER, _RIGHT = "\ue004", "\ue007", "\ue014"

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
        try:
            wait_until(lambda: status in self.text("#status"))
        except AssertionError:
            pytest.fail(f"instead of {status!r} the page says {self.text('#status')!r}")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def complaints(self) -> list[str]:
        """Return the console's new messages, except those that the tests cause on purpose."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in messages if not any(part in message for part in _BROUGHT_ABOUT)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as driver:
        yield Page(driver)


@pytest.fixture(scope="module")
def proxy(digits_server: RunningServer) -> Iterator[str]:
    with prefix_proxy(digits_server.url) as url:
        yield url


@pytest.fixture(scope="module")
def locked() -> Iterator[RunningServer]:
    """Run a server that requires an API key."""
    with serve(api_servers=1, api_keys=_KEY) as server:
        yield server


@pytest.fixture
def page(browser: Page, digits_server: RunningServer) -> Iterator[Page]:
    """Open the page on a desktop screen; at the end the console has no errors."""
    show_as(browser.driver, "light", 1180, 900)
    browser.open(digits_server.url + "/")
    yield browser
    assert browser.complaints() == []


def test_a_chosen_image_is_classified(page: Page) -> None:
    """The result has labelled bars, its source, and the time of each stage."""
    page.js("document.getElementById('fresh').click()")
    page.choose(_SEVEN)
    page.wait_for("digit-7.png: 7, 9")
    assert page.texts("#answer .label")[0] == "7"
    assert len(page.texts("#answer .value")) == 5
    assert page.texts("#answer .value")[0].endswith(" %")
    assert page.text("#answer .badge") == "Computed in a batch of 1"
    assert page.texts("#answer .times dt") == ["Network", "Queue", "Inference", "Other", "Total"]
    assert all(time.endswith("ms") for time in page.texts("#answer .times dd"))
    assert page.js("return document.querySelector('#answer img').naturalWidth") > 0


def test_a_repeated_image_comes_from_the_cache(page: Page) -> None:
    """The page shows the cache as source, and the chosen number of classes."""
    page.js("document.getElementById('top-k').value = 2")
    page.choose(_THREE)
    page.wait_for("digit-3.png: 3")
    wait_until(lambda: _is_hit_after_another_try(page))
    assert page.count("#answer .bars li") == 2


def _is_hit_after_another_try(page: Page) -> bool:
    page.js("document.getElementById('status').textContent = ''")
    page.choose(_THREE)
    page.wait_for("digit-3.png: 3")
    return page.text("#answer .badge") == "From cache"


def test_a_dropped_image_is_classified(page: Page) -> None:
    """The browser drops the file, as from a file manager, anywhere on the page."""
    drag = {"items": [], "files": [str(_SEVEN)], "dragOperationsMask": 1}
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
        base64.b64encode(_SEVEN.read_bytes()).decode(),
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
    page.choose(_SEVEN, wrong, *[_THREE] * 10)
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
        shutil.copy(_SEVEN, tmp_path / name)
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


def test_live_metrics(page: Page, digits_server: RunningServer) -> None:
    """The open panel shows figures from the server's metrics."""
    page.find("#live summary").click()
    wait_until(lambda: page.texts("#figures dd")[0].endswith(".0"))  # from now on, there is something to compare with
    assert digits_server.predict(_SEVEN.read_bytes(), headers={"cache-control": "no-cache"}).status_code == 200
    wait_until(lambda: page.texts("#figures dd")[2].endswith("ms"))
    assert page.texts("#figures dt")[:4] == ["Requests/s", "p50", "p99", "Cache hits"]
    assert page.texts("#sizes li")[0].startswith("1")


def test_figures_of_a_gpu(page: Page) -> None:
    """The panel shows GPU memory and the cache hit ratio if the server reports them."""
    found = page.driver.execute_async_script(
        """const done = arguments[0];
        Promise.all(["live", "prometheus"].map((name) => import(new URL(`page/${name}.js`, document.baseURI)))).then(
          ([{ figuresOf }, { parse }]) => {
            const figures = (...texts) => figuresOf(texts.map((text, at) => ({ at: 2000 * at, samples: parse(text) })));
            const gpu = 'gpu_memory_used_bytes{device="0"} 3e9\\ngpu_memory_total_bytes{device="0"} 150754820096';
            const counts = (hits) => `cache_hits_total ${hits}\\ncache_misses_total 5\\ncache_coalesced_total 0`;
            done([figures(gpu, gpu)["GPU memory"], figures(gpu, gpu)["Cache hits"],
              figures(counts(0), counts(2))["Cache hits"], figures(counts(2), counts(2))["Cache hits"]]);
          })"""
    )
    assert found == ["2.8 GiB of 140 GiB", "off", "100.0 %", "–"]  # noqa: RUF001


def test_a_response_of_another_server(page: Page) -> None:
    """A login page with status 200 is not taken for a result."""
    page.js(
        """const open = XMLHttpRequest.prototype.open;
        XMLHttpRequest.prototype.open = function () { open.call(this, "GET", "."); };"""
    )
    page.choose(_SEVEN)
    page.wait_for("digit-7.png was not classified.")
    assert "did not come from this server" in page.text("#answer .error")


def test_quantiles_of_a_histogram(page: Page) -> None:
    """They equal those of `histogram_quantile`; after a restart counts start at 0."""
    found = page.driver.execute_async_script(
        """const done = arguments[0];
        import(new URL("page/prometheus.js", document.baseURI)).then((metrics) => {
          const text = 'h_bucket{a="x\\\\"}",le="1.0"} 10.0\\nh_bucket{le="2.0"} 30\\nh_bucket{le="+Inf"} 40';
          const all = metrics.buckets(metrics.parse("# HELP h h\\n" + text), "h");
          done([0.25, 0.5, 0.99].map((share) => metrics.quantile(all, share))
            .concat(metrics.quantile(metrics.difference(all, all), 0.5))
            .concat(metrics.difference(all, [[1, 50], [2, 50], [Infinity, 50]])[0][1])
            .concat(metrics.apart(all).map(([, count]) => count)));
        })"""
    )
    assert found == [1, 1.5, 2, None, 10, 10, 20, 10]


def test_a_slow_example_replaces_nothing_newer(page: Page) -> None:
    """An example that finishes loading after a newer choice is not classified."""
    page.js(_SLOW_EXAMPLES)
    page.find("#examples button").click()
    page.choose(_SEVEN)
    page.wait_for("digit-7.png: 7")
    page.driver.execute_async_script("window.release().then(arguments[0])")
    page.choose(_THREE)
    page.wait_for("digit-3.png: 3")
    said = " ".join(page.js("return window.said"))
    assert set(re.findall(r"digit-\d\.png", said)) == {"digit-7.png", "digit-3.png"}


def test_a_drawing_replaces_nothing_newer(page: Page) -> None:
    """If a file is chosen in the pause after a stroke, the file is classified."""
    page.js(_CHOOSE_AT_PEN_UP, base64.b64encode(_SEVEN.read_bytes()).decode())
    draw(page.driver, page.find("#pad"), [(0.5, 0.1), (0.5, 0.9)])
    wait_until(lambda: page.js("return window.isPauseOver === true"))
    page.wait_for("chosen.png: 7")


def test_an_example_that_is_not_served_is_not_classified(page: Page) -> None:
    """A proxy's page in place of an example is not classified."""
    page.js("window.fetch = async () => new Response('<html>', { status: 502 })")
    page.find("#examples button").click()
    page.wait_for("The example could not be loaded.")


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
        ([_SEVEN], "digit-7.png: 7"),
        ([_SEVEN, wrong], "1 failed"),
        ([wrong], "wrong.png was not"),
    ):
        page.choose(*files)
        page.wait_for(status)
        contrasts = page.js(_CONTRASTS)
        assert len(contrasts) > 20
        assert not [(text, ratio) for text, ratio in contrasts if ratio < 4.5]
    is_dark = page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 28)"
    assert is_dark is (scheme == "dark")


def test_a_narrow_phone(page: Page, tmp_path: Path) -> None:
    """Nothing is wider than the screen, and there is a camera button."""
    show_as(page.driver, "light", 360, 740, is_phone=True)
    long = tmp_path / f"{'long' * 30}.png"
    shutil.copy(_SEVEN, long)
    page.js("document.getElementById('live').open = true")
    for files, status in (([long], ": 7"), ([long, _THREE], "2 images of 2")):
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
        page.press(_TAB)
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
        *("pick", "top-k", "fresh"),
        *(f"A handwritten {digit}" for digit in (2, 3, 5, 7)),
        *("clear", "language", "copy", "call"),
    ]
    page.js("document.querySelector('#examples button').focus()")
    page.press(_ENTER)
    page.wait_for("digit-2.png: 2")
    page.js("document.querySelector('[name=language]').focus()")
    page.press(_RIGHT)
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


def test_below_a_path(page: Page, proxy: str) -> None:
    """The page works behind a proxy with a path prefix."""
    page.open(f"{proxy}{PREFIX}/")
    page.find("#examples button").click()
    page.wait_for("digit-2.png: 2")
    assert f"{proxy}{PREFIX}/predict?top_k=5" in page.text("#call")


@pytest.mark.parametrize("is_below", [True, False], ids=["below a path", "at the root"])
def test_the_docs_try_requests_out(page: Page, proxy: str, is_below: bool) -> None:
    """Swagger UI finds its files, the document and the endpoints behind any path prefix."""
    page.driver.get((f"{proxy}{PREFIX}" if is_below else page.driver.current_url.rstrip("/")) + "/docs")
    for selector in ('[data-path="/health"] a', ".try-out__btn", "button.execute"):
        wait_until(lambda selector=selector: page.count(selector) == 1)  # type: ignore[misc]
        page.js("document.querySelector(arguments[0]).click()", selector)
    wait_until(lambda: page.text(".live-responses-table .response .response-col_status").startswith("200"))
    assert '"status": "ok"' in page.text(".live-responses-table .response")


def test_within_a_frame(page: Page, proxy: str) -> None:
    """The page works in a sandboxed frame, as in a Space."""
    page.driver.get(f"{proxy}{FRAME_PATH}?{PREFIX}/")
    page.driver.switch_to.frame(0)
    wait_until(lambda: page.count("#examples button") > 0)
    page.find("#examples button").click()
    page.wait_for("digit-2.png: 2")
    page.driver.switch_to.default_content()


def test_other_sites_may_not_frame_it(page: Page, proxy: str, digits_server: RunningServer) -> None:
    """A page of another origin (here another port) can't frame it."""
    page.complaints()
    page.driver.get(f"{proxy}{FRAME_PATH}?{digits_server.url}/")
    assert any("frame-ancestors" in message for message in page.complaints())


def test_nothing_comes_from_another_host(page: Page, digits_server: RunningServer) -> None:
    """Neither the page nor a result loads anything from another host."""
    page.choose(_SEVEN)
    page.wait_for("digit-7.png: 7")
    urls = page.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(urls) > 10
    assert {url.startswith((digits_server.url + "/", f"blob:{digits_server.url}/")) for url in urls} == {True}


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("document.body.innerHTML = '<p>x</p>'", id="HTML from a string"),
        pytest.param(
            "document.head.append(Object.assign(document.createElement('script'), {text: 'x=1'}))", id="script"
        ),
        pytest.param("document.body.setAttribute('style', 'color: red')", id="style"),
        pytest.param("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:1/x'}))", id="image"),
    ],
)
def test_the_policy_refuses(page: Page, attack: str) -> None:
    """The Content-Security-Policy blocks what an injected script would need."""
    page.js(f"try {{ {attack} }} catch {{ }}")
    seen: list[str] = []

    def is_refused() -> bool:
        seen.extend(page.complaints())
        return any("Content Security Policy" in message or "Trusted" in message for message in seen)

    wait_until(is_refused)


def test_files_are_revalidated(digits_server: RunningServer) -> None:
    """An unchanged file gets a 304, so that a page never mixes scripts of two versions."""
    first = digits_server.get("/page/page.js")
    headers = {"if-none-match": first.headers["etag"]}
    again = httpx.get(digits_server.url + "/page/page.js", headers=headers, timeout=30)
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    missing = digits_server.get("/page/../settings.py")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert httpx.head(digits_server.url + "/", timeout=30).status_code == 200


def test_the_page_has_no_stray_files(tmp_path: Path) -> None:
    """Files that file managers and editors leave in the folder are neither served nor an error."""
    for name in ("index.html", "page.js", "page.js~", ".DS_Store", ".page.js.swp"):
        (tmp_path / name).write_text("content")
    assert set(read_files(tmp_path)) == {"index.html", "page.js"}


def test_the_page_requests_a_key(browser: Page, locked: RunningServer) -> None:
    """The page requests a key until it is valid, and never shows it."""
    browser.driver.get(locked.url + "/")
    wait_until(lambda: browser.js("return document.getElementById('key-dialog').open"))
    browser.press("wrong-key", _ENTER)
    wait_until(lambda: browser.text("#key-reason") == "Invalid API key.")
    browser.press(_KEY, _ENTER)
    wait_until(lambda: browser.text("#model").startswith("digits"))
    browser.choose(_SEVEN)
    browser.wait_for("digit-7.png: 7")
    assert "X-API-Key: $VIT_API_KEY" in browser.text("#call")
    assert _KEY not in browser.text("html")


def test_a_key_is_kept_for_the_tab(browser: Page, locked: RunningServer) -> None:
    """A key that is stored for the tab is used without a prompt."""
    browser.driver.get(locked.url + "/page/icon.svg")
    browser.js("sessionStorage.setItem('vit-api-key', arguments[0])", _KEY)
    browser.open(locked.url + "/")
    assert browser.text("#model").startswith("digits")


def test_without_a_key_the_page_says_so(browser: Page, locked: RunningServer) -> None:
    """The result and the live metrics say that a key is required."""
    _open_without_a_key(browser, locked)
    browser.find("#key-cancel").click()
    browser.wait_for("An API key is required.")
    browser.find("#live summary").click()
    wait_until(lambda: browser.text("#live-state") == "Metrics require an API key.")


def test_a_key_that_no_header_can_carry_is_refused(browser: Page, locked: RunningServer) -> None:
    """The dialog says why and stores nothing; the next key is used."""
    _open_without_a_key(browser, locked)
    browser.press("schlüssel–€", _ENTER)  # noqa: RUF001
    wait_until(lambda: "ASCII" in browser.text("#key-reason"))
    assert browser.js("return sessionStorage.length") == 0
    browser.js("document.getElementById('key').select()")
    browser.press(_KEY, _ENTER)
    wait_until(lambda: browser.text("#model").startswith("digits"))


def test_a_stored_key_that_no_header_can_carry_is_dropped(browser: Page, locked: RunningServer) -> None:
    """The page requests another one."""
    _open_without_a_key(browser, locked, kept="schlüssel–€")  # noqa: RUF001


def test_a_late_401_does_not_discard_a_new_key(browser: Page, locked: RunningServer) -> None:
    """A 401 for an older key does not open the dialog again once a new key was entered."""
    browser.driver.get(locked.url + "/page/icon.svg")
    browser.js("sessionStorage.setItem('vit-api-key', arguments[0])", _KEY)
    browser.open(locked.url + "/")
    browser.driver.execute_async_script(
        """const [key, done] = arguments;
        sessionStorage.clear();
        Promise.all(["key", "server"].map((name) => import(new URL(`page/${name}.js`, document.baseURI)))).then(
          ([{ Key }, { Server }]) => {
            const untold = new Key();
            untold.request("At first");
            new Server(untold).get("info").then((answer) => (window.late = answer.status));
            document.getElementById("key").value = key;
            document.getElementById("key-form").requestSubmit();
            done();
          });""",
        _KEY,
    )
    wait_until(lambda: browser.js("return window.late ?? document.getElementById('key-dialog').open"))
    assert browser.js("return window.late") == 200


def test_a_key_that_is_given_late_completes_the_page(browser: Page, locked: RunningServer) -> None:
    """Once a key is entered, the page shows the model's name, its examples and the pad."""
    _open_without_a_key(browser, locked)
    browser.find("#key-cancel").click()
    browser.wait_for("An API key is required.")
    browser.choose(_SEVEN)
    wait_until(lambda: browser.js("return document.getElementById('key-dialog').open"))
    browser.press(_KEY, _ENTER)
    browser.wait_for("digit-7.png: 7")
    wait_until(lambda: browser.text("#model").startswith("digits"))
    assert browser.js("return document.getElementById('pad').checkVisibility()")
    assert browser.js("return document.querySelector('#examples button').title") == "A handwritten 2"


def _open_without_a_key(browser: Page, locked: RunningServer, kept: str | None = None) -> None:
    """Open the page in a tab that has no key stored, or `kept`, and wait until it asks for one."""
    browser.driver.get(locked.url + "/page/icon.svg")
    browser.js("sessionStorage.clear(); if (arguments[0]) sessionStorage.setItem('vit-api-key', arguments[0])", kept)
    browser.driver.get(locked.url + "/")
    wait_until(lambda: browser.js("return document.getElementById('key-dialog').open"))
