"""An int8 copy of a model beside the model itself in this server's default dtype, served over HTTP.

    python -m benchmarks.quantized
    python -m benchmarks.quantized --checkpoint out/checkpoint --int8 out-int8

Both servers have this machine's default settings but for the cache and the largest batch, and take turns under the same
load: JPEGs of 500 x 375 from wrk, each a unique one. Client and server share the cores. A ViT-B/16 with random weights
is always measured; its int8 copy is calibrated with a few crops of photos and not judged, since random classes say
nothing about accuracy. `--checkpoint` adds a trained model, and the copy of it that `quantize` made. Needs
.venv-openvino (`make openvino`).
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.compare_parts.subjects import Load
from benchmarks.engine_parts.environment import crops, require_packages
from benchmarks.harness import checkpoints, command_line, machine, pictures, results, servers, tables, wrk
from vit_api.load import uploads

DEFAULT, INT8 = "default", "int8"
_SERVERS: dict[str, dict[str, Any]] = {DEFAULT: {}, INT8: {"dtype": "int8", "allow_unverified_int8": True}}
_CONNECTIONS = (1, 8)
_COMMON = {"cache_size": 0, "worker_stall_s": 3600, "device": "cpu", "max_batch_size": _CONNECTIONS[-1]}
"""No batch has more images than there are connections; larger ones would only be warmed up."""
_WARM_UP_S = 1.0
_CALIBRATION, _JUDGED = 16, 16
_BATCHES, _IMAGES = "inference_batch_size_count", "inference_batch_size_sum"

Figures = dict[str, Any]


@dataclass(frozen=True)
class _Turn:
    """One server's turn.

    Attributes:
        load: The client's figures and the server's CPU time.
        mean_batch: Images in a batch on average.
    """

    load: Load
    mean_batch: float


def measure(served: dict[str, str], connections: Sequence[int], rounds: int, seconds: float) -> list[Figures]:
    """Return the figures for each number of connections.

    Args:
        served: The checkpoint that each server has, by the server's name.
        connections: Numbers of connections to try.
        rounds: Turns of each server.
        seconds: Length of a turn.
    """
    upload = wrk.marked(pictures.noisy_jpeg(65_000))
    found = []
    with _running(served) as running:
        described = {name: _describe(server) for name, server in running.items()}
        for count in connections:
            turns: dict[str, list[_Turn]] = {name: [] for name in running}
            for number in range(rounds):
                for name, server in list(running.items())[:: 1 if number % 2 else -1]:
                    turns[name].append(_turn(server, upload, count, seconds))
            rows = {name: described[name] | _figures(taken, turns[DEFAULT]) for name, taken in turns.items()}
            found.append({"connections": count, "servers": rows})
            print(json.dumps(found[-1]), flush=True)
    return found


@contextlib.contextmanager
def _running(served: dict[str, str]) -> Iterator[dict[str, servers.Server]]:
    """Run a server for each checkpoint, all paused."""
    with contextlib.ExitStack() as stack:
        running = {}
        for name, model in served.items():
            running[name] = stack.enter_context(servers.vit_api(model=model, **_COMMON, **_SERVERS[name]))
            running[name].pause()
        yield running


def _describe(server: servers.Server) -> Figures:
    with server.turn():
        (worker,) = httpx.get(server.url + "/info", **servers.PLAIN_HTTP).json()["workers"]
    return {name: worker[name] for name in ("dtype", "engine")}


def _turn(server: servers.Server, upload: bytes, connections: int, seconds: float) -> _Turn:
    url = server.url + "/predict"
    with server.turn():
        wrk.post(url, upload, uploads.RAW, connections=connections, seconds=_WARM_UP_S)
        server.settle()
        batches, images, cpu_s = _total(server, _BATCHES), _total(server, _IMAGES), server.cpu_seconds()
        load = wrk.post(url, upload, uploads.RAW, connections=connections, seconds=seconds)
        cpu_s = server.cpu_seconds() - cpu_s
        load.check(url)
        mean_batch = (_total(server, _IMAGES) - images) / (_total(server, _BATCHES) - batches)
    return _Turn(Load(load, cpu_s), mean_batch)


def _total(server: servers.Server, name: str) -> float:
    """Return the sum of a metric over all labels."""
    page = httpx.get(server.url + "/metrics", **servers.PLAIN_HTTP).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


def _figures(turns: Sequence[_Turn], defaults: Sequence[_Turn]) -> Figures:
    """Return the medians of one server's turns, and of the ratios to the default's turns beside them."""
    loads = [turn.load for turn in turns]
    ratios = [a.load.load.rate / b.load.load.rate for a, b in zip(turns, defaults, strict=True)]
    return {
        "images_per_s": round(statistics.median(one.load.rate for one in loads), 2),
        "ratio": round(statistics.median(ratios), 2),
        "p50_ms": round(statistics.median(one.load.p50_ms for one in loads), 1),
        "p99_ms": round(statistics.median(one.load.p99_ms for one in loads), 1),
        "cpu_ms_per_image": round(statistics.median((one.cpu_us or 0) / 1000 for one in loads), 1),
        "mean_batch": round(statistics.median(turn.mean_batch for turn in turns), 1),
    }


def save_int8_copy(checkpoint: str, out: Path) -> None:
    """Write an int8 copy of a checkpoint that is calibrated with crops of photos; its verdict is "failed"."""
    from vit_api.checkpoints.checkpoint import load_checkpoint
    from vit_api.quantization.gate import MIN_IMAGES
    from vit_api.quantization.quantizer import Quantizer

    made = crops(_CALIBRATION + _JUDGED)
    calibration, judged = made[:_CALIBRATION], made[_CALIBRATION:]
    Quantizer(load_checkpoint(checkpoint), calibration, lambda: iter(judged), MIN_IMAGES, may_leave_out=False).run(out)


def table(report: Figures) -> str:
    """Return the table of a result: one line per model, number of connections and server."""
    head = ("model", "connections", "dtype", "engine", "images/s", "ratio", "p50 (ms)", "p99 (ms)")
    keys = ("dtype", "engine", "images_per_s", "ratio", "p50_ms", "p99_ms", "cpu_ms_per_image", "mean_batch")
    rows = [
        (model, measured["connections"], *(row[key] for key in keys))
        for model, found in report["results"].items()
        for measured in found
        for row in measured["servers"].values()
    ]
    return tables.markdown((*head, "CPU ms an image", "mean batch"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("quantized", __doc__)
    command_line.add_turns(parser, rounds=5, seconds=5)
    parser.add_argument("--connections", type=int, nargs="+", default=_CONNECTIONS, choices=range(1, 9))
    parser.add_argument("--checkpoint", type=Path, help="a trained checkpoint to serve as well")
    parser.add_argument("--int8", type=Path, help="its int8 copy, which `quantize` made")
    options = command_line.parse(parser, arguments)
    if (options.checkpoint is None) != (options.int8 is None):
        parser.error("--checkpoint and --int8 belong together")
    wrk.require()
    require_packages("quantized", arguments)
    found = {}
    described = machine.describe()
    with tempfile.TemporaryDirectory() as name:
        original, copy = Path(name) / "ViT-B-16", Path(name) / "ViT-B-16-int8"
        checkpoints.save_vit_base(original)
        save_int8_copy(str(original), copy)
        served = {"ViT-B/16, random": {DEFAULT: str(original), INT8: str(copy)}}
        if options.checkpoint:
            trained = {DEFAULT: str(options.checkpoint), INT8: str(options.int8)}
            served[f"{options.checkpoint.resolve().parent.name}, trained"] = trained
        for model, folders in served.items():
            found[model] = measure(folders, options.connections, options.rounds, options.seconds)
            turns = {"rounds": options.rounds, "seconds": options.seconds, "upload": "65 KB JPEG, 500 x 375"}
            results.write(options.out, turns | {"results": found}, described)


if __name__ == "__main__":
    main()
