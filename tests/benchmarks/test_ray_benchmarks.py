"""The benchmarks on Ray run in their shortest form; the figures measured here are meaningless."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bulk, ray_serve
from benchmarks.harness import wrk
from tests.support.ray_environment import needs_ray, only_all


@needs_ray
@only_all
@pytest.mark.parametrize("part", ["rates", "memory", "scaling"])
def test_bulk(part: str, tmp_path: Path) -> None:
    """Both engines classify all files, and are measured."""
    file = tmp_path / "bulk.json"
    bulk.main(["--quick", "--only", part, "--out", str(file)])
    measured = json.loads(file.read_text())["results"][part]
    assert {"local", "ray"} <= set(measured.get("2 layers", measured))


@needs_ray
@only_all
@pytest.mark.skipif(not wrk.is_installed(), reason="wrk is not installed; on Debian: apt-get install wrk")
def test_ray_serve(tmp_path: Path) -> None:
    """Each way to the server answers without an error."""
    file = tmp_path / "ray_serve.json"
    ray_serve.main(["--rounds", "1", "--seconds", "1", "--out", str(file)])
    measured = json.loads(file.read_text())["results"]
    names = ["plain server", "Ray Serve, proxy in Python", "Ray Serve, HAProxy"]
    assert list(measured) == [*names, "Ray Serve, HAProxy, an application that answers at once"]
    assert all(figures["requests_per_s"] > 0 for figures in measured.values())
