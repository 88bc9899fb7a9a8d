"""The live metrics of the page."""

from __future__ import annotations

from tests.support.page import SEVEN, Page, needs_browser
from tests.support.server import RunningServer, wait_until

pytestmark = needs_browser


def test_live_metrics(page: Page, digits_server: RunningServer) -> None:
    """The open panel shows figures from the server's metrics."""
    page.find("#live summary").click()
    wait_until(lambda: page.texts("#figures dd")[0].endswith(".0"))  # from now on, there is something to compare with
    assert digits_server.predict(SEVEN.read_bytes(), headers={"cache-control": "no-cache"}).status_code == 200
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
