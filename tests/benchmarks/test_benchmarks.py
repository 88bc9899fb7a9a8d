"""The benchmarks run, in their shortest form; what they measure here means nothing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    accuracy,
    batching,
    cache_hit,
    cache_memory,
    compare,
    load,
    overload,
    profile,
    report,
    scaling,
    soak,
)
from benchmarks.harness import client, pictures, scrape, summary, wrk
from benchmarks.harness.no_server import NoServer
from tests.support.server import ROOT, RunningServer

needs_wrk = pytest.mark.skipif(not wrk.is_installed(), reason="wrk is not installed; on Debian: apt-get install wrk")


@needs_wrk
def test_cache_hit(tmp_path: Path) -> None:
    """Each case has rates of both servers, with no failed request."""
    result = tmp_path / "result.json"
    cache_hit.main(["--rounds", "1", "--json", str(result)])
    content = json.loads(result.read_text())
    assert [case["case"] for case in content["results"]] == ["raw PNG", "raw JPEG", "form PNG", "form JPEG"]
    assert all(min(case["requests_per_s"].values()) > 0 for case in content["results"])
    assert content["machine"]["cores"] >= 1


def test_the_uploads_have_the_sizes_that_are_named() -> None:
    """About 700 bytes and 65 KB."""
    png, jpeg = pictures.small_png(), pictures.noisy_jpeg(65_000)
    assert 500 < len(png) < 900
    assert 60_000 < len(jpeg) < 70_000


def test_cache_memory(tmp_path: Path) -> None:
    """An entry takes some hundred bytes to a few KB."""
    result = tmp_path / "result.json"
    cache_memory.main(["--entries", "20000", "--json", str(result)])
    assert 300 < json.loads(result.read_text())["result"]["bytes_per_entry"] < 5000


def test_overload(tmp_path: Path) -> None:
    """At three times the capacity each request is answered or told when to come back, and memory doesn't grow."""
    result = tmp_path / "result.json"
    overload.main(["--rounds", "1", "--seconds", "3", "--json", str(result)])
    report = json.loads(result.read_text())["result"]
    assert set(report["statuses"]) <= {"200", "503"}
    assert report["statuses"]["200"] > 0
    assert report["all_refusals_say_when"]
    assert report["memory_mb"]["after"] < report["memory_mb"]["before"] + 64


def test_soak(tmp_path: Path) -> None:
    """Half a minute of mixed traffic, with a worker killed: nothing is lost."""
    result = tmp_path / "result.json"
    soak.main(["--minutes", "0.6", "--json", str(result)])
    report = json.loads(result.read_text())
    assert report["kills"] == {"worker": 1}
    assert report["requests"] > 100
    assert report["lost"] == []


_STAGES = ("decode", "queue_wait", "batch_duration")


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--concurrency", "1,6", "--processes", "2"], id="closed loop"),
        pytest.param(["--rate", "40", "--form", "--repeat-share", "0.5"], id="open loop, forms, repeats"),
        pytest.param(["--rate", "40", "--arrivals", "constant", "--unique"], id="open loop, even"),
    ],
)
def test_load(digits_server: RunningServer, tmp_path: Path, options: list[str]) -> None:
    """All requests of each load are answered, and the report says what the server says of itself."""
    file, plot = tmp_path / "load.json", tmp_path / "load.png"
    common = ["--seconds", "1", "--warm-up", "0.5", "--json", str(file), "--plot", str(plot)]
    load.main([digits_server.url, *options, *common])
    runs = read(file)["runs"]
    assert len(runs) == (2 if "--concurrency" in options else 1)
    for run in runs:
        assert run["errors"] == {}
        assert run["goodput_per_s"] > 0
        assert run["latency_ms"]["p50"] > 0
        assert run["server"]["mean_batch_size"] >= 1
        assert run["metrics"]["mean_batch_size"] >= 1
        assert run["metrics"]["decode_ms"] > 0
        assert run["metrics"]["queue_ms"] > 0
        assert run["metrics"]["inference_ms"] > 0
        assert ("hit" in run["cache"]) == ("--repeat-share" in options)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_load_counts_errors(digits_server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that are no images are refused, by name."""
    images, file = tmp_path / "images", tmp_path / "load.json"
    images.mkdir()
    (images / "text").write_text("not an image")
    with pytest.raises(SystemExit, match="no request was answered"):
        load.main([digits_server.url, "--images", str(images), "--rate", "30", "--seconds", "1", "--json", str(file)])
    assert list(read(file)["runs"][0]["errors"]) == ["unsupported_image"]
    assert "unsupported_image" in capsys.readouterr().out


def test_load_of_no_server() -> None:
    """An address where nobody listens is said at once."""
    with pytest.raises(SystemExit, match="can't be reached"):
        load.main(["http://127.0.0.1:9"])


def test_an_open_loop_hides_no_stall() -> None:
    """Latency counts from when a request was meant to go, though it went later."""
    reply = client.Reply(intended_s=1.0, sent_s=3.0, done_s=3.5, outcome="ok")
    result = summary.summarise([client.Shift([reply], 0.9)], seconds=4)
    assert result["latency_ms"]["p50"] == 2500
    assert len(summary.warnings(result)) == 2


def test_mean_batch_is_of_batches_not_of_images() -> None:
    """Three images in one batch and one alone are two batches."""
    replies = [client.Reply(0, 0, 0.1, "ok", "miss", size) for size in (3, 3, 3, 1)]
    result = summary.summarise([client.Shift(replies, 0.1)], seconds=1)
    assert result["server"]["mean_batch_size"] == 2


def test_late_answers_are_no_goodput() -> None:
    """What came after the limit, or after the load's end, doesn't count."""
    replies = [client.Reply(0, 0, done_s, "ok") for done_s in (0.1, 0.3, 1.2)]
    result = summary.summarise([client.Shift(replies, 0.1)], seconds=1, goodput_ms=200)
    assert (result["requests_per_s"], result["goodput_per_s"]) == (2, 1)


@pytest.fixture(scope="module")
def compared() -> Iterator[tuple[list[compare.Subject], NoServer]]:
    """Run what the comparison compares, for both clients."""
    with compare.subjects("digits", "auto") as subjects, NoServer.running("digits", "auto") as limit:
        yield subjects, limit


@pytest.mark.parametrize("has_wrk", [pytest.param(True, marks=needs_wrk, id="wrk"), pytest.param(False, id="bundled")])
def test_compare(
    compared: tuple[list[compare.Subject], NoServer], has_wrk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each server answers each request, and all have a ratio."""
    subjects, limit = compared
    file = tmp_path / "compare.json"
    monkeypatch.setattr(compare, "subjects", lambda *_: contextlib.nullcontext(subjects))
    monkeypatch.setattr(NoServer, "running", lambda *_: contextlib.nullcontext(limit))
    monkeypatch.setattr(wrk, "is_installed", lambda: has_wrk)
    monkeypatch.setattr(compare, "uploads", lambda: {"PNG": pictures.small_png()})
    compare.main(["--rounds", "1", "--seconds", "1", "--connections", "4", "--json", str(file)])
    for result in read(file)["results"]:
        assert len(result["servers"]) == 3
        assert result["limit_per_s"] > 0
        assert all(ratio > 0 for ratio in result["ratios"].values())


def test_batching(tmp_path: Path) -> None:
    """A fixed window makes a lone request wait; letting it go does not."""
    file = tmp_path / "batching.json"
    batching.main(["--rates", "20", "--rounds", "1", "--seconds", "2", "--json", str(file)])
    by_policy = {result["policy"]: result for result in read(file)["results"]}
    assert set(by_policy) == {"this server", "fixed window", "no waiting"}
    assert all(sum(result["batches"].values()) > 0 for result in by_policy.values())


def test_accuracy(tmp_path: Path) -> None:
    """Every dtype, and the fast decoding, pass the gate with the embedded model."""
    file = tmp_path / "accuracy.json"
    accuracy.main(["--json", str(file)])
    assert len(read(file)["results"]) == 6


def test_an_option_that_is_off_fails_the_gate() -> None:
    """By a probability, or by another first class where the first was clear."""
    reference = np.array([[0.6, 0.4], [0.9, 0.1]])
    assert accuracy.compare(reference, reference + np.array([0.01, -0.01]), 0.01)["passes"]
    assert not accuracy.compare(reference, reference + np.array([0.03, -0.03]), 0.01)["passes"]
    close = np.array([[0.506, 0.494]])
    assert not accuracy.compare(close, close[:, ::-1], 0.01)["passes"]
    assert accuracy.compare(close, close[:, ::-1], 0.04)["passes"]


def test_stages_of_a_profile() -> None:
    """The innermost frame that belongs to a stage decides; waiting for work takes no time."""
    lines = [
        'thread (7): "decode_0";ViTAPI.decode_request (vit_api/lit_api.py:80);load (PIL/ImageFile.py:4) 3',
        'thread (7): "decode_0";_worker (concurrent/futures/thread.py:81) 9',
        'thread (5): "MainThread";run_asgi (uvicorn/x.py:1);Classifier._hash (vit_api/web/core/classifier.py:9) 2',
    ]
    assert profile.count_stages(lines) == {7: {"decode": 3}, 5: {"hash": 2}}


@needs_wrk
def test_scaling(tmp_path: Path) -> None:
    """Both decodings serve a camera's picture."""
    file = tmp_path / "scaling.json"
    scaling.main(["--only", "camera", "--rounds", "1", "--seconds", "1", "--json", str(file)])
    assert read(file)["results"]["camera"]["smooth"]["ratio"] > 0


def test_the_page_has_the_results() -> None:
    """benchmarks/README.md says what the result files say; `python -m benchmarks.report` writes it."""
    page = report.README.read_text()
    assert report.render(page) == page


def test_metrics_cost(tmp_path: Path) -> None:
    """In a process of its own, since prometheus_client chooses its storage as it is imported."""
    file = tmp_path / "cost.json"
    options = ["--rounds", "1", "--counts", "100", "--json", str(file)]
    subprocess.run([sys.executable, "-m", "benchmarks.metrics_cost", *options], cwd=ROOT, check=True, timeout=60)
    assert set(read(file)["us_per_hit"]) == {"ours", "prometheus_client"}


def test_means_of_what_ran_between_two_scrapes() -> None:
    """A stage that nothing went through has none, nor has a server without such metrics."""
    before = {"inference_batch_size_sum": 10.0, "inference_batch_size_count": 5.0}
    before |= {f"inference_{stage}_seconds_{end}": 1.0 for stage in _STAGES for end in ("sum", "count")}
    after = before | {"inference_batch_size_sum": 40.0, "inference_batch_size_count": 10.0}
    after |= {"inference_decode_seconds_sum": 1.5, "inference_decode_seconds_count": 101.0}
    assert scrape.means(before, after) == {"decode_ms": 5.0, "mean_batch_size": 6.0}
    assert scrape.means(None, after) == {}
