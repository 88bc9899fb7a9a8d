"""Where a request's CPU time goes: microseconds by stage, for each kind of process.

    python -m benchmarks.profile

py-spy samples the running server under load, and a table maps functions to stages. py-spy must be allowed to trace
child processes (ptrace); containers need the capability SYS_PTRACE.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import command_line, pictures, process_group, results, servers, tables, wrk
from benchmarks.harness.machine import ROOT
from vit_api.load import uploads

_SAMPLES_PER_S = 200
_WARM_UP_S = 2.0
_CONNECTIONS = 128
_SETTINGS = {"cpu_threads": 1, "cache_size": 0}


def _modules(folder: str) -> tuple[str, ...]:
    """Return the modules of a folder of the package, as py-spy writes them."""
    return tuple(f"vit_api/{folder}/{file.name}" for file in sorted((ROOT / "vit_api" / folder).glob("*.py")))


# By stage: parts of its frames' names, which py-spy writes as `function (file:line)`. The innermost frame that matches
# decides.
STAGES = {
    "hash": ("_hash (vit_api/web/core/classifier.py",),
    "decode": ("decode_request", *_modules("decoding"), "PIL/"),
    "encode": ("encode_response", "PredictRoutes._body", "to_json", "json/"),
    "send": ("vit_api/web/door/answers.py", "RequestResponseCycle.send"),
    "slot": ("vit_api/ipc/slots.py",),
    "pipe": ("vit_api/ipc/records.py", "InferenceClient._read_answers", "SlotLoop._answer"),
    "batch": ("VisionModel.stage", "SlotLoop._collect", "vit_api/worker/image_queue.py"),
    "forward": ("VisionModel.launch", "vit_api/model/engines.py", "vit_api/model/vit.py"),
    "collect": ("VisionModel.collect",),
    "parse": (
        "uvicorn/",
        *_modules("web/door"),
        "vit_api/web/forms.py",
        "vit_api/web/hot_calls.py",
        "vit_api/web/requests.py",
        "vit_api/web/uploads.py",
    ),
    "event loop": (
        "concurrent/futures/",
        "asyncio/",
        "threading.py",
        "vit_api/web/core/cache.py",
    ),
}
OTHERS_CODE = ("PIL/", "json/", "uvicorn/", "RequestResponseCycle.", "concurrent/futures/", "asyncio/", "threading.py")
"""Frames of other packages and of the standard library."""
_OTHER = "other"
_WAITING = (
    "_worker (concurrent/futures/thread.py",
    "Condition.wait (threading.py",
    "Condition.__enter__ (threading.py",
)
"""Frames in which a thread waits for work, for a core or for its turn to decode, which takes no CPU time."""


def stage_of(frames: Sequence[str]) -> str:
    """Return the stage of a stack, whose frames are ordered from the outermost to the innermost."""
    for frame in reversed(frames):
        for stage, parts in STAGES.items():
            if any(part in frame for part in parts):
                return stage
    return _OTHER


def count_stages(lines: Iterable[str]) -> dict[int, Counter[str]]:
    """Count samples by thread and stage in py-spy's raw format: `thread (id): name;frame;frame count`."""
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if frames and not frames[-1].startswith(_WAITING):
            counts[int(thread.partition("(")[2].partition(")")[0])][stage_of(frames)] += int(count)
    return counts


def profile(upload: bytes, seconds: float) -> dict[str, Any]:
    """Load the server and sample its processes; return the CPU time per request in microseconds, by kind and stage."""
    with servers.vit_api(**_SETTINGS) as server, tempfile.TemporaryDirectory() as folder:
        _post(server, upload, _WARM_UP_S)
        pids = {pid: kind for pid, kind in process_group.kinds(server.group).items() if kind in ("http", "worker")}
        # py-spy stops a process for each sample, so CPU time is measured before it runs.
        before = {pid: process_group.cpu_seconds_by_thread(pid) for pid in pids}
        load = _post(server, upload, seconds)
        after = {pid: process_group.cpu_seconds_by_thread(pid) for pid in pids}
        samples = sample(server, upload, pids, seconds, Path(folder))
    by_kind: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for pid, kind in pids.items():
        used_s = {thread: seconds - before[pid].get(thread, 0) for thread, seconds in after[pid].items()}
        for stage, stage_s in _by_stage(pid, used_s, samples[pid]).items():
            by_kind[kind][stage] += stage_s / load.requests * 1e6
    return {
        "requests_per_s": round(load.rate),
        "cpu_us_per_request": {
            kind: {stage: round(us, 1) for stage, us in sorted(stages.items(), key=lambda item: -item[1])}
            for kind, stages in by_kind.items()
        },
    }


def _by_stage(pid: int, used_s: Mapping[int, float], samples: Mapping[int, Counter[str]]) -> dict[str, float]:
    """Distribute the CPU time of a process's threads over the stages in which they were sampled.

    The main thread has its own. All others share theirs, since any of them may decode: one that did so while CPU time
    was measured may be idle while samples are taken.
    """
    found: defaultdict[str, float] = defaultdict(float)
    for is_main in (True, False):
        seconds = sum(used for thread, used in used_s.items() if (thread == pid) is is_main)
        counts: Counter[str] = Counter()
        for thread, stages in samples.items():
            if (thread == pid) is is_main:
                counts += stages
        for stage, count in counts.items():
            found[stage] += seconds * count / counts.total()
    return found


def _post(server: servers.Server, upload: bytes, seconds: float) -> wrk.Load:
    url = server.url + "/predict"
    return wrk.post(url, upload, uploads.RAW, connections=_CONNECTIONS, seconds=seconds)


def py_spy() -> str | None:
    """Return the path of py-spy, beside this Python or on the PATH; None if it is not installed."""
    beside = Path(sys.executable).parent
    return shutil.which("py-spy", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")


def sample(
    server: servers.Server, upload: bytes, pids: Iterable[int], seconds: float, folder: Path
) -> dict[int, dict[int, Counter[str]]]:
    """Sample each process under load, one by one.

    Raises:
        RuntimeError: py-spy failed.
    """
    found = {}
    for pid in pids:
        load = threading.Thread(target=_post, args=(server, upload, seconds + _WARM_UP_S))
        load.start()
        file = folder / str(pid)
        options = [
            "--threads",
            "--pid",
            str(pid),
            "--duration",
            f"{seconds:.0f}",
            "--rate",
            str(_SAMPLES_PER_S),
            "--format",
            "raw",
        ]
        command = [py_spy() or "py-spy", "record", *options, "--output", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
        load.join()
        if result.returncode:
            raise RuntimeError(f"py-spy failed: {result.stderr.strip()}")
        found[pid] = count_stages(file.read_text().splitlines())
    return found


def _summary(name: str, result: dict[str, Any]) -> str:
    lines = [f"{name}, {result['requests_per_s']:,} requests/s:"]
    for kind, stages in result["cpu_us_per_request"].items():
        shown = ", ".join(f"{stage} {us:.0f}" for stage, us in stages.items())
        lines.append(f"  {kind:6} {sum(stages.values()):5.0f} us: {shown}")
    return "\n".join(lines)


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per upload and kind of process."""
    rows = []
    for upload, result in report["results"].items():
        for kind, stages in result["cpu_us_per_request"].items():
            shown = ", ".join(f"{stage} {us:.0f}" for stage, us in stages.items() if us >= 1)
            rows.append((upload, kind, f"{sum(stages.values()):.0f} us", shown))
    return tables.markdown(("upload", "process", "CPU per request", "by stage, in microseconds"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("profile", __doc__)
    parser.add_argument("--seconds", type=float, default=8, help="length of each sampling (default: %(default)s)")
    options = command_line.parse(parser, arguments)
    wrk.require()
    uploads = {"700-byte PNG": pictures.small_png(), "65 KB JPEG": pictures.noisy_jpeg(65_000)}
    profiles = {}
    for name, upload in uploads.items():
        profiles[name] = profile(upload, options.seconds)
        print(_summary(name, profiles[name]), flush=True)
    results.write(options.out, {"connections": _CONNECTIONS, "results": profiles})


if __name__ == "__main__":
    main()
