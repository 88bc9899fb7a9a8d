"""What requests of normal urgency notice of a flood of low urgency, at three times the capacity.

    python -m benchmarks.urgency

First a closed loop finds the capacity. Then, in turns, an open loop sends requests of normal urgency alone, at 0.6
times the capacity, and the same together with four times as many of low urgency (`Priority: u=7`). They come at random,
as from many clients that know nothing of each other. Some of the flood have a deadline of 50 ms, by the `timeout` of
`/v2`, so that it passes while they wait. The model takes a whole core, and so long for an image (about 25 ms) that the
HTTP process and the client need little of the other one: else the flood would take time from them, not from the model.

Each round compares its own two loops, since the machine's speed changes; the ratio is the median of the rounds.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness import command_line, machine, servers, tables
from benchmarks.harness.checkpoints import save_small_vit
from benchmarks.harness.open_loop import Client, Reply, percentiles

_TIMES = 3.0
_NORMAL_SHARE, _LOW_SHARE, _HASTY_SHARE = 0.2, 0.7, 0.1
_DEADLINE_MS = 50
_CONNECTIONS = 32
_LAYERS = 12
_WARM_UP_S = 1.0
_OK = 200
_SETTINGS = {"api_servers": 1, "cpu_threads": 1, "cache_size": 0, "queue_size": 128}
_LOW = b"priority: u=7\r\n"


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Return what became of each class. The loops take turns, since the machine's speed changes."""
    upload = (machine.ROOT / "examples" / "digit-7.png").read_bytes()
    capacities: list[float] = []
    by_round: list[dict[str, list[Reply]]] = []
    with tempfile.TemporaryDirectory() as model, contextlib.ExitStack() as stack:
        save_small_vit(Path(model), _LAYERS)
        server = stack.enter_context(servers.vit_api(model=model, **_SETTINGS))
        flood = _Flood(int(server.url.rpartition(":")[2]), upload, Path(model).name)
        asyncio.run(Client(flood.port, upload).closed_loop(_CONNECTIONS, _WARM_UP_S))
        ran, answered = _images_run(server.url), 0
        for number in range(rounds):
            closed = asyncio.run(Client(flood.port, upload).closed_loop(_CONNECTIONS, seconds))
            per_s = _TIMES * len(closed) / seconds
            capacities.append(len(closed) / seconds)
            alone = asyncio.run(Client(flood.port, upload).open_loop(_NORMAL_SHARE * per_s, seconds, number))
            more = {"alone": alone} | asyncio.run(flood.run(per_s, seconds, number))
            by_round.append(more)
            answered += sum(reply.status == _OK for found in (closed, *more.values()) for reply in found)
        late = _images_run(server.url) - ran - answered
    summary = _summary(statistics.median(capacities), by_round, rounds * seconds)
    return {"rounds": rounds, "seconds": seconds} | summary | {"images_run_without_an_answer": late}


class _Flood:
    """Requests of all three kinds at once.

    Args:
        port: Of the server.
        upload: The image.
        model: The model's name.
    """

    def __init__(self, port: int, upload: bytes, model: str) -> None:
        self.port = port
        self._upload = upload
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(upload).decode()]}
        parameters = {"priority": 2, "timeout": _DEADLINE_MS * 1000}
        self._hasty = json.dumps({"inputs": [tensor], "parameters": parameters}).encode(), f"/v2/models/{model}/infer"

    async def run(self, per_s: float, seconds: float, seed: int) -> dict[str, list[Reply]]:
        """Return the replies to each kind."""
        normal, low, hasty = await asyncio.gather(
            Client(self.port, self._upload).open_loop(_NORMAL_SHARE * per_s, seconds, seed),
            Client(self.port, self._upload, headers=_LOW).open_loop(_LOW_SHARE * per_s, seconds, seed + 1000),
            Client(self.port, *self._hasty).open_loop(_HASTY_SHARE * per_s, seconds, seed + 2000),
        )
        return {"normal": normal, "low": low, "hasty": hasty}


def _images_run(url: str) -> int:
    """Return how many images batches have had, once none is in flight."""
    deadline = time.monotonic() + 60
    while True:
        lines = httpx.get(url + "/metrics", **servers.PLAIN_HTTP).text.splitlines()
        values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}
        if all(values[f'inference_slots{{state="{state}"}}'] == 0 for state in ("decoding", "queued", "running")):
            return int(sum(value for name, value in values.items() if name.startswith("inference_images_total")))
        if time.monotonic() > deadline:
            raise RuntimeError("The server does not become idle.")
        time.sleep(0.05)


def _summary(capacity: float, by_round: Sequence[dict[str, list[Reply]]], seconds: float) -> dict[str, Any]:
    replies = {name: [reply for more in by_round for reply in more[name]] for name in by_round[0]}
    ratios = [_times(more["normal"])["p99"] / _times(more["alone"])["p99"] for more in by_round]
    low = replies["low"]
    result = {name: {"statuses": _statuses(found), "ms": _times(found)} for name, found in replies.items()}
    return {
        "capacity_per_s": round(capacity),
        "offered_per_s": round(sum(len(replies[name]) for name in ("normal", "low", "hasty")) / seconds),
        **result,
        "p99_ratio": round(statistics.median(ratios), 2),
        "p99_ratios": [round(ratio, 2) for ratio in ratios],
        "low_answered_per_s": round(sum(reply.status == _OK for reply in low) / seconds, 1),
        "all_refusals_say_when": all(reply.has_retry_after for reply in low if reply.status != _OK),
    }


def _times(replies: Sequence[Reply]) -> dict[str, float]:
    """Return the percentiles of those that were answered."""
    return percentiles([reply.seconds * 1000 for reply in replies if reply.status == _OK])


def _statuses(replies: Sequence[Reply]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(Counter(reply.status for reply in replies).items())}


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    result = report["result"]
    names = {
        "alone": "normal, alone",
        "normal": "normal, in the flood",
        "low": "low",
        "hasty": f"low, with a deadline of {_DEADLINE_MS} ms",
    }
    rows = [
        (shown, *(result[name]["ms"].get(cut, "") for cut in ("p50", "p99")), _shown(result[name]["statuses"]))
        for name, shown in names.items()
    ]
    return tables.markdown(("urgency", "p50 (ms)", "p99 (ms)", "responses by status"), rows)


def _shown(statuses: dict[str, int]) -> str:
    return ", ".join(f"{status}: {count:,}" for status, count in statuses.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    command_line.run_turns("urgency", __doc__, measure, arguments, rounds=5, seconds=8)


if __name__ == "__main__":
    main()
