"""What a GPU achieves: the model only, the pipeline, the whole server, accuracy, memory and energy.

    python -m benchmarks.gpu --out gpu.json

Takes up to 6 minutes on an otherwise idle GPU, with a seeded ViT-B/16 and without a network. Each part runs in its own
process with a time limit. A part that fails is noted in the result, which is written again after each part.
torch.compile takes minutes: `--only compiled` measures it; `--only sharing` has two small models on one device.
`--device cpu --quick` checks with a tiny model what can run without a GPU; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_parts import goals
from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.table import table
from benchmarks.harness import machine, results
from vit_api.environment.devices import CudaReport, ask_torch, reason

_NO_CUDA = 2
_GRACE_S = 40.0
"""The time that a stopped part has to stop its server."""
_LOG_LINES = 60
_Start = Callable[..., "subprocess.Popen[bytes]"]


class _Planned(NamedTuple):
    """A part, and its maximum share of the remaining time."""

    run: Callable[[Part], None]
    share: float


def _alone(part: Part) -> None:
    from benchmarks.gpu_parts import alone

    alone.run(part)


def _compiled(part: Part) -> None:
    from benchmarks.gpu_parts import alone, gate

    alone.run_compiled(part)
    gate.judge_compiled(part)


def _pipeline(part: Part) -> None:
    from benchmarks.gpu_parts import pipeline

    pipeline.run(part)


def _served(part: Part) -> None:
    from benchmarks.gpu_parts import served

    served.run(part)


def _gate(part: Part) -> None:
    from benchmarks.gpu_parts import gate

    gate.run(part)


def _memory(part: Part) -> None:
    from benchmarks.gpu_parts import memory

    memory.run(part)


def _sharing(part: Part) -> None:
    from benchmarks.gpu_parts import sharing

    sharing.run(part)


# In this order.
_PARTS = {
    "alone": _Planned(_alone, 0.3),
    "pipeline": _Planned(_pipeline, 0.35),
    "served": _Planned(_served, 0.5),
    "gate": _Planned(_gate, 0.5),
    "memory": _Planned(_memory, 0.5),
    "compiled": _Planned(_compiled, 1.0),
    "sharing": _Planned(_sharing, 1.0),
}
_DEFAULT_PARTS = "alone,pipeline,served,gate,memory"


def main(arguments: Sequence[str] | None = None, *, start: _Start = subprocess.Popen) -> None:
    """Run the parts of the command line; exit with status 2 without a GPU, 1 if a part failed.

    Args:
        arguments: The command line (default: this process's).
        start: Starts the process of a part, with the arguments of `subprocess.Popen`.
    """
    options = _parser().parse_args(arguments)
    if options.part:
        _run_here(options)
        return
    refusal = None if options.quick else results.refusal(options.out)
    if refusal:
        sys.exit(refusal)
    gpu = ask_torch() if options.device.startswith("cuda") else None
    if gpu is not None and not gpu.usable:
        print(f"There is no CUDA device. {reason(gpu)} `--device cpu --quick` runs what can run without one.")
        sys.exit(_NO_CUDA)
    with tempfile.TemporaryDirectory() as folder:
        report = _run(options, gpu, Path(folder), start)
    print(table(report))
    failed = [name for name, part in report["parts"].items() if part["status"] != "ok"]
    if failed:
        sys.exit(f"These parts did not complete: {', '.join(failed)}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("gpu.json"), help="result file (default: %(default)s)")
    add("--device", default="cuda:0", help="device in torch's notation (default: %(default)s)")
    add("--quick", action="store_true", help="a tiny model and short measurements that mean nothing")
    add("--minutes", type=float, default=5.5, help="time limit of all parts together (default: %(default)s)")
    add("--only", default=_DEFAULT_PARTS, help="parts, separated by commas (default: %(default)s)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a server setting, such as api_servers=8")
    add("--part", choices=_PARTS, help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    add("--seconds", type=float, help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace, gpu: CudaReport | None, folder: Path, start: _Start) -> dict[str, Any]:
    """Run all parts one by one; return the report, which is written after each."""
    from benchmarks.harness import checkpoints

    deadline = time.monotonic() + options.minutes * 60
    checkpoint = folder / "checkpoint"
    (checkpoints.save_tiny_vit if options.quick else checkpoints.save_vit_base)(checkpoint)
    report: dict[str, Any] = {
        "machine": machine.describe(),
        "device": options.device,
        "gpu": None if gpu is None else dataclasses.asdict(gpu),
        "model": "tiny" if options.quick else "ViT-B/16, seeded",
        "parts": {},
    }
    for name in options.only.split(","):
        seconds = (deadline - time.monotonic()) * _PARTS[name].share
        print(f"{name}: up to {max(0.0, seconds):.0f} s ...", flush=True)
        report["parts"][name] = _run_part(options, name, folder, seconds, start)
        if not options.quick:
            found = {name: part["result"] for name, part in report["parts"].items()}
            report["goals"] = {"on": goals.HARDWARE, "verdicts": goals.verdicts(found)}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{name}: {report['parts'][name]['status']}", flush=True)
    return report


def _run_part(options: argparse.Namespace, name: str, folder: Path, seconds: float, start: _Start) -> dict[str, Any]:
    """Run a part in a new process; return its findings and how it ended."""
    if seconds < 1:
        return {"status": "skipped", "why": "no time left", "result": {}}
    file, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--device", options.device, "--out", str(file)]
    command += ["--folder", str(folder / "checkpoint"), "--seconds", str(seconds)]
    command += [f"--set={setting}" for setting in options.set] + ["--quick"] * options.quick
    started = time.monotonic()
    with log.open("wb") as output:
        process = start(command, cwd=machine.ROOT, env=None, stdout=output, stderr=output)
        status = _wait(process, seconds)
    part = {"status": status, "seconds": round(time.monotonic() - started, 1)}
    lines = log.read_text(errors="replace").splitlines()
    warnings = [line for line in lines if "WARNING" in line][:_LOG_LINES]
    part |= {"log": lines[-_LOG_LINES:]} if status != "ok" else {"warnings": warnings} if warnings else {}
    return part | {"result": json.loads(file.read_text()) if file.exists() else {}}


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a part, and stop it at its time limit; return how it ended."""
    try:
        return "ok" if process.wait(seconds) == 0 else "error"
    except subprocess.TimeoutExpired:
        process.terminate()
    except BaseException:  # such as Ctrl-C; the part's server must not outlive it
        process.terminate()
        process.wait(_GRACE_S)
        raise
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return "stopped: out of time"


def _run_here(options: argparse.Namespace) -> None:
    """Run a part in this process."""
    from vit_api.logs import configure_logging
    from vit_api.model.compile_cache import keep_compiled_code

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))  # contexts end, and with them their servers
    configure_logging("info", "text")
    keep_compiled_code()
    import vit_api.model.model  # noqa: F401 - every part needs it

    settings = dict(setting.split("=", 1) for setting in options.set)
    # The process's start takes some of the time. A part checks its time before each measurement.
    seconds = 0.9 * options.seconds
    part = Part(options.folder, options.device, options.quick, seconds, options.out, settings)
    _PARTS[options.part].run(part)


if __name__ == "__main__":
    main()
