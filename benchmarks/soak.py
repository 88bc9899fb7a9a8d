"""Minutes of mixed traffic and faults: no request may be lost, and no resource may grow.

    python -m benchmarks.soak --minutes 5

Clients send repeated and new images, raw and as forms, corrupt images, and disconnect early. Every 20 s a worker or an
HTTP process is killed. Every request must get its correct answer; a client whose connection broke with a killed HTTP
process sends its request once again. At the end all slots are free, and neither memory nor descriptors have grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.harness import command_line, machine, process_group, results, servers, tables
from vit_api.load import uploads

_CLIENTS = 24
_KILL_EVERY_S = 20.0
_SAMPLE_EVERY_S = 1.0
_REQUEST_S = 60.0
_MAX_GROWTH_BYTES = 48 * 2**20
_MAX_GROWTH_SHARE = 1.10
_WARM_UP_SHARE = 0.3
_MAX_NEW_DESCRIPTORS = 16
"""The allowed growth in descriptors: a new HTTP process inherits about seven of the main process's, once."""


@dataclass
class Tally:
    """The outcomes of a run.

    Attributes:
        outcomes: Attempts by kind of request and outcome.
        lost: Descriptions of requests without their correct answer.
        kills: Killed processes by kind.
        memory: Samples of the seconds since the start and the resident bytes of all processes.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)


class Traffic:
    """The requests of all clients, of seeded kinds.

    Args:
        port: The server's port.
        tally: Records the outcomes.
    """

    def __init__(self, port: int, tally: Tally) -> None:
        self._port = port
        self._tally = tally
        examples = machine.ROOT / "examples"
        self._pictures = [(label, (examples / f"digit-{label}.png").read_bytes()) for label in "73"]
        self._number = 0

    async def run(self, seed: int, end: float) -> None:
        """Send requests one by one until `end`."""
        dice = random.Random(seed)
        while time.monotonic() < end:
            kind = dice.choices(("hit", "miss", "form", "bad", "hang up"), (4, 4, 2, 1, 1))[0]
            label, picture = dice.choice(self._pictures)
            self._number += 1
            # Bytes after a PNG's end are ignored by decoders, and make the upload unique.
            upload = picture + (b"again" if kind == "hit" else self._number.to_bytes(8, "big"))
            if kind == "bad":
                upload = picture[: len(picture) // 2] + self._number.to_bytes(8, "big")
            await self._request(kind, upload, "bad_image" if kind == "bad" else label)

    async def _request(self, kind: str, upload: bytes, expected: str) -> None:
        body, content_type = upload, uploads.RAW
        if kind == "form":
            body, content_type = uploads.as_form(upload), uploads.FORM
        lines = ("POST /predict HTTP/1.1", "host: x", f"content-type: {content_type}", f"content-length: {len(body)}")
        request = "".join(f"{line}\r\n" for line in (*lines, "")).encode() + body
        for _ in range(2):
            try:
                got = await asyncio.wait_for(self._exchange(request, hangs_up=kind == "hang up"), _REQUEST_S)
            except (OSError, asyncio.IncompleteReadError):
                self._tally.outcomes[f"{kind}: interrupted"] += 1
                await asyncio.sleep(0.05)
                continue
            except TimeoutError:
                got = "no answer"
            self._tally.outcomes[f"{kind}: {'right' if got in (expected, None) else 'wrong'}"] += 1
            if got not in (expected, None):
                self._tally.lost.append(f"{kind}: expected {expected}, got {got}")
            return
        self._tally.lost.append(f"{kind}: interrupted twice")

    async def _exchange(self, request: bytes, *, hangs_up: bool) -> str | None:
        """Return the label or the error's code; None for a client that disconnected."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request)
            await writer.drain()
            if hangs_up:
                return None
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].split("\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
        finally:
            writer.close()
        return str(answer["code"] if "code" in answer else answer["predictions"][0]["label"])


async def _kill(server: servers.Server, tally: Tally, every_s: float, end: float) -> None:
    """Kill workers and HTTP processes alternately; none so late that its successor would not be ready."""
    kinds = ("worker", "http")
    for number in range(10_000):
        if time.monotonic() + 1.5 * every_s > end:
            return
        await asyncio.sleep(every_s)
        kind = kinds[number % len(kinds)]
        victims = [pid for pid, its_kind in process_group.kinds(server.group).items() if its_kind == kind]
        if victims:
            os.kill(victims[0], signal.SIGKILL)
            tally.kills[kind] += 1


async def _sample(server: servers.Server, tally: Tally, start: float, end: float) -> None:
    while time.monotonic() < end:
        tally.memory.append((time.monotonic() - start, server.resident_bytes()))
        await asyncio.sleep(_SAMPLE_EVERY_S)


def _descriptors(server: servers.Server) -> int:
    return sum(map(process_group.descriptors, process_group.living(server.group)))


async def _load(server: servers.Server, tally: Tally, seconds: float, kill_every_s: float) -> None:
    start = time.monotonic()
    end = start + seconds
    traffic = Traffic(int(server.url.rpartition(":")[2]), tally)
    clients = (traffic.run(seed, end) for seed in range(_CLIENTS))
    await asyncio.gather(*clients, _kill(server, tally, kill_every_s, end), _sample(server, tally, start, end))


def run(minutes: float, kill_every_s: float = _KILL_EVERY_S) -> tuple[dict[str, Any], list[str]]:
    """Run the traffic; return the report and its faults."""
    tally = Tally()
    settings = {"api_servers": 2, "cpu_threads": 1, "cache_size": 1000, "request_timeout_s": _REQUEST_S}
    with servers.vit_api(**settings) as server:
        before = _descriptors(server)
        asyncio.run(_load(server, tally, minutes * 60, kill_every_s))
        info = _settled(server)
        after = _descriptors(server)
    report = {
        "minutes": minutes,
        "requests": sum(tally.outcomes.values()),
        "outcomes": dict(sorted(tally.outcomes.items())),
        "lost": tally.lost[:20],
        "kills": dict(tally.kills),
        "restarts": sum(worker["restarts"] for worker in info["workers"]),
        "slots": info["slots"],
        "memory_mb": _memory(tally.memory, minutes * 60),
        "descriptors": {"before": before, "after": after},
    }
    return report, _faults(report)


def _settled(server: servers.Server) -> dict[str, Any]:
    """Return /info once no request is in flight, or after a minute."""
    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            info: dict[str, Any] = httpx.get(server.url + "/info", timeout=30).json()
            is_settled = httpx.get(server.url + "/health", timeout=30).json()["status"] == "ok"
            busy = sum(count for state, count in info["slots"].items() if state != "free")
            if (is_settled and not busy) or time.monotonic() > end:
                return info
        time.sleep(0.2)


def _memory(samples: Sequence[tuple[float, int]], seconds: float) -> dict[str, float]:
    """Return the median MiB of the first and the last third after the warm-up; restarts are outliers."""
    rest = [(at, size) for at, size in samples if at > _WARM_UP_SHARE * seconds]
    third = max(1, len(rest) // 3)
    first, last = (statistics.median(size for _, size in part) for part in (rest[:third], rest[-third:]))
    return {"first": round(first / 2**20, 1), "last": round(last / 2**20, 1)}


def _faults(report: dict[str, Any]) -> list[str]:
    faults = [f"lost: {description}" for description in report["lost"]]
    busy = {state: count for state, count in report["slots"].items() if state != "free" and count}
    if busy:
        faults.append(f"slots are not free: {busy}")
    first, last = report["memory_mb"]["first"], report["memory_mb"]["last"]
    if last > first * _MAX_GROWTH_SHARE and (last - first) * 2**20 > _MAX_GROWTH_BYTES:
        faults.append(f"memory grew from {first} to {last} MiB")
    if report["descriptors"]["after"] > report["descriptors"]["before"] + _MAX_NEW_DESCRIPTORS:
        faults.append(f"descriptors grew: {report['descriptors']}")
    if report["restarts"] != report["kills"].get("worker", 0):
        faults.append(f"{report['restarts']} restarts for {report['kills']} kills")
    return faults


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    memory, descriptors = report["memory_mb"], report["descriptors"]
    interrupted = sum(count for outcome, count in report["outcomes"].items() if outcome.endswith("interrupted"))
    rows = [
        ("minutes", report["minutes"]),
        ("requests, each attempt counted", f"{report['requests']:,}"),
        ("kills", ", ".join(f"{count} {kind}" for kind, count in report["kills"].items())),
        ("connections broken by a kill, request sent again", interrupted),
        ("requests without their right answer", len(report["lost"])),
        ("memory in the first and last third", f"{memory['first']} MiB, {memory['last']} MiB"),
        ("descriptors before, after", f"{descriptors['before']}, {descriptors['after']}"),
    ]
    return tables.markdown(("soak", ""), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the soak of the command line; exit with status 1 if there are faults."""
    parser = command_line.parser("soak", __doc__)
    parser.add_argument("--minutes", type=float, default=5, help="duration (default: %(default)s)")
    parser.add_argument(
        "--kill-every",
        type=float,
        default=_KILL_EVERY_S,
        metavar="SECONDS",
        help="time between two kills (default: %(default)g)",
    )
    options = command_line.parse(parser, arguments)
    report, faults = run(options.minutes, options.kill_every)
    results.write(options.out, report)
    print(json.dumps(report, indent=1))
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
