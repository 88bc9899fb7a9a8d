"""`make results`: runs all benchmarks with a committed result, one by one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, rerun
from benchmarks.harness import machine


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the list of commands run, of which those of `scaling` fail."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, int("benchmarks.scaling" in command))

    monkeypatch.setattr(rerun.subprocess, "run", run)
    monkeypatch.setattr(machine, "uncommitted", list)
    return commands


def test_every_benchmark_is_planned() -> None:
    """The plan has each benchmark with a table."""
    assert {planned.name for planned in rerun.PLAN} == set(report.TABLES)


def test_a_failed_benchmark_does_not_stop_the_others(ran: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """The expected time is printed first, the tables are written at the end, and the failure is named."""
    with pytest.raises(SystemExit, match="Failed: scaling; see above"):
        rerun.main([])
    modules = [command[2] for command in ran]
    assert modules == [*(f"benchmarks.{planned.name}" for planned in rerun.PLAN), *rerun._TABLES]
    assert all(len(command) == 3 for command in ran)
    assert capsys.readouterr().out.startswith(f"{len(rerun.PLAN)} benchmarks, about ")


def test_quick_runs_write_elsewhere(ran: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """They may measure a changed tree, write outside the repository, and update no table."""
    monkeypatch.setattr(machine, "uncommitted", lambda: ["server.py"])
    rerun.main(["--quick", "soak", "accuracy"])
    assert [command[2] for command in ran] == ["benchmarks.accuracy", "benchmarks.soak"]
    for command in ran:
        assert not Path(command[command.index("--out") + 1]).is_relative_to(machine.ROOT)


def test_a_changed_tree_is_rejected_before_anything_runs(ran: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs once for all benchmarks."""
    monkeypatch.setattr(machine, "uncommitted", lambda: ["server.py"])
    with pytest.raises(SystemExit, match="uncommitted changes"):
        rerun.main([])
    assert ran == []


def test_an_unknown_name_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    """The error lists the known names."""
    with pytest.raises(SystemExit):
        rerun.main(["speed"])
    assert "no such benchmark: speed; there are accuracy, compare" in capsys.readouterr().err
