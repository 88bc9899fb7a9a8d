"""A new version takes over under load, and gives back: no request fails, and each client stays on one side.

    python -m benchmarks.versions

wrk sends requests of thousands of clients, each with a session, and never pauses. Meanwhile Triton's client loads
version 2 of a model, which gets 10, 50 and 100% of the clients; version 1 is unloaded, loaded again, and gets all of
them back. Triton's client asks for inference all the while, too. Then the worker of version 2 is killed again and
again, while it is asked, and version 1 has the clients.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import httpx

from benchmarks.harness import command_line, machine, process_group, results, servers, tables, wrk
from benchmarks.harness.recorded_wrk import Answer, RecordedWrk, sent_after

_MODEL = "digits"
_OPERATOR = "0123456789abcdef-operator"
_KEY = {"authorization": f"Bearer {_OPERATOR}"}
_CONFIDENCE = 0.999
_OK = 200
_SETTINGS = {
    "model": "",  # the list has it
    "models": json.dumps([{"name": _MODEL, "version": "1", "model": "digits"}]),
    "max_models": 2,
    "max_input_side": 32,
    "operator_key": _OPERATOR,
    "api_servers": 2,
    "cpu_threads": 1,
    "cache_size": 0,
}


@dataclass(frozen=True)
class Size:
    """How much is sent.

    Attributes:
        clients: Number of clients.
        connections: Number of connections.
        requests: The fewest requests of wrk while versions change.
        kills: How often the worker is killed.
    """

    clients: int
    connections: int
    requests: int
    kills: int


def measure(size: Size) -> dict[str, Any]:
    """Return what became of the requests, and of the clients at each step."""
    upload = (machine.ROOT / "examples" / "digit-7.png").read_bytes()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = stack.enter_context(servers.vit_api(**_SETTINGS))
        paths = [Path(folder, name) for name in ("changing", "killing")]
        for path in paths:
            path.mkdir()

        def load(path: Path) -> RecordedWrk:
            url = server.url + "/predict"
            begun = RecordedWrk(url, upload, path, connections=size.connections, clients=size.clients)
            stack.callback(begun.kill)
            return begun

        changing = _roll_out(server, load(paths[0]), upload, size)
        killing = _kill(server, load(paths[1]), upload, size)
    return {"size": asdict(size), "changing": changing, "killing": killing}


def _roll_out(server: servers.Server, load: RecordedWrk, upload: bytes, size: Size) -> dict[str, Any]:
    """Go through all steps under load."""
    import tritonclient.http

    triton = tritonclient.http.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=600)
    config = json.dumps({"model": "digits", "version": "2", "traffic": 0})
    steps: list[tuple[str, float, Callable[[], Any]]] = [
        ("version 1 alone", 0, lambda: None),
        ("version 2 loaded", 0, lambda: triton.load_model(_MODEL, headers=_KEY, config=config)),
        *((f"{share}% to version 2", share, lambda share=share: _share(server, share)) for share in (10, 50, 100)),
        ("version 1 unloaded", 100, lambda: _unload(server, "1")),
        (
            "version 1 loaded again",
            100,
            lambda: triton.load_model(_MODEL, headers=_KEY, config='{"version": "1"}'),
        ),
        ("rolled back", 0, lambda: _share(server, 0)),
    ]
    each = max(size.requests // len(steps), 2 * size.clients)
    sides: list[dict[str, Any]] = []
    before: dict[int, str] = {}
    with Asking(server, "", upload) as asking:
        load.wait_for(1)
        for name, share, change in steps:
            change()
            begun = load.count()
            load.wait_for(each)
            seen = sent_after(load.answers(), begun, size.connections)
            after = {answer.number % size.clients: answer.version for answer in seen}
            sides.append({"step": name, "traffic": share, **_sides(seen, after, before, size.clients, share)})
            before = after
        unanswered = load.stop()
    triton.close()
    answers = load.answers()
    return {
        "requests": len(answers),
        "failed": unanswered + sum(answer.status != _OK for answer in answers),
        "by_tritonclient": asking.counts(),
        "steps": sides,
    }


def _sides(
    seen: Sequence[Answer], after: dict[int, str], before: dict[int, str], clients: int, share: float
) -> dict[str, Any]:
    """Return which clients a version has, who got two, and how many moved since the step before."""
    on_two = {answer.number % clients for answer in seen if after[answer.number % clients] != answer.version}
    moves = Counter(f"{before[client]} to {side}" for client, side in after.items() if before.get(client, side) != side)
    found, low, high = sum(side == "2" for side in after.values()), *interval(share / 100, len(after))
    return {
        "clients": len(after),
        "of_version_2": found,
        "interval": [low, high],
        "is_inside": low <= found <= high,
        "clients_with_both": len(on_two),
        "moves": dict(moves),
    }


def interval(share: float, count: int) -> tuple[float, float]:
    """Return between which numbers `_CONFIDENCE` of the samples of a binomial distribution are, by the normal one."""
    width = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) * (count * share * (1 - share)) ** 0.5
    return round(count * share - width, 1), round(count * share + width, 1)


def _kill(server: servers.Server, load: RecordedWrk, upload: bytes, size: Size) -> dict[str, Any]:
    """Kill the worker of version 2 again and again, while it is asked; version 1 has the clients."""
    kept = max(_workers(server), key=process_group.started_at)  # version 1 was loaded last
    deaths = 0
    with Asking(server, "2", upload) as asking:
        load.wait_for(1)
        while deaths < size.kills:
            asking.wait_for_more()
            (worker,) = _workers(server) - {kept}
            os.kill(worker, signal.SIGKILL)
            deaths += 1
        asking.wait_for_more()
        unanswered = load.stop()
    answers = load.answers()
    return {
        "deaths": deaths,
        "requests": len(answers),
        "failed": unanswered + sum(answer.status != _OK or answer.version != "1" for answer in answers),
        "of_version_2": asking.counts(),
    }


def _workers(server: servers.Server) -> set[int]:
    return {pid for pid, kind in process_group.kinds(server.group).items() if kind == "worker"}


class Asking:
    """Triton's client, which asks for inference without a pause; in a thread.

    Args:
        server: The server.
        version: Which version is asked; empty for the one that has the client.
        upload: The image.
    """

    def __init__(self, server: servers.Server, version: str, upload: bytes) -> None:
        self._address = server.url.removeprefix("http://")
        self._version = version
        self._upload = upload
        self._done = threading.Event()
        self._statuses: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def counts(self) -> dict[str, int]:
        """Return how many requests there were, by "ok" or the message of an error."""
        return dict(self._statuses)

    def wait_for_more(self, count: int = 20, deadline_s: float = 600.0) -> None:
        """Wait until so many further requests have succeeded."""
        wanted, end = self._statuses["ok"] + count, time.monotonic() + deadline_s
        while self._statuses["ok"] < wanted:
            if time.monotonic() > end:
                raise RuntimeError(f"Version {self._version!r} did not answer within {deadline_s:g} s.")
            time.sleep(0.1)

    def _ask(self) -> None:
        import numpy as np
        import tritonclient.http as triton

        client = triton.InferenceServerClient(self._address, network_timeout=120)
        image = triton.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([self._upload], dtype=object))
        headers = {"x-session-id": "tritonclient"}
        while not self._done.is_set():
            try:
                client.infer(_MODEL, [image], model_version=self._version, headers=headers)
                self._statuses["ok"] += 1
            except triton.InferenceServerException as error:
                self._statuses[str(error)] += 1
        client.close()


def _share(server: servers.Server, percent: float) -> None:
    _operate(server, "traffic", {"traffic": {"1": 100 - percent, "2": percent}})


def _unload(server: servers.Server, version: str) -> None:
    _operate(server, "unload", {"parameters": {"version": version}})


def _operate(server: servers.Server, action: str, body: dict[str, Any]) -> None:
    url = f"{server.url}/v2/repository/models/{_MODEL}/{action}"
    httpx.post(url, json=body, headers=_KEY, timeout=600, **servers.PLAIN_HTTP).raise_for_status()


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    result = report["result"]
    changing, killing = result["changing"], result["killing"]
    rows = [
        (
            step["step"],
            f"{step['of_version_2']:,} of {step['clients']:,}",
            "{:g} to {:g}".format(*step["interval"]),
            ", ".join(f"{count} {move}" for move, count in step["moves"].items()) or "0",
            step["clients_with_both"],
        )
        for step in changing["steps"]
    ]
    head = ("step", "clients of version 2", "99.9% interval", "moved", "got both")
    lines = [
        f"{changing['requests']:,} requests by wrk, of which {changing['failed']} failed; "
        f"{sum(changing['by_tritonclient'].values()):,} by tritonclient, of which "
        f"{_failures(changing['by_tritonclient'])} failed.",
        f"The worker of version 2 killed {killing['deaths']} times: of {killing['requests']:,} requests for version 1, "
        f"{killing['failed']} failed; of {sum(killing['of_version_2'].values()):,} for version 2, "
        f"{_failures(killing['of_version_2'])}.",
    ]
    return tables.markdown(head, rows) + "\n\n" + "\n\n".join(lines)


def _failures(counts: dict[str, int]) -> int:
    return sum(counts.values()) - counts.get("ok", 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("versions", __doc__)
    parser.add_argument("--clients", type=int, default=4000, help="number of clients (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=32, help="number of connections (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100_000, help="the fewest of all steps (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=5, help="how often the worker is killed (default: %(default)s)")
    options = command_line.parse(parser, arguments)
    wrk.require()
    described = machine.describe()
    result = measure(Size(options.clients, options.connections, options.requests, options.kills))
    results.write(options.out, {"result": result}, described)
    print(table({"result": result}))


if __name__ == "__main__":
    main()
