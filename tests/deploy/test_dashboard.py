"""The queries of the Grafana dashboard, asked of a real Prometheus that scrapes a real server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from scripts import dashboard_picture
from scripts.dashboard_picture import Series

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Debian's package prometheus")

_LOAD_S = 8.0
_PROTOCOLS = {"/", "/predict", "/predict/batch", "/v1/embeddings", "/v1/moderations", "/v2/models/infer"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Series]]]:
    """Return the series of each panel, after a short load on every protocol."""
    with dashboard_picture.watched_server(tmp_path_factory.mktemp("prometheus")) as (url, prometheus):
        dashboard_picture.load(url, _LOAD_S)
        end = time.time()
        yield {
            panel["title"]: dashboard_picture.read(prometheus, panel, end - _LOAD_S, end)
            for panel in dashboard_picture.panels()
        }


def test_every_panel_has_data(found: dict[str, list[Series]]) -> None:
    """Without a GPU, only those of GPUs are empty."""
    assert {title for title, series in found.items() if not series} == {
        "GPU utilisation",
        "GPU memory",
        "Energy per image",
    }


def test_every_endpoint_and_protocol_has_its_latency(found: dict[str, list[Series]]) -> None:
    """And requests of low urgency have their own."""
    names = {series.name for series in found["p99 by endpoint"]}
    assert names == _PROTOCOLS | {"/predict, low urgency"}


def test_versions_and_tiers_are_side_by_side(found: dict[str, list[Series]]) -> None:
    """Both versions have clients; each tier of the cache has a line, but Redis, which this server does not use."""
    assert {series.name for series in found["p95 by version"]} >= {"digits 1", "digits 2"}
    tiers = {series.name for series in found["Cache by tier"]}
    assert tiers == {"own cache", "shared memory", "coalesced", "misses"}
    assert {series.name for series in found["Saturation"]} == {
        "queue slots taken",
        "workers busy",
        "file descriptors, fullest process",
    }


def test_the_picture_is_drawn(found: dict[str, list[Series]], tmp_path: Path) -> None:
    """With a panel that has no data, too; the picture in the docs is one of all panels."""
    panels = [(panel, found[panel["title"]]) for panel in dashboard_picture.panels()]
    dashboard_picture.draw(panels, tmp_path / "dashboard.png")
    with Image.open(tmp_path / "dashboard.png") as drawn, Image.open(dashboard_picture.PICTURE) as shown:
        assert drawn.width == shown.width
        assert len(drawn.convert("RGB").getcolors(2**20) or ()) > 10
