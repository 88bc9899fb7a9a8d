"""The page's "Send 64 at once": the batches that it draws are those that the server ran."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.support.page import Page, needs_browser
from tests.support.server import RunningServer, serve

pytestmark = needs_browser


def _batches(server: RunningServer) -> tuple[int, int]:
    """Return the number of batches that ran, and of the images in them."""
    values = {
        sample.name: sample.value for family in parse_text(server.get("/metrics").text) for sample in family.samples
    }
    return int(values["inference_batch_size_count"]), int(values["inference_batch_size_sum"])


def _wait_for(page: Page, text: str) -> None:
    page.wait_until_text("#burst-status", text)


def test_the_batches_that_ran_are_drawn(page: Page, digits_server: RunningServer) -> None:
    """A row for each, with a square for each image; figures and a histogram of all images."""
    page.wait_for("digit-2.png: 2")
    batches, images = _batches(digits_server)
    page.find("#send-many").click()
    _wait_for(page, "64 of 64 images classified.")
    ran, ran_images = _batches(digits_server)
    assert ran_images - images == 64
    assert page.count("#batches li") == ran - batches < 64
    assert page.count("#batches .squares span.own") == page.count("#batches .squares span") == 64
    sizes = [int(text.removeprefix("Batch of ")) for text in page.texts("#batches .label")]
    assert sum(sizes) == 64
    assert page.texts("#burst-figures dt") == ["Images/s", "Mean batch", "p50", "p95"]
    images_per_s, mean_size, *times = page.texts("#burst-figures dd")
    assert float(images_per_s) > 0
    assert float(mean_size) == pytest.approx(64 / len(sizes), abs=0.06)
    assert all(text.endswith(" ms") or text.endswith(" s") for text in times)
    assert sum(int(text) for text in page.texts("#latencies .value")) == 64


def test_images_that_fail_are_counted(browser: Page) -> None:
    """A queue that is too short refuses some; the page says how many were classified, and why others were not."""
    with serve(api_servers=1, queue_size=4) as server:
        browser.open(server.url + "/")
        browser.wait_for("digit-2.png: 2")
        browser.find("#send-many").click()
        _wait_for(browser, " of 64 images classified. ")
        classified = int(browser.text("#burst-status").partition(" ")[0])
        assert 0 < classified < 64
        assert browser.count("#batches .own") == classified
        assert "full" in browser.text("#burst-status") or "overloaded" in browser.text("#burst-status").lower()
    browser.complaints()


def test_a_server_that_is_gone(page: Page) -> None:
    """The page says so, draws nothing, and the button works again afterwards."""
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/predict/batch*"]})
    page.find("#send-many").click()
    _wait_for(page, "0 of 64 images classified. The server could not be reached")
    assert page.count("#batches li") == 0
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    page.complaints()
    page.find("#send-many").click()
    _wait_for(page, "64 of 64 images classified.")


def test_images_are_grouped_by_batch(page: Page) -> None:
    """By the time and size of the batch, also of those that have both in common; dashes are left out."""
    found = page.driver.execute_async_script(
        """import(new URL("page/timings.js", document.baseURI)).then((all) => {
          const { readTimings, toBatches, histogramOf, percentile } = all;
          const headers = { "x-queue-times-ms": "5.000, -, 1.000, 1.500, 6.000",
            "x-inference-times-ms": "2.000, -, 2.000, 2.000, 3.000", "x-batch-sizes": "2, -, 2, 2, 9" };
          const timings = readTimings((name) => headers[name] ?? null);
          arguments[0]([timings.length, readTimings(() => null).length,
            toBatches(timings).map(({ size, own, inferenceMs }) => [size, own, inferenceMs]),
            histogramOf([8, 8, 1, 0]).map(({ count }) => count), percentile([4, 1, 3, 2], 0.5)]);
        })"""
    )
    assert found == [4, 0, [[2, 2, 2], [2, 1, 2], [9, 1, 3]], [2, 0, 0, 0, 0, 0, 0, 2], 2]
