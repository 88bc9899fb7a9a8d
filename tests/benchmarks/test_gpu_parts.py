"""The parts of the GPU benchmark that need no GPU: goals, clocks, cores and failed measurements."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu_parts import alone, clocks, goals
from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.served import split_cores
from benchmarks.gpu_parts.timing import measured_tflops, seconds_per_call
from benchmarks.harness import checkpoints
from tests.support.fake_nvml import TWO_GPUS, FakeNvml
from vit_api.checkpoints.checkpoint import load_checkpoint


@pytest.fixture
def part(tmp_path: Path) -> Part:
    """Return a quick part on the CPU."""
    checkpoints.save_tiny_vit(tmp_path / "checkpoint")
    return Part(tmp_path / "checkpoint", "cpu", True, 60.0, tmp_path / "part.json", {})


def _row(engine: str, dtype: str, batch: int, images_per_s: float) -> dict[str, Any]:
    return {"engine": engine, "dtype": dtype, "batch": batch, "images_per_s": images_per_s}


_RESULTS: dict[str, Any] = {
    "alone": {
        "dtype": "bfloat16",
        "matrix_peak_tflops": 700.0,
        "rows": [
            _row("eager", "bfloat16", 32, 9_100.0),
            _row("eager", "bfloat16", 1, 400.0),
            _row("cudagraph", "bfloat16", 32, 10_000.0),
            _row("transformers", "bfloat16", 32, 99_999.0),
            _row("eager", "float16", 32, 99_999.0),
        ],
    },
    "pipeline": {"rows": [{"policy": "pipelined", "share_of_alone": 0.94}]},
    "served": {"images_per_s": 8_000.0, "at_80_percent": {"p99_ms": 40.0}},
}


def test_each_goal_has_a_verdict() -> None:
    """The verdicts are of the best engine in the dtype of `auto`, at the largest batch size."""
    assert goals.best_alone(_RESULTS) == 10_000
    assert [(verdict["found"], verdict["met"]) for verdict in goals.verdicts(_RESULTS)] == [
        (10_000, True),
        (10_000, False),
        (0.501, False),
        (0.94, False),
        (0.8, True),
        (0.8, True),
        (40.0, True),
    ]


def test_goals_that_were_not_measured_have_no_verdict() -> None:
    """Some parts may be omitted or have failed."""
    assert {verdict["met"] for verdict in goals.verdicts({})} == {None}
    alone_only = [verdict["met"] for verdict in goals.verdicts({"alone": _RESULTS["alone"]})]
    assert alone_only == [True, False, False, None, None, None, None]


@pytest.mark.parametrize(
    ("cores", "clients", "server"),
    [
        pytest.param([0], [0], [0], id="one core"),
        pytest.param([0, 1], [1], [0], id="two cores"),
        pytest.param(list(range(16)), [13, 14, 15], list(range(13)), id="sixteen cores"),
        pytest.param([3, 5, 8, 9, 12], [12], [3, 5, 8, 9], id="a subset of the machine"),
    ],
)
def test_clients_and_server_have_separate_cores(cores: list[int], clients: list[int], server: list[int]) -> None:
    """Clients get a fifth of the benchmark's cores."""
    assert split_cores(cores) == (clients, server)


def test_clocks_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling starts at once and records the causes of lower clocks, among which idling does not count."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*TWO_GPUS))  # type: ignore[arg-type]
    with clocks.watched("cuda:1") as watched:
        pass
    assert watched.busy_share == 0.87
    assert watched.summary() == {
        "sm_mhz_min": 1395.0,
        "sm_mhz_mean": 1395.0,
        "sm_mhz_limit": 1980.0,
        "watts_mean": 312.5,
        "celsius_max": 71.0,
        "throttled": {"power cap": 1.0},
    }


def test_a_gpu_that_reports_nothing_has_no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MIG slice and the CPU have no summary."""
    silent = frozenset({"clocks", "temperature", "reasons", "power", "utilization"})
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*TWO_GPUS, silent=silent))  # type: ignore[arg-type]
    for device in ("cuda:0", "cpu"):
        with clocks.watched(device) as watched:
            pass
        assert (watched.busy_share, watched.summary()) == (None, {})


def test_a_failed_measurement_does_not_stop_the_others(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed as a problem in the result."""
    prepare = alone.VisionModel.prepare

    def fail_for_one(model: Any, engine: str, *sizes: Any) -> None:
        if engine == "cudagraph":
            raise RuntimeError("a planted failure\nwith details")
        prepare(model, engine, *sizes)

    monkeypatch.setattr(alone.VisionModel, "prepare", fail_for_one)
    checkpoint = load_checkpoint(str(part.folder))
    alone.measure_engines(part, checkpoint, "float32", ("cudagraph", "eager"), (1, 2))
    assert part.result["problems"] == ["cudagraph float32: RuntimeError: a planted failure"]
    assert [(row["engine"], row["batch"]) for row in part.result["rows"]] == [("eager", 2), ("eager", 1)]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        pytest.param((7, 5), ["float16", "float32"], id="T4"),
        pytest.param((9, 0), ["float16", "bfloat16", "float32"], id="H100"),
    ],
)
def test_dtypes_start_with_that_of_auto(
    part: Part, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: list[str]
) -> None:
    """A dtype that the GPU emulates is omitted."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(alone, "VisionModel", lambda *arguments: SimpleNamespace(dtype=torch.float16))
    part.device, part.is_quick = "cuda:0", False
    assert alone.dtypes(part, SimpleNamespace()) == expected  # type: ignore[arg-type]


def test_calls_are_timed_after_a_warm_up() -> None:
    """The warm-up is not part of the measurement."""
    calls: list[int] = []
    cpu = torch.device("cpu")
    assert seconds_per_call(lambda: calls.append(1), cpu, 0.0, 0.0) > 0
    assert len(calls) == 10
    assert measured_tflops(cpu, torch.float32, 0.01, 64) > 0


def test_core_affinity_is_restored() -> None:
    """After the context, the benchmark's process has all its cores again."""
    from benchmarks.gpu_parts.served import _on

    before = os.sched_getaffinity(0)
    with _on([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        pytest.param("cpu", (0, 0), [], id="CPU"),
        pytest.param("cuda:0", (7, 5), ["int8"], id="T4"),
        pytest.param("cuda:0", (8, 9), ["int8", "fp8"], id="L4"),
        pytest.param("cuda:0", (9, 0), ["int8", "fp8"], id="H100"),
    ],
)
def test_scaled_dtypes_are_those_of_the_gpu(
    part: Part, monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int], expected: list[str]
) -> None:
    """The CPU emulates both, which says nothing about speed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    part.device = device
    assert alone.scaled_dtypes(part) == expected
