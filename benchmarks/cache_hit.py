"""Throughput of cache hits, against minimal Python servers.

    python -m benchmarks.cache_hit

One HTTP process per server; wrk with one thread and 32 connections. For raw bodies there are two references, which
read, hash, look up and answer: an ASGI app on uvicorn, and the limit of what Python allows, a protocol on httptools and
uvloop without a framework. For forms, it is a FastAPI endpoint that hashes the upload. The machine's speed changes from
second to second, so all take turns, and only ratios of adjacent turns count.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import command_line, pictures, results, servers, tables, wrk
from vit_api.load import uploads

_CONNECTIONS = 32
_OURS, _UVICORN, _PROTOCOL, _FASTAPI = "this server", "bare uvicorn", "bare protocol", "FastAPI form"


@dataclass(frozen=True)
class Case:
    """An upload and how it is sent.

    Attributes:
        name: Its name in the table.
        body: The request's body.
        content_type: The request's Content-Type.
        references: The servers that this server is compared with.
        goal: The goal for the ratio to the first reference.
    """

    name: str
    body: bytes
    content_type: str
    references: tuple[str, ...]
    goal: float


def cases() -> list[Case]:
    """Return a 700-byte PNG and a 65 KB JPEG, each raw and as a form."""
    png, jpeg = pictures.small_png(), pictures.noisy_jpeg(65_000)
    raw, form = (_UVICORN, _PROTOCOL), (_FASTAPI,)
    return [
        Case("raw PNG", png, uploads.RAW, raw, 0.6),
        Case("raw JPEG", jpeg, uploads.RAW, raw, 0.85),
        Case("form PNG", uploads.as_form(png), uploads.FORM, form, 3.0),
        Case("form JPEG", uploads.as_form(jpeg), uploads.FORM, form, 2.0),
    ]


def measure(case: Case, of: Mapping[str, servers.Server], rounds: int, seconds: float) -> dict[str, Any]:
    """Load this server and the case's references in turns.

    Returns:
        Medians of the rates and of the CPU time per request, and of the ratios of adjacent turns.
    """
    names = (_OURS, *case.references)
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            turns[name].append(_load(of[name], case, seconds))
    rates = {name: [rate for rate, _ in pairs] for name, pairs in turns.items()}
    return {
        "case": case.name,
        "bytes": len(case.body),
        "servers": {
            name: {
                "requests_per_s": round(statistics.median(rates[name])),
                "cpu_us_per_request": round(statistics.median(cost for _, cost in pairs) * 1e6, 1),
            }
            for name, pairs in turns.items()
        },
        "ratios": {name: _ratio(rates[_OURS], rates[name]) for name in case.references},
        "goal": case.goal,
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(statistics.median(mine / their for mine, their in zip(ours, theirs, strict=True)), 3)


def _load(server: servers.Server, case: Case, seconds: float) -> tuple[float, float]:
    before = server.cpu_seconds()
    load = wrk.post(server.url + "/predict", case.body, case.content_type, connections=_CONNECTIONS, seconds=seconds)
    load.check(f"{case.name} at {server.url}")
    return load.rate, (server.cpu_seconds() - before) / load.requests


@contextlib.contextmanager
def _servers() -> Iterator[dict[str, servers.Server]]:
    with contextlib.ExitStack() as stack:
        bare_protocol = servers.module("benchmarks.baselines.bare_protocol", "/")
        yield {
            _OURS: stack.enter_context(servers.vit_api(api_servers=1)),
            _UVICORN: stack.enter_context(servers.uvicorn("benchmarks.baselines.bare_asgi:app", "/")),
            _PROTOCOL: stack.enter_context(bare_protocol),
            _FASTAPI: stack.enter_context(servers.uvicorn("benchmarks.baselines.fastapi_upload:app", "/openapi.json")),
        }


def run(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Measure every case; return one result per case."""
    measured = []
    with _servers() as running:
        for case in cases():
            measured.append(measure(case, running, rounds, seconds))
            print(_row(measured[-1]), flush=True)
    return measured


def _row(result: dict[str, Any]) -> str:
    figures = (
        f"{name} {row['requests_per_s']:,}/s, {row['cpu_us_per_request']:.1f} us of CPU"
        for name, row in result["servers"].items()
    )
    ratios = ", ".join(f"{ratio:.2f} of {name}" for name, ratio in result["ratios"].items())
    return f"{result['case']:10} {'; '.join(figures)}: {ratios}, goal {result['goal']}"


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per case and reference."""
    head = ("upload", "hits/s", "CPU per request", "reference", "its hits/s", "its CPU", "ratio, median", "goal")
    return tables.markdown(head, (row for result in report["results"] for row in _table_rows(result)))


def _table_rows(result: dict[str, Any]) -> Iterator[tables.Row]:
    ours = _cells(result["servers"][_OURS])
    goals = [result["goal"], *("-" for _ in result["ratios"])]
    for (name, ratio), goal in zip(result["ratios"].items(), goals, strict=False):
        what = f"{result['case']}, {result['bytes']:,} bytes"
        yield what, *ours, name, *_cells(result["servers"][name]), ratio, goal


def _cells(figures: dict[str, Any]) -> tuple[str, str]:
    return f"{figures['requests_per_s']:,}", f"{figures['cpu_us_per_request']:.0f} us"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("cache_hit", __doc__)
    command_line.add_turns(parser, rounds=31, seconds=1)
    options = command_line.parse(parser, arguments)
    wrk.require()
    measured = run(options.rounds, options.seconds)
    results.write(options.out, {"rounds": options.rounds, "seconds": options.seconds, "results": measured})


if __name__ == "__main__":
    main()
