"""What the benchmarks on Ray are made of: files, runs and trees of processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bulk, ray_serve
from benchmarks.bulk_parts import files
from benchmarks.bulk_parts.runs import Rate, Run, Sample
from benchmarks.harness.process_tree import ProcessTree
from tests.support.server import wait_until

_BUSY = "sum(range(10**7)); print('done', flush=True); input()"
_PARENT = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "{_BUSY}"], start_new_session=True).wait()
"""


def test_what_one_more_image_takes() -> None:
    """It is seen in the middle of a run: its start and its end are left out."""
    seen = [(0, 0, 1.0), (10, 0, 7.0), (12, 256, 10.0), (14, 512, 12.0), (18, 896, 15.84), (30, 1024, 19.0)]
    samples = [Sample(at_s, done, cpu_s, 0) for at_s, done, cpu_s in seen]
    rate = Rate.of(Run(1024, seconds=30.0, samples=samples))
    assert rate.images_per_s == pytest.approx(640 / 6)
    assert rate.cpu_us == pytest.approx(5.84 / 640 * 1e6)
    assert rate.start_s == pytest.approx(30 - 1024 * 6 / 640)


def test_a_run_that_is_too_short() -> None:
    """Nothing is said of a run whose middle was not seen."""
    with pytest.raises(RuntimeError, match="more images"):
        Rate.of(Run(100, seconds=1.0, samples=[Sample(0, 0, 0, 0), Sample(1, 100, 1, 0)]))


def test_a_folder_of_links(tmp_path: Path) -> None:
    """It has as many names as were asked for, and a few distinct contents, each an image."""
    files.link(tmp_path / "pngs", files.small_pngs(), distinct=3, names=8, suffix=".png")
    found = sorted((tmp_path / "pngs").iterdir())
    assert len(found) == 8
    assert len({file.read_bytes() for file in found}) == len({file.stat().st_ino for file in found}) == 3


def test_a_tree_has_the_descendants_of_any_session() -> None:
    """Their CPU time counts after their end, too; their memory, while they live."""
    with (
        subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        ProcessTree(process.pid) as tree,
    ):
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        wait_until(lambda: len(tree.living()) == 2 and tree.cpu_seconds() > 0.1)
        used, memory = tree.cpu_seconds(), tree.memory_bytes()
        assert memory > 2**20
        process.communicate(b"\n")
        wait_until(lambda: not tree.living())
        assert tree.memory_bytes() == 0
    assert tree.cpu_seconds() >= used


def test_the_tables() -> None:
    """Each comparison has a line."""
    figures = {"images_per_s": 90.0, "cpu_us": 3000.0, "start_s": 9.0, "of_limit": 0.9, "cpu_of_limit": 0.8}
    memory = {"files": 100, "early_mib": 500, "late_mib": 510, "ratio": 1.02}
    measured = {
        "rates": {"2 layers": {"limit": figures, "local": figures, "ray": figures}},
        "memory": {"local": memory, "ray": memory},
        "scaling": {"local": 1.9, "ray": 1.8},
    }
    lines = bulk.table({"results": measured}).splitlines()
    assert len(lines) == 2 + 4 + 2 + 2
    assert "| 2 layers, on Ray: images/s | 90.0 | 90.0 | 0.9 | 0.85 |" in lines
    assert len(bulk.table({"results": {"memory": measured["memory"]}}).splitlines()) == 2 + 2
    row = {"requests_per_s": 500.0, "cpu_us_per_request": 3000, "rate_of_plain": 0.8, "cpu_of_plain": 1.2}
    assert ray_serve.table({"results": {"plain server": row, "Ray Serve, HAProxy": row}}).count("\n") == 3
