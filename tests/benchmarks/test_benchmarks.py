"""The benchmarks run in their shortest form; the figures measured here are meaningless."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    accuracy,
    answer_table,
    batching,
    cache_hit,
    overload,
    profile,
    scaling,
    soak,
    urgency,
    versions,
    worst_uploads,
)
from benchmarks.harness import pictures, wrk
from tests.support.server import ROOT

needs_wrk = pytest.mark.skipif(not wrk.is_installed(), reason="wrk is not installed; on Debian: apt-get install wrk")


@needs_wrk
def test_cache_hit(tmp_path: Path) -> None:
    """Each case has the rates of both servers, without failed requests."""
    result = tmp_path / "result.json"
    cache_hit.main(["--rounds", "1", "--seconds", "0.3", "--out", str(result)])
    content = json.loads(result.read_text())
    assert [case["case"] for case in content["results"]] == ["raw PNG", "raw JPEG", "form PNG", "form JPEG"]
    for case in content["results"]:
        assert set(case["servers"]) == {"this server", *case["ratios"]}
        assert all(min(server.values()) > 0 for server in case["servers"].values())
    assert set(content["results"][0]["ratios"]) == {"bare uvicorn", "bare protocol"}
    assert cache_hit.table(content).count("\n") == 7
    assert content["machine"]["cores"] >= 1


def test_sizes_of_the_uploads() -> None:
    """The PNG has about 700 bytes, and the JPEG 65 KB."""
    png, jpeg = pictures.small_png(), pictures.noisy_jpeg(65_000)
    assert 500 < len(png) < 900
    assert 60_000 < len(jpeg) < 70_000


def test_answer_table(tmp_path: Path) -> None:
    """Every kind of look-up is measured, and an entry has a plausible size."""
    file = tmp_path / "answer_table.json"
    answer_table.main(["--rounds", "1", "--entries", "2000", "--look-ups", "200", "--out", str(file)])
    result = read(file)["result"]
    for costs in result["us_per_look_up"].values():
        assert set(costs) == {"nothing", "local hit", "shared hit", "rendering"}
        assert min(costs.values()) > 0
    assert all(200 < size < 500 for size in result["bytes_per_entry"].values())


def test_cache_memory(tmp_path: Path) -> None:
    """An entry takes hundreds of bytes to a few KB."""
    result = tmp_path / "result.json"
    # In a process of its own: this one may have memory to reuse.
    command = [sys.executable, "-m", "benchmarks.cache_memory", "--entries", "20000", "--out", str(result)]
    subprocess.run(command, cwd=ROOT, timeout=120, check=True)
    assert 300 < json.loads(result.read_text())["result"]["bytes_per_entry"] < 5000


def test_overload(tmp_path: Path) -> None:
    """At three times the capacity, each request gets a result or a 503 with Retry-After, and memory doesn't grow."""
    result = tmp_path / "result.json"
    overload.main(["--rounds", "1", "--seconds", "1", "--out", str(result)])
    report = json.loads(result.read_text())["result"]
    assert set(report["statuses"]) <= {"200", "503"}
    assert report["statuses"]["200"] > 0
    assert report["all_refusals_say_when"]
    assert report["memory_mb"]["after"] < report["memory_mb"]["before"] + 64


def test_urgency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class has its responses, and the table shows them."""
    monkeypatch.setattr(urgency, "_LAYERS", 4)  # a queue full of images takes a second
    file = tmp_path / "result.json"
    urgency.main(["--rounds", "1", "--seconds", "1", "--out", str(file)])
    report = read(file)
    result = report["result"]
    assert set(result["normal"]["statuses"]) <= {"200", "503"}
    assert set(result["low"]["statuses"]) <= {"200", "503"}
    assert set(result["hasty"]["statuses"]) <= {"200", "503", "504"}
    assert result["low_answered_per_s"] > 0
    assert result["all_refusals_say_when"]
    assert urgency.table(report).count("\n") == 5


@needs_wrk
def test_versions(tmp_path: Path) -> None:
    """No request fails, and no client has both versions, while one takes over; a dying worker harms no other."""
    pytest.importorskip("tritonclient.http")
    file = tmp_path / "result.json"
    versions.main(["--clients", "64", "--connections", "8", "--requests", "512", "--kills", "1", "--out", str(file)])
    report = read(file)
    changing, killing = report["result"]["changing"], report["result"]["killing"]
    assert changing["requests"] >= 512
    assert (changing["failed"], set(changing["by_tritonclient"])) == (0, {"ok"})
    steps = {step["step"]: step for step in changing["steps"]}
    assert all(step["is_inside"] and step["clients"] == 64 for step in steps.values()), steps
    assert not any(step["clients_with_both"] for step in steps.values())
    assert set(steps["50% to version 2"]["moves"]) == {"1 to 2"}
    assert steps["rolled back"]["moves"] == {"2 to 1": 64}
    assert (killing["deaths"], killing["failed"]) == (1, 0)
    assert versions.table(report).count("\n") == 13


def test_a_share_of_few_clients_is_in_its_interval() -> None:
    """As tables of the binomial distribution have it: 99.9% of 4,000 tosses have 1,896 to 2,104 heads."""
    assert versions.interval(0.5, 4000) == (1895.9, 2104.1)
    assert versions.interval(0.0, 4000) == (0, 0)


def test_soak(tmp_path: Path) -> None:
    """No request of some seconds of mixed traffic is lost when a worker is killed."""
    result = tmp_path / "result.json"
    soak.main(["--minutes", "0.16", "--kill-every", "5.3", "--out", str(result)])
    report = json.loads(result.read_text())
    assert report["kills"] == {"worker": 1}
    assert report["requests"] > 100
    assert report["lost"] == []


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_batching(tmp_path: Path) -> None:
    """Each of the three batching policies is measured."""
    file = tmp_path / "batching.json"
    batching.main(["--rates", "20", "--rounds", "1", "--seconds", "1", "--out", str(file)])
    by_policy = {result["policy"]: result for result in read(file)["results"]}
    assert set(by_policy) == {"this server", "fixed window", "no waiting"}
    assert all(sum(result["batches"].values()) > 0 for result in by_policy.values())


def test_accuracy(tmp_path: Path) -> None:
    """Every dtype and the default decoding pass the gate with the embedded model."""
    file = tmp_path / "accuracy.json"
    accuracy.main(["--max-images", "100", "--out", str(file)])
    assert len(read(file)["results"]) == 6


def test_a_deviation_fails_the_gate() -> None:
    """A probability that differs fails it, and so does another top class where the reference was clear."""
    reference = np.array([[0.6, 0.4], [0.9, 0.1]])
    assert accuracy.compare(reference, reference + np.array([0.01, -0.01]), 0.01)["passes"]
    assert not accuracy.compare(reference, reference + np.array([0.03, -0.03]), 0.01)["passes"]
    close = np.array([[0.506, 0.494]])
    assert not accuracy.compare(close, close[:, ::-1], 0.01)["passes"]
    assert accuracy.compare(close, close[:, ::-1], 0.04)["passes"]


def test_stages_of_a_profile() -> None:
    """The innermost frame that belongs to a stage decides; waiting for work is not counted."""
    lines = [
        'thread (7): "decode_0";ViTAPI.decode_request (vit_api/lit_api.py:80);load (PIL/ImageFile.py:4) 3',
        'thread (7): "decode_0";_worker (concurrent/futures/thread.py:81) 9',
        'thread (7): "decode_0";DecodeTurns._run (decode_turns.py:95);Condition.wait (threading.py:327) 5',
        'thread (5): "MainThread";run_asgi (uvicorn/x.py:1);_hash (vit_api/web/core/classifier.py:9) 2',
    ]
    assert profile.count_stages(lines) == {7: {"decode": 3}, 5: {"hash": 2}}


def test_threads_that_decode_share_their_cpu_time() -> None:
    """Another one than that which was measured may be sampled; the main thread's time is its own."""
    samples = {1: Counter(parse=1, send=1), 3: Counter(decode=3, pipe=1)}
    assert profile._by_stage(1, {1: 2.0, 2: 4.0, 3: 0.0}, samples) == {
        "parse": 1.0,
        "send": 1.0,
        "decode": 3.0,
        "pipe": 1.0,
    }


@pytest.mark.parametrize("frame", [frame for frames in profile.STAGES.values() for frame in frames])
def test_functions_of_stages_exist(frame: str) -> None:
    """After a rename, their time would be attributed to another stage."""
    function, _, place = frame.rpartition(" (") if " (" in frame else ("", "", frame)
    if place.startswith("vit_api/"):
        source = (ROOT / place).read_text()
        assert not function or re.search(rf"def {function}\b", source)
    elif not place.startswith(profile.OTHERS_CODE):
        *classes, function = place.split(".")
        sources = [file.read_text() for file in (ROOT / "vit_api").rglob("*.py")]
        indent = "    " * len(classes)
        patterns = [rf"^class {name}\b" for name in classes] + [rf"^{indent} *(async )?def {function}\b"]
        assert any(all(re.search(pattern, source, re.MULTILINE) for pattern in patterns) for source in sources)


@needs_wrk
def test_scaling(tmp_path: Path) -> None:
    """Both decode modes serve a camera's photo."""
    file = tmp_path / "scaling.json"
    scaling.main(["--only", "camera", "--rounds", "1", "--seconds", "1", "--out", str(file)])
    assert read(file)["results"]["camera"]["smooth"]["ratio"] > 0


def test_metrics_cost(tmp_path: Path) -> None:
    """It runs in a subprocess, since prometheus_client chooses its storage at import."""
    file = tmp_path / "cost.json"
    options = ["--rounds", "1", "--counts", "100", "--out", str(file)]
    subprocess.run([sys.executable, "-m", "benchmarks.metrics_cost", *options], cwd=ROOT, check=True, timeout=60)
    assert set(read(file)["us_per_hit"]) == {"ours", "predictions", "prometheus_client"}


def test_worst_uploads(tmp_path: Path) -> None:
    """The formats that are asked for are accepted, and have their time and memory."""
    file = tmp_path / "worst.json"
    formats = ["--only", "GIF", "--only", "HEIC"]
    worst_uploads.main(["--repeats", "1", "--share", "0.1", *formats, "--out", str(file)])
    by_format = read(file)["result"]["by_format"]
    assert list(by_format) == ["GIF", "HEIC"]
    assert all(one["seconds"] > 0 for one in by_format.values())
    assert worst_uploads.table(read(file)).count("\n") == 3
