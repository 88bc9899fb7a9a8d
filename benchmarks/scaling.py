"""How the server scales with the size of images and models and with the number of connections.

    python -m benchmarks.scaling

- A camera's JPEG of 4032 x 3024 pixels: scaled decoding against `VIT_API_EXACT_DECODE=1`.
- ViT-B/16 with random weights on the CPU: served, against the model only at its best batch size.
- 512 connections against 32: CPU time per request, and memory.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import command_line, pictures, results, servers, tables, wrk
from benchmarks.harness.checkpoints import save_vit_base
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.environment.cores import available_cores
from vit_api.lit_api import ViTAPI
from vit_api.load import uploads

_FEW, _MANY = 32, 512
_STALL_S = 3600
_GRAINS = {"detailed": 12, "smooth": 63}
_BATCH_SIZES = {"auto": (1, 8, 32), "float32": (1, 8)}


def _post(server: servers.Server, upload: bytes, connections: int, seconds: float) -> wrk.Load:
    url = server.url + "/predict"
    load = wrk.post(url, upload, uploads.RAW, connections=connections, seconds=seconds)
    load.check(url)
    return load


@contextlib.contextmanager
def _paused(settings: Sequence[dict[str, Any]]) -> Iterator[list[servers.Server]]:
    """Run one server per group of settings, all paused."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(servers.vit_api(**each, worker_stall_s=_STALL_S)) for each in settings]
        for server in running:
            server.pause()
        yield running


def camera(rounds: int, seconds: float) -> dict[str, Any]:
    """Compare scaled with exact decoding, for a detailed and a smooth image."""
    common = {"cache_size": 0, "cpu_threads": 1}
    with _paused([common, common | {"exact_decode": True}]) as running:
        uploads = {name: pictures.camera_jpeg(grain) for name, grain in _GRAINS.items()}
        return {name: _camera(running, upload, rounds, seconds) for name, upload in uploads.items()}


def _camera(running: Sequence[servers.Server], upload: bytes, rounds: int, seconds: float) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"draft": [], "exact": []}
    for _ in range(rounds):
        for server, of_server in zip(running, rates.values(), strict=True):
            with server.turn():
                of_server.append(_post(server, upload, 8, seconds).rate)
    ratios = [draft / exact for draft, exact in zip(rates["draft"], rates["exact"], strict=True)]
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    return {"bytes": len(upload), "requests_per_s": medians, "ratio": round(statistics.median(ratios), 2)}


def connections(rounds: int, seconds: float) -> dict[str, Any]:
    """Compare the CPU time per request with many connections and with few, in turns."""
    upload = pictures.small_png()
    costs: dict[int, list[float]] = {_FEW: [], _MANY: []}
    memory = []
    with servers.vit_api(cache_size=0, cpu_threads=1) as server:
        _post(server, upload, _MANY, seconds)
        for _ in range(rounds):
            for count, results in costs.items():
                before = server.cpu_seconds()
                load = _post(server, upload, count, seconds)
                results.append((server.cpu_seconds() - before) / load.requests * 1e6)
            memory.append(server.resident_bytes() / 2**20)
    ratios = [many / few for few, many in zip(*costs.values(), strict=True)]
    return {
        "cpu_us_per_request": {str(count): round(statistics.median(values)) for count, values in costs.items()},
        "ratio": round(statistics.median(ratios), 3),
        "memory_mb": {"first": round(memory[0]), "last": round(memory[-1])},
    }


def vit_base(rounds: int, seconds: float) -> dict[str, Any]:
    """Compare ViT-B/16 served and the model only, in turns, and the dtypes of the model only."""
    upload = pictures.noisy_jpeg(65_000)
    served, alone = [], []
    with tempfile.TemporaryDirectory() as name:
        save_vit_base(Path(name))
        models = {dtype: _model(name, dtype) for dtype in _BATCH_SIZES}
        pixels = models["auto"].decode_request(upload)
        rates = {
            dtype: {size: _images_per_s(api, pixels, size, seconds / 4) for size in _BATCH_SIZES[dtype]}
            for dtype, api in models.items()
        }
        best = max(rates["auto"], key=lambda size: rates["auto"][size])
        settings = {"model": name, "cache_size": 0, "request_timeout_s": 300, "max_batch_size": best}
        with _paused([settings]) as (server,):
            for _ in range(rounds):
                alone.append(_images_per_s(models["auto"], pixels, best, seconds))
                with server.turn():
                    served.append(_post(server, upload, 4 * best, seconds).rate)
    best_float32 = max(rates["float32"].values())
    return {
        "dtype": str(models["auto"].model.dtype).removeprefix("torch.") if models["auto"].model else "",
        "alone_per_s": {dtype: {str(size): round(r, 2) for size, r in row.items()} for dtype, row in rates.items()},
        "auto_over_float32": round(max(rates["auto"].values()) / best_float32, 2),
        "best_batch_size": best,
        "served_per_s": round(statistics.median(served), 2),
        "served_over_alone": round(statistics.median(s / a for s, a in zip(served, alone, strict=True)), 3),
    }


def _model(folder: str, dtype: str) -> ViTAPI:
    api = ViTAPI(load_checkpoint(folder), dtype=dtype, cpu_threads=available_cores(), max_batch_size=1)
    api.setup("cpu")
    return api


def _images_per_s(api: ViTAPI, pixels: Any, size: int, seconds: float) -> float:
    api.unbatch(api.predict(api.batch([pixels] * size)))
    start, images = time.monotonic(), 0
    while (elapsed_s := time.monotonic() - start) < seconds:
        api.unbatch(api.predict(api.batch([pixels] * size)))
        images += size
    return images / elapsed_s


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per comparison."""
    results = report["results"]
    rows = [
        *_camera_rows(results["camera"]),
        *_connection_rows(results["connections"]),
        *_vit_rows(results["vit_base"]),
    ]
    return tables.markdown(("what", "first", "second", "ratio"), rows)


def _camera_rows(result: dict[str, Any]) -> Iterator[tables.Row]:
    for name, camera in result.items():
        rates = camera["requests_per_s"]
        what = f"4032 x 3024 JPEG, {name}, {camera['bytes'] / 1e6:.1f} MB: scaled while decoded / exact"
        yield what, f"{rates['draft']}/s", f"{rates['exact']}/s", camera["ratio"]


def _connection_rows(result: dict[str, Any]) -> Iterator[tables.Row]:
    costs, memory = result["cpu_us_per_request"], result["memory_mb"]
    few, many = costs
    yield f"CPU per request: {many} / {few} connections", f"{costs[many]} us", f"{costs[few]} us", result["ratio"]
    grown = round(memory["last"] / memory["first"], 3)
    yield "resident memory: after the last / the first round", f"{memory['last']} MiB", f"{memory['first']} MiB", grown


def _vit_rows(result: dict[str, Any]) -> Iterator[tables.Row]:
    what = f"ViT-B/16, {result['dtype']}, batches of {result['best_batch_size']}: served / model only"
    yield what, f"{result['served_per_s']}/s", "in turns", result["served_over_alone"]
    best = [f"{max(result['alone_per_s'][name].values())}/s" for name in ("auto", "float32")]
    what = f"ViT-B/16, model only: {result['dtype']} / float32, each at its best batch size"
    yield what, *best, result["auto_over_float32"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("scaling", __doc__)
    command_line.add_turns(parser, rounds=5, seconds=3, note="; eight times as long for ViT-B/16")
    parser.add_argument("--only", choices=("camera", "connections", "vit_base"))
    options = command_line.parse(parser, arguments)
    wrk.require()
    measured: dict[str, Any] = {}
    for name, measure, seconds in (
        ("camera", camera, options.seconds),
        ("connections", connections, options.seconds),
        ("vit_base", vit_base, 8 * options.seconds),
    ):
        if options.only in (None, name):
            measured[name] = measure(options.rounds, seconds)
            print(name, json.dumps(measured[name]), flush=True)
    results.write(options.out, {"results": measured})


if __name__ == "__main__":
    main()
