"""This server against others with the same LitAPI and checkpoint, on one machine and in one run.

    python -m benchmarks.compare

The others are stock LitServe, a FastAPI endpoint without batching, and no server at all: one process per core that only
decodes and runs full batches, which is the upper limit. The machine's speed changes from second to second, so all take
turns, and only the ratio of neighbours counts. Caches are off. The client is wrk if installed, else the bundled one.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import client, client_processes, command_line, pictures, results, servers, summary, tables, wrk
from benchmarks.harness.no_server import NoServer

_OURS, _STOCK, _UNBATCHED, _LIMIT = "this server", "stock LitServe", "FastAPI, no batching", "no server"
_CONNECTIONS = (1, 32, 128)
_WARM_UP_S = 1.0
_STALL_S = 3600
"""Longer than any pause, during which a worker makes no progress."""
_MAX_BATCH_SIZE = 32
_MAX_WAIT_MS = 5


@dataclass(frozen=True)
class Subject:
    """A server under comparison, and how it takes uploads."""

    name: str
    server: servers.Server
    is_form: bool = False

    def load(self, upload: bytes, connections: int, seconds: float) -> wrk.Load:
        """Load it while all others are paused.

        Raises:
            RuntimeError: A request failed.
        """
        post = _post_with_wrk if wrk.is_installed() else _post_with_bundled
        with self.server.turn():
            post(self, upload, connections, _WARM_UP_S)
            self.server.settle()
            result = post(self, upload, connections, seconds)
        result.check(self.name)
        return result


def _post_with_wrk(subject: Subject, upload: bytes, connections: int, seconds: float) -> wrk.Load:
    body, content_type = (wrk.as_form(upload), wrk.FORM) if subject.is_form else (upload, wrk.RAW)
    return wrk.post(subject.server.url + "/predict", body, content_type, connections=connections, seconds=seconds)


def _post_with_bundled(subject: Subject, upload: bytes, connections: int, seconds: float) -> wrk.Load:
    plan = client.Plan(
        subject.server.url + "/predict",
        (upload,),
        concurrency=connections,
        warm_up_s=0,
        seconds=seconds,
        is_form=subject.is_form,
    )
    result = summary.summarise(client_processes.run(plan), seconds)
    latency = result["latency_ms"]
    failures = sum(result["errors"].values())
    return wrk.Load(result["requests"], seconds, failures, latency.get("p50", 0.0), latency.get("p99", 0.0))


@contextlib.contextmanager
def subjects(model: str, dtype: str) -> Iterator[list[Subject]]:
    """Run the servers under comparison, all paused."""
    settings = {"cache_size": 0, "max_batch_size": _MAX_BATCH_SIZE, "max_wait_ms": _MAX_WAIT_MS, "cpu_threads": 1}
    settings["worker_stall_s"] = _STALL_S
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(servers.vit_api(model=model, dtype=dtype, **settings))
        stock = stack.enter_context(servers.baseline("stock_litserve", "/health", model, dtype=dtype))
        unbatched = stack.enter_context(servers.baseline("fastapi_unbatched", "/", model, dtype=dtype))
        for server in (ours, stock, unbatched):
            server.pause()
        yield [Subject(_OURS, ours), Subject(_STOCK, stock, is_form=True), Subject(_UNBATCHED, unbatched)]


def measure(
    subjects: Sequence[Subject], limit: NoServer, upload: bytes, connections: int, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Load all in turns; return medians, and the medians of the ratios of neighbours."""
    loads: dict[str, list[wrk.Load]] = {subject.name: [] for subject in subjects}
    limits = []
    for number in range(rounds):
        first = number % len(subjects)
        for subject in (*subjects[first:], *subjects[:first]):
            loads[subject.name].append(subject.load(upload, connections, seconds))
        limits.append(limit.images_per_s(upload, seconds))
    servers_ = {name: _medians(runs) for name, runs in loads.items()}
    return {"servers": servers_, "limit_per_s": round(statistics.median(limits)), "ratios": _ratios(loads, limits)}


def _medians(runs: Sequence[wrk.Load]) -> dict[str, float]:
    fields: dict[str, Callable[[wrk.Load], float]] = {
        "requests_per_s": lambda run: run.rate,
        "p50_ms": lambda run: run.p50_ms,
        "p99_ms": lambda run: run.p99_ms,
    }
    return {name: round(statistics.median(map(of, runs)), 2) for name, of in fields.items()}


def _ratios(loads: dict[str, list[wrk.Load]], limits: Sequence[float]) -> dict[str, float]:
    ours = loads[_OURS]
    ratios = {f"rate / {_LIMIT}": [run.rate / limit for run, limit in zip(ours, limits, strict=True)]}
    for name in (_STOCK, _UNBATCHED):
        pairs = list(zip(ours, loads[name], strict=True))
        ratios[f"rate / {name}"] = [mine.rate / theirs.rate for mine, theirs in pairs]
        ratios[f"p50 / {name}"] = [mine.p50_ms / theirs.p50_ms for mine, theirs in pairs]
    ratios["p99 / p50"] = [run.p99_ms / run.p50_ms for run in ours]
    return {name: round(statistics.median(values), 3) for name, values in ratios.items()}


def uploads() -> dict[str, bytes]:
    """Return the uploads by name."""
    return {"700-byte PNG": pictures.small_png(), "65 KB JPEG": pictures.noisy_jpeg(65_000)}


def run(model: str, dtype: str, rounds: int, seconds: float, connections: Sequence[int]) -> list[dict[str, Any]]:
    """Measure each upload at each number of connections."""
    results = []
    with subjects(model, dtype) as compared, NoServer.running(model, dtype) as limit:
        for name, upload in uploads().items():
            for count in connections:
                result = {"upload": name, "bytes": len(upload), "connections": count}
                results.append(result | measure(compared, limit, upload, count, rounds=rounds, seconds=seconds))
                print(_row(results[-1]), flush=True)
    return results


def _row(result: dict[str, Any]) -> str:
    rates = ", ".join(f"{name} {row['requests_per_s']:,.0f}/s" for name, row in result["servers"].items())
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items())
    return f"{result['upload']}, {result['connections']}: {rates}, {_LIMIT} {result['limit_per_s']:,}/s; {ratios}"


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per upload and number of connections."""
    names = list(report["results"][0]["servers"])
    ratio_names = ("of the limit", "over LitServe", "p50 / FastAPI's", "p99 / p50")
    rows = []
    for result in report["results"]:
        ratios = result["ratios"]
        cells = (result["servers"][name] for name in names)
        shown = [f"{cell['requests_per_s']:,.0f}/s, {cell['p50_ms']:.1f} ms" for cell in cells]
        chosen = (ratios[f"rate / {_LIMIT}"], ratios[f"rate / {_STOCK}"], ratios[f"p50 / {_UNBATCHED}"])
        row = (result["upload"], result["connections"], *shown, f"{result['limit_per_s']:,}/s")
        rows.append((*row, *(f"{value:.2f}" for value in (*chosen, ratios["p99 / p50"]))))
    return tables.markdown(("upload", "connections", *names, _LIMIT, *ratio_names), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("compare", __doc__)
    parser.add_argument("--model", default="digits", help="checkpoint of all (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="dtype of all (default: %(default)s)")
    command_line.add_turns(parser, rounds=9, seconds=2)
    parser.add_argument("--connections", type=int, nargs="+", default=_CONNECTIONS)
    options = command_line.parse(parser, arguments)
    measured = run(options.model, options.dtype, options.rounds, options.seconds, options.connections)
    report = {
        "client": "wrk -t1" if wrk.is_installed() else "bundled",
        "model": Path(options.model).name,
        "dtype": options.dtype,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "results": measured,
    }
    results.write(options.out, report)


if __name__ == "__main__":
    main()
