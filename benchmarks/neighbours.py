"""What a version that fails costs the version beside it: its p99 and CPU time, with and without the fault in turns.

    python -m benchmarks.neighbours

Version 1 of a model gets requests at a fixed rate, far below what the server can do. In every other turn version 2 is
at fault: its worker is killed, or it is a mirror whose worker is killed, sleeps 5 s in each batch, or raises. A turn
with a kill is as long as the shortest interval at which a worker may die without its version being given up. A mirror
that is killed computes in the other turns as well; the others get images only while they are at fault. One machine runs
it all, so what a starting worker takes is taken from version 1 and from the client, too. Before that, version 2 is
loaded and unloaded several times, for the memory that it leaves behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from benchmarks.baselines.faulty import RAISES, SLEEPS
from benchmarks.harness import command_line, machine, process_group, results, servers, tables
from benchmarks.harness.open_loop import Client, percentiles
from vit_api.load.uploads import FREE_BOX

_MODEL = "digits"
_OPERATOR = secrets.token_hex(16)
_KEY = {"authorization": f"Bearer {_OPERATOR}"}
_PER_S = 200.0
_SETTLE_S = 1.0
_BATCH = 32
_SETTINGS = {
    "model": "",  # the list has it
    "models": json.dumps([{"name": _MODEL, "version": "1", "model": _MODEL}]),
    "max_models": 2,
    "max_input_side": 32,
    "operator_key": _OPERATOR,
    "api_servers": 2,
    "cpu_threads": 1,
    "cache_size": 0,
}
_DRAWN = 400
_MOST_DEATHS_EVERY_S = 12.5
"""After more than five deaths in a minute, a version is given up: then nothing is restarted that could disturb."""


class _Case(NamedTuple):
    """A fault of version 2.

    Attributes:
        name: What it is.
        max_batch_size: That of version 2, which chooses what its model does.
        is_mirror: Whether version 2 gets the images of version 1 while it is at fault.
        is_killed: Whether its worker is killed.
    """

    name: str
    max_batch_size: int
    is_mirror: bool
    is_killed: bool

    def seconds(self, seconds: float) -> float:
        """Return the length of a turn."""
        return max(seconds, _MOST_DEATHS_EVERY_S) if self.is_killed else seconds


_CASES = (
    _Case("worker killed", _BATCH, is_mirror=False, is_killed=True),
    _Case("mirror whose worker is killed", _BATCH, is_mirror=True, is_killed=True),
    _Case("mirror that sleeps 5 s", SLEEPS, is_mirror=True, is_killed=False),
    _Case("mirror that raises", RAISES, is_mirror=True, is_killed=False),
)


@dataclass(frozen=True)
class _Turn:
    """One turn.

    Attributes:
        latencies_ms: Those of version 1's answers.
        failed: Its requests without one.
        cpu_ms: CPU time of its worker and of the HTTP processes for each request.
    """

    latencies_ms: list[float]
    failed: int
    cpu_ms: float


def measure(rounds: int, seconds: float, loads: int) -> dict[str, Any]:
    """Return what became of version 1 in each case, and the memory after loads of version 2."""
    with servers.variant(("-m", "benchmarks.baselines.faulty"), _SETTINGS) as server:
        bench = _Bench(server, seconds)
        bench.turn()  # discarded: the first requests make connections and caches
        memory = [server.resident_bytes()]
        for _ in range(loads):
            bench.load(_BATCH)
            bench.unload()
            memory.append(server.resident_bytes())
        cases = {case.name: _in_turns(bench, case, rounds) for case in _CASES}
    return {"requests_per_s": _PER_S, "seconds": seconds, "cases": cases, "resident_bytes": memory}


def _in_turns(bench: _Bench, case: _Case, rounds: int) -> dict[str, Any]:
    """Measure pairs of turns, of which the one with the fault comes first in every other pair."""
    bench.load(case.max_batch_size)
    pairs = []
    for number in range(rounds):
        order = (False, True) if number % 2 else (True, False)
        by_fault = {is_faulty: bench.turn(case, is_faulty=is_faulty) for is_faulty in order}
        pairs.append((by_fault[False], by_fault[True]))
    bench.unload()
    return _summary(pairs)


class _Bench:
    """A server with version 1 of a model, and perhaps a version 2.

    Args:
        server: The server.
        seconds: The length of a turn without a kill.
    """

    def __init__(self, server: servers.Server, seconds: float) -> None:
        self._server = server
        self._seconds = seconds
        self._port = int(server.url.rpartition(":")[2])
        self._first = self._workers()
        self._killed_at = 0.0
        upload = (machine.ROOT / "examples" / "digit-7.png").read_bytes()
        self._upload = upload + FREE_BOX + b"neighbour"

    def load(self, max_batch_size: int) -> None:
        """Load version 2."""
        config = json.dumps({"model": _MODEL, "version": "2", "max_batch_size": max_batch_size, "traffic": 0})
        self._operate("load", {"parameters": {"config": config}})

    def unload(self) -> None:
        """Unload it."""
        self._operate("unload", {"parameters": {"version": "2"}})

    def turn(self, case: _Case | None = None, *, is_faulty: bool = False) -> _Turn:
        """Ask version 1 for some seconds, with a fault of version 2 or without."""
        is_killed = case is not None and case.is_killed
        is_mirrored = case is not None and case.is_mirror and (is_faulty or is_killed)
        if is_mirrored:
            self._operate("traffic", {"mirror_traffic": {"2": 100}})
        if is_faulty and is_killed:
            time.sleep(max(0.0, self._killed_at + _MOST_DEATHS_EVERY_S - time.monotonic()))
        time.sleep(_SETTLE_S)
        if is_faulty and is_killed:
            self._kill()
        turn = self._ask(self._seconds if case is None else case.seconds(self._seconds))
        if is_mirrored:
            self._operate("traffic", {"mirror_traffic": {"2": 0}})
        if is_killed:
            self._until(lambda: self._is_ready("2"))
        return turn

    def _ask(self, seconds: float) -> _Turn:
        before = self._cpu_seconds()
        replies = asyncio.run(Client(self._port, self._upload).open_loop(_PER_S, seconds, secrets.randbits(32)))
        used = self._cpu_seconds() - before
        good = [reply.seconds * 1000 for reply in replies if reply.status == httpx.codes.OK]
        return _Turn(good, len(replies) - len(good), used * 1000 / len(replies))

    def _kill(self) -> None:
        (worker,) = self._workers() - self._first
        os.kill(worker, signal.SIGKILL)
        self._killed_at = time.monotonic()

    def _workers(self) -> set[int]:
        return {pid for pid, kind in process_group.kinds(self._server.group).items() if kind == "worker"}

    def _cpu_seconds(self) -> float:
        """Return what version 1 uses: its worker, and the HTTP processes."""
        kinds = process_group.kinds(self._server.group)
        own = self._first | {pid for pid, kind in kinds.items() if kind == "http"}
        return sum(sum(process_group.cpu_seconds_by_thread(pid).values()) for pid in own)

    def _is_ready(self, version: str) -> bool:
        url = f"{self._server.url}/v2/models/{_MODEL}/versions/{version}/ready"
        return httpx.get(url, timeout=10, **servers.PLAIN_HTTP).status_code == httpx.codes.OK

    def _operate(self, action: str, body: dict[str, Any]) -> None:
        url = f"{self._server.url}/v2/repository/models/{_MODEL}/{action}"
        httpx.post(url, json=body, headers=_KEY, timeout=600, **servers.PLAIN_HTTP).raise_for_status()

    @staticmethod
    def _until(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError("Version 2 did not come back.")
            time.sleep(0.1)


def _summary(pairs: Sequence[tuple[_Turn, _Turn]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, turns in (("quiet", [quiet for quiet, _ in pairs]), ("faulty", [faulty for _, faulty in pairs])):
        summary[name] = {
            "requests": sum(len(turn.latencies_ms) + turn.failed for turn in turns),
            "failed": sum(turn.failed for turn in turns),
            **percentiles([one for turn in turns for one in turn.latencies_ms]),
            "cpu_ms": round(statistics.median(turn.cpu_ms for turn in turns), 3),
        }
    summary |= _resampled(pairs)
    summary["cpu_ratios"] = _described([faulty.cpu_ms / quiet.cpu_ms for quiet, faulty in pairs if quiet.cpu_ms])
    return summary


def _resampled(pairs: Sequence[tuple[_Turn, _Turn]]) -> dict[str, dict[str, float]]:
    """Return the ratio of each percentile of all turns with the fault to that of all without it, and its interval.

    The interval has 95% of the ratios of as many pairs that are drawn from these, with replacement: a percentile of a
    single turn says little, since a few of its requests decide.
    """
    draw = random.Random(0)
    found = _ratios(pairs)
    drawn = [_ratios(draw.choices(pairs, k=len(pairs))) for _ in range(_DRAWN)]
    cuts = {figure: statistics.quantiles([ratios[figure] for ratios in drawn], n=40) for figure in found}
    return {f"{figure}_ratios": _rounded(ratio, cuts[figure][0], cuts[figure][-1]) for figure, ratio in found.items()}


def _ratios(pairs: Sequence[tuple[_Turn, _Turn]]) -> dict[str, float]:
    quiet, faulty = (
        percentiles([one for turn in turns for one in turn.latencies_ms]) for turns in zip(*pairs, strict=True)
    )
    return {figure: value / quiet[figure] for figure, value in faulty.items()}


def _described(ratios: Sequence[float]) -> dict[str, float]:
    """Return the median and between what the ratios of pairs are."""
    return _rounded(statistics.median(ratios), min(ratios), max(ratios)) if ratios else {}


def _rounded(ratio: float, low: float, high: float) -> dict[str, float]:
    return {name: round(value, 3) for name, value in (("ratio", ratio), ("low", low), ("high", high))}


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    result = report["result"]
    rows = [
        (
            name,
            f"{case['quiet']['p99']:g}, {case['faulty']['p99']:g}",
            *(_shown(case[f"{figure}_ratios"]) for figure in ("p99", "p50", "cpu")),
            f"{case['faulty']['failed']:,} of {case['faulty']['requests']:,}",
        )
        for name, case in result["cases"].items()
    ]
    head = ("version 2", "p99 of version 1 without, with (ms)", "ratio of p99", "of p50", "of CPU/request", "failed")
    memory = result["resident_bytes"]
    first, last = (f"{memory[number] / memory[0] - 1:+.1%}" for number in (1, -1))
    lines = f"Resident memory after a load and unload of version 2: {first}; after {len(memory) - 1}: {last}."
    return tables.markdown(head, rows) + "\n\n" + lines


def _shown(ratios: dict[str, float]) -> str:
    return "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**ratios) if ratios else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("neighbours", __doc__)
    command_line.add_turns(parser, rounds=10, seconds=6)
    parser.add_argument("--loads", type=int, default=10, help="loads for the memory (default: %(default)s)")
    options = command_line.parse(parser, arguments)
    described = machine.describe()
    result = measure(options.rounds, options.seconds, options.loads)
    results.write(options.out, {"result": result}, described)
    print(table({"result": result}))


if __name__ == "__main__":
    main()
