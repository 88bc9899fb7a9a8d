"""Draw the Grafana dashboard with figures of a real server: `python -m scripts.dashboard_picture [--seconds 90]`.

It runs a server with two versions of the embedded model and a mirror, a Prometheus that scrapes it, and a moderate load
on every protocol. Then it asks Prometheus the queries of deploy/grafana/vit-api.json and draws the panels where Grafana
would. Needs Debian's package prometheus.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import matplotlib as mpl
from PIL import Image

from benchmarks.harness import servers

mpl.use("Agg")  # no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "deploy" / "grafana" / "vit-api.json"
PICTURE = ROOT / "docs" / "dashboard.png"

_SCRAPE_S = 1
_RATE_INTERVAL_S = 10
_PAUSE_S = 0.03
_SESSIONS = 50
_SEVERAL = 12
_EXAMPLES = ROOT / "vit_api" / "web" / "page" / "static" / "examples"
_DIGITS = (2, 3, 5, 7)
_COLUMNS = 24  # of Grafana's grid
_COLUMN_IN, _ROW_IN = 0.62, 0.36
_COLOURS = 128
_DPI = 84
_MODELS = [
    {"name": "digits", "version": "1", "model": "digits", "traffic": 80},
    {"name": "digits", "version": "2", "model": "digits", "traffic": 20, "thresholds": {"7": 0.5, "*": 0.99}},
    {"name": "digits", "version": "3", "model": "digits", "mirror_traffic": 100},
]


class Series(NamedTuple):
    """A line of a panel: its legend, and times and values."""

    name: str
    times: list[float]
    values: list[float]


@contextlib.contextmanager
def watched_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Run a server and a Prometheus that scrapes it until the context ends; yield the addresses of both."""
    port, own_port = servers.free_port(), servers.free_port()
    url, own_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{own_port}"
    job = {"job_name": "vit-api", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    config = {
        "global": {"scrape_interval": f"{_SCRAPE_S}s", "scrape_timeout": f"{_SCRAPE_S}s"},
        "scrape_configs": [job],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command.append(f"--web.listen-address=127.0.0.1:{own_port}")
    settings = {"models": json.dumps(_MODELS), "host": "127.0.0.1", "port": port, "queue_size": 64, "cache_ttl_s": 20}
    program = [sys.executable, str(ROOT / "server.py")]
    environment = servers.environment_with(**settings)
    with (
        servers.running(program, url + "/health", environment=environment, log=folder / "server.log"),
        servers.running(command, own_url + "/-/ready", cwd=folder, log=folder / "prometheus.log"),
    ):
        yield url, own_url


def load(url: str, seconds: float, clients: int = 4) -> None:
    """Send requests of every protocol for so long: different and repeated images, and some that are none."""
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=_send, args=(url, until, number)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _send(url: str, until: float, number: int) -> None:
    with httpx.Client(base_url=url, timeout=30, **servers.PLAIN_HTTP) as client:
        for turn in itertools.count(1000 * number):
            if time.monotonic() > until:
                return
            client.headers["x-session-id"] = str(turn % _SESSIONS)
            with contextlib.suppress(httpx.TransportError):
                _post(client, turn)
            time.sleep(_PAUSE_S * (1 + 2 * (time.monotonic() % 40 > 20)))


def _picture(turn: int) -> bytes:
    """Return an example, often turned a little, so that it is not in the cache."""
    file = io.BytesIO()
    with Image.open(_EXAMPLES / f"digit-{_DIGITS[turn % len(_DIGITS)]}.png") as image:
        image.convert("L").rotate((turn * 7.3) % 30 if turn % 3 else 0, fillcolor=255).save(file, "PNG")
    return file.getvalue()


def _post(client: httpx.Client, turn: int) -> None:
    """Send images by one of the protocols, or something that is no image."""
    body = _picture(turn)
    encoded = base64.b64encode(body).decode()
    data_url = f"data:image/png;base64,{encoded}"
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}
    match turn % 12:
        case 0:
            client.post("/predict/batch", files=[("files", _picture(turn + at)) for at in range(_SEVERAL)])
        case 1:
            client.post("/v1/embeddings", json={"input": data_url})
        case 2:
            client.post("/v1/moderations", json={"input": [{"type": "image_url", "image_url": {"url": data_url}}]})
        case 3:
            client.post("/v2/models/digits/infer", json={"inputs": [tensor]})
        case 4:
            client.post("/", content=body)
        case 5:
            client.post("/predict", content=b"no image")
        case 6:
            client.post("/predict", content=body, headers={"priority": "u=5"})
        case _:
            client.post("/predict", content=body)


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels."""
    return list(json.loads(DASHBOARD.read_text())["panels"])


def read(prometheus: str, panel: Mapping[str, Any], start: float, end: float) -> list[Series]:
    """Return the series of a panel, as Grafana would query them."""
    found = []
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", f"{_RATE_INTERVAL_S}s").replace("$instance", ".*")
        parameters = {"query": query, "start": start, "end": end, "step": _SCRAPE_S}
        response = httpx.get(f"{prometheus}/api/v1/query_range", params=parameters, timeout=30, **servers.PLAIN_HTTP)
        for series in response.raise_for_status().json()["data"]["result"]:
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            times, values = zip(*((at - end, float(value)) for at, value in series["values"]), strict=True)
            found.append(Series(name, list(times), list(values)))
    return found


def _shown(unit: str) -> FuncFormatter:
    def write(value: float, _: object = None) -> str:
        if unit == "percentunit":
            return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"
        if unit == "s":
            return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"
        if unit == "bytes":
            return f"{value / 2**20:,.0f} MiB"
        return f"{value:,.3g}"

    return FuncFormatter(write)


def draw(found: Sequence[tuple[Mapping[str, Any], Sequence[Series]]], file: Path) -> None:
    """Draw panels with their series where Grafana would, and save them as a PNG."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in found)
    figure = plt.figure(figsize=(_COLUMNS * _COLUMN_IN, rows * _ROW_IN), facecolor="#f4f5f5")
    for panel, series in found:
        place = panel["gridPos"]
        # Room for the title, the ticks and the legend within the panel's cells.
        left, bottom = place["x"] + 0.9, rows - place["y"] - place["h"] + (1.9 if place["h"] > 4 else 0.3)
        width, height = place["w"] - 1.2, place["h"] - (3.1 if place["h"] > 4 else 1.4)
        corner = (place["x"] / _COLUMNS + 0.002, 1 - (place["y"] + place["h"]) / rows + 0.001)
        size = (place["w"] / _COLUMNS - 0.004, place["h"] / rows - 0.002)
        figure.add_artist(Rectangle(corner, *size, facecolor="white", edgecolor="#d8d9da", zorder=-1))
        axes = figure.add_axes((left / _COLUMNS, bottom / rows, width / _COLUMNS, height / rows))
        (_draw_number if panel["type"] == "stat" else _draw_lines)(axes, panel, series)
        axes.set_title(panel["title"], fontsize=8.5, loc="left", fontweight="bold")
    content = io.BytesIO()
    figure.savefig(content, dpi=_DPI)
    plt.close(figure)
    with Image.open(content) as image:
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def _draw_number(axes: Axes, panel: Mapping[str, Any], series: Sequence[Series]) -> None:
    axes.set_axis_off()
    write = _shown(panel["fieldConfig"]["defaults"].get("unit", ""))
    text = write(series[0].values[-1]) if series else "No data"
    axes.text(0.5, 0.45, text, fontsize=22, ha="center", va="center", color="#1a7f4b", transform=axes.transAxes)


def _draw_lines(axes: Axes, panel: Mapping[str, Any], series: Sequence[Series]) -> None:
    axes.tick_params(labelsize=7)
    if not series:
        axes.text(0.5, 0.5, "No data", ha="center", va="center", color="#777", transform=axes.transAxes)
    for line in series:
        axes.plot(line.times, line.values, linewidth=1.1, label=line.name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(_shown(panel["fieldConfig"]["defaults"].get("unit", "")))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.grid(alpha=0.3)
    if series:
        axes.legend(
            fontsize=6,
            ncols=panel["gridPos"]["w"] * 3 // 8 + 1,
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.13),
            frameon=False,
            columnspacing=0.9,
        )


def has_data_here(panel: Mapping[str, Any]) -> bool:
    """Return whether a panel needs no GPU."""
    return not any("gpu_" in target["expr"] for target in panel["targets"])


def main() -> None:
    """Draw the dashboard."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="how long the load lasts (default: %(default)g)")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder, watched_server(Path(folder)) as (url, prometheus):
        load(url, seconds)
        end = time.time()
        found = [(panel, read(prometheus, panel, end - seconds, end)) for panel in panels() if has_data_here(panel)]
    draw(_moved_up(found), PICTURE)


def _moved_up(
    found: Sequence[tuple[dict[str, Any], Sequence[Series]]],
) -> list[tuple[dict[str, Any], Sequence[Series]]]:
    """Close the gap that a row of panels leaves that is not drawn."""
    rows = sorted({(panel["gridPos"]["y"], panel["gridPos"]["h"]) for panel, _ in found})
    tops, top = {}, 0
    for y, height in rows:
        tops[y], top = top, top + height
    return [
        (panel | {"gridPos": panel["gridPos"] | {"y": tops[panel["gridPos"]["y"]]}}, series) for panel, series in found
    ]


if __name__ == "__main__":
    main()
