"""Our server as a replica of Ray Serve, behind HAProxy and behind Ray's proxy in Python, against the plain server.

    python -m benchmarks.ray_serve

A closed loop of 32 connections sends 65 KB JPEGs to a model for 224 px, each request's upload unique. A server starts
for its turn and stops after it, so that no idle one takes CPU time. An application that answers at once shows what Ray
and HAProxy take themselves. Needs `make ray` and wrk.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.harness import checkpoints, command_line, pictures, ray_environment, results, servers, tables, wrk
from benchmarks.harness.process_tree import ProcessTree
from vit_api.load import uploads

GOAL = 0.8
_PLAIN, _PYTHON, _HAPROXY = "plain server", "Ray Serve, proxy in Python", "Ray Serve, HAProxy"
_NOTHING = "Ray Serve, HAProxy, an application that answers at once"
_WITH_HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # By default 30 s, after which the controller kills what is still there.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
_VARIABLES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {_PYTHON: {}, _HAPROXY: _WITH_HAPROXY, _NOTHING: _WITH_HAPROXY}
)
_PORTS_OF_HAPROXY = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
"""HAProxy has two further ports with fixed defaults, and ends, as does its actor, where another program has one."""
_PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60"}
"""By default Ray kills a proxy whose first answer takes 5 s, as it may beside the model that is being loaded."""
_START_S, _STOP_S = 300.0, 120.0
"""Ray starts a dozen processes; on a busy machine that takes minutes."""
_CONNECTIONS = 32
_UPLOAD_BYTES = 65_000
_WARM_UP_S = 2.0


@contextlib.contextmanager
def _on_ray(name: str, model: Path) -> Iterator[servers.Server]:
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    program = "ray_nothing" if name == _NOTHING else "ray_replica"
    command = [str(ray_environment.PYTHON), "-m", f"benchmarks.baselines.{program}", str(port), str(model)]
    ports = {name: str(servers.free_port()) for name in _PORTS_OF_HAPROXY}
    environment = ray_environment.variables(**_PATIENT, **ports, **_VARIABLES[name])
    ready = url + "/health/ready"
    with servers.running(command, ready, environment=environment, start_s=_START_S, stop_s=_STOP_S) as process:
        yield servers.Server(url, process.pid)


def _serving(name: str, model: Path) -> contextlib.AbstractContextManager[servers.Server]:
    if name == _PLAIN:
        return servers.vit_api(model=model, cache_size=0, cpu_threads=1)
    return _on_ray(name, model)


def turn(name: str, model: Path, seconds: float) -> tuple[float, float]:
    """Return a server's requests/s and the CPU time of a request in microseconds, of all its processes."""
    upload = wrk.marked(pictures.noisy_jpeg(_UPLOAD_BYTES))
    with _serving(name, model) as server:
        url = server.url + "/predict"
        wrk.post(url, upload, uploads.RAW, connections=_CONNECTIONS, seconds=_WARM_UP_S).check(name)
        with ProcessTree(server.group) as tree:
            before = tree.cpu_seconds()
            load = wrk.post(url, upload, uploads.RAW, connections=_CONNECTIONS, seconds=seconds)
            load.check(name)
            cpu_s = tree.cpu_seconds() - before
    return load.rate, cpu_s / load.successes * 1e6


def run(rounds: int, seconds: float) -> dict[str, Any]:
    """Measure all servers in turns; return each one's figures, and the medians of the ratios within a round."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in (_PLAIN, *_VARIABLES)}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        checkpoints.save_two_layer_vit(model)
        for _ in range(rounds):
            for name, turns in measured.items():
                turns.append(turn(name, model, seconds))
                print(f"{name}: {turns[-1][0]:,.0f}/s, {turns[-1][1]:,.0f} us of CPU a request", flush=True)
    return {name: _summary(turns, measured[_PLAIN]) for name, turns in measured.items()}


def _summary(turns: Sequence[tuple[float, float]], plain: Sequence[tuple[float, float]]) -> dict[str, float]:
    rates, costs = zip(*turns, strict=True)
    pairs = list(zip(turns, plain, strict=True))
    return {
        "requests_per_s": round(statistics.median(rates), 1),
        "cpu_us_per_request": round(statistics.median(costs)),
        "rate_of_plain": round(statistics.median(ours[0] / its[0] for ours, its in pairs), 2),
        "cpu_of_plain": round(statistics.median(ours[1] / its[1] for ours, its in pairs), 2),
    }


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per server."""
    head = ("server", "requests/s", "CPU per request", "rate / plain server", "CPU / plain server", "goal of the rate")
    rows = []
    for name, figures in report["results"].items():
        cost = f"{figures['cpu_us_per_request']:,} us"
        goal = GOAL if name == _HAPROXY else "-"
        rows.append((name, figures["requests_per_s"], cost, figures["rate_of_plain"], figures["cpu_of_plain"], goal))
    return tables.markdown(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("ray_serve", __doc__)
    command_line.add_turns(parser, rounds=5, seconds=8)
    options = command_line.parse(parser, arguments)
    ray_environment.require()
    wrk.require()
    results.write(options.out, {"rounds": options.rounds, "results": run(options.rounds, options.seconds)})


if __name__ == "__main__":
    main()
