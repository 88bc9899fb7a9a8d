"""The benchmarks run, in their shortest form; what they measure here means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cache_hit, cache_memory, overload, pictures, soak, wrk


@pytest.mark.skipif(not wrk.is_installed(), reason="wrk is not installed; on Debian: apt-get install wrk")
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
