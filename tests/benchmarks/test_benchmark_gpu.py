"""The GPU benchmark, as far as it runs without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import goals
from benchmarks.gpu_parts.table import table
from benchmarks.gpu_parts.timing import peak_tflops, share_of_peak
from tests.support import forked_servers, gpu_benchmark
from tests.support.server import ROOT


def run(tmp_path: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Run the benchmark, forked as its parts are; return how it ended, and its report."""
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", gpu_benchmark.__name__, "--device", "cpu", "--quick", "--out", str(file), *options]
    ended = forked_servers.run(command, cwd=ROOT, env=os.environ, timeout_s=400, imports=gpu_benchmark.IMPORTS)
    assert file.exists(), ended.stderr
    return ended, json.loads(file.read_text())


def test_every_part_runs_on_the_cpu(tmp_path: Path) -> None:
    """Each part but `compiled` produces its figures."""
    ended, report = run(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert list(report["parts"]) == ["alone", "pipeline", "served", "gate", "memory"]
    assert {part["status"] for part in report["parts"].values()} == {"ok"}
    results = {name: part["result"] for name, part in report["parts"].items()}
    assert {row["engine"] for row in results["alone"]["rows"]} == {"transformers", "eager"}
    assert [row["policy"] for row in results["pipeline"]["rows"]] == ["pipelined", "one at a time"]
    assert all(row["images_per_s"] > 0 for row in results["pipeline"]["rows"])
    assert all(row["alone_before_per_s"] > 0 and row["alone_after_per_s"] > 0 for row in results["pipeline"]["rows"])
    assert results["alone"]["matrix_peak_tflops"] > 0
    assert "problems" not in results["alone"]
    assert {"clients", "server"} == set(results["served"]["cores"])
    assert results["served"]["images_per_s"] > 0
    assert results["served"]["at_80_percent"]["p99_ms"] > 0
    assert all(row["passes"] for row in results["gate"]["rows"])
    assert all(f"({part}) " in ended.stdout for part in "abcd")


def test_two_models_share_a_device(tmp_path: Path) -> None:
    """In one process and in two, beside one model alone."""
    ended, report = run(tmp_path, "--only", "sharing")
    found = report["parts"]["sharing"]["result"]
    ways = ("one model", "one process", "two processes")
    assert [(row["how"], row["batch"]) for row in found["rows"]] == [(how, 2) for how in ways]
    assert "problems" not in found
    assert "(f) two processes, batch of 2" in ended.stdout


def test_a_failed_part_does_not_stop_the_others(tmp_path: Path) -> None:
    """The report has the part's status and its last log lines."""
    ended, report = run(tmp_path, "--only", "served,memory", "--set", "engine=nonsense")
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "These parts did not complete: served.")
    assert report["parts"]["served"]["status"] == "error"
    assert any("VIT_API_ENGINE" in line for line in report["parts"]["served"]["log"])
    assert report["parts"]["memory"]["status"] == "ok"
    assert "VIT_API_ENGINE" in ended.stdout


def test_a_part_is_stopped_at_the_time_limit(tmp_path: Path) -> None:
    """Its results so far are kept, and later parts are skipped."""
    ended, report = run(tmp_path, "--only", "compiled,memory", "--minutes", "0.05", gpu_benchmark.FRESH_PARTS)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "These parts did not complete: compiled, memory.")
    parts = report["parts"]
    assert parts["compiled"]["status"] == "stopped: out of time"
    assert parts["memory"]["status"] == "skipped"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_benchmark_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a message, exits with status 2, and writes no result."""
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--out", str(tmp_path / "gpu.json")])
    assert caught.value.code == 2
    assert "There is no CUDA device. torch " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Tesla T4", 65.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_peaks_of_gpus(name: str, tflops: float | None) -> None:
    """Each GPU has the peak of its model, and an unknown one has none."""
    assert peak_tflops(name, "float16") == tflops
    expected = None if tflops is None else pytest.approx(6000 * 35.1e9 / (tflops * 1e12), abs=1e-4)
    assert share_of_peak(6000, name, "float16") == expected


def test_the_table_of_a_gpus_report() -> None:
    """Each figure is shown beside its goal; missing ones are omitted."""
    row = {"engine": "cudagraph", "dtype": "bfloat16", "batch": 32, "ms": 4.0, "images_per_s": 8000.0}
    peak = {"connections": 256, "client": "wrk", "requests_per_s": 4800.0, "p50_ms": 20.0, "p99_ms": 31.0}
    parts = {
        "alone": {
            "status": "ok",
            "result": {
                "dtype": "bfloat16",
                "matrix_peak_tflops": 700.0,
                "rows": [row | {"share_of_peak": 0.28, "clocks": {"throttled": {"power cap": 0.5}}}],
            },
        },
        "served": {"status": "ok", "result": {"peak": [peak | {"gpu_busy_share": 0.7, "cores_used": {"http": 9.5}}]}},
        "compiled": {"status": "ok", "result": {"problems": ["no compiler"]}},
        "memory": {"status": "error", "log": ["why"], "result": {"rows": []}},
    }
    found = {name: part["result"] for name, part in parts.items()}
    text = table({"parts": parts, "goals": {"on": goals.HARDWARE, "verdicts": goals.verdicts(found)}})
    assert "8,000 images/s (goal: 9,000), 4.000 ms, 28.0% of the peak; power cap 50% of the time" in text
    assert "700 TFLOP/s" in text
    assert "(a) images/s of the model only, batches of 32, at least 9,000: 8,000: NOT met" in text
    assert "(c) peak over HTTP, share of the model only, at least 0.6: not measured" in text
    assert "4,800 images/s, 0.60 of (a) (goal: 0.6)" in text
    assert "GPU busy 70%" in text
    assert "no compiler" in text
    name, status, why = text.splitlines()[-2].split() + text.splitlines()[-1:]
    assert (name, status, why) == ("memory", "error", "    why")
