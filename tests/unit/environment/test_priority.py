"""The priority of processes, with real ones; whether it may be raised depends on the system."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vit_api.environment import priority

_CODE = """
import os, sys, threading
from vit_api.environment import priority
sys.stdin.readline()
done = threading.Event()
ids = [os.getpid()]
thread = threading.Thread(target=lambda: (ids.append(threading.get_native_id()), done.wait()), daemon=True)
thread.start()
before = os.getpriority(os.PRIO_PROCESS, 0)
priority.restore()
print(before, *(os.getpriority(os.PRIO_PROCESS, one) for one in ids))
done.set()
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that restores its priority and tells it, once it gets a line."""
    command = [sys.executable, "-c", _CODE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def test_a_process_with_low_priority_restores_that_of_all_its_threads(child: subprocess.Popen[str]) -> None:
    """Where it may; else it is never lowered."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    priority.lower(child.pid)
    before, *after = map(int, child.communicate("\n")[0].split())
    assert before == (min(19, own + 10) if priority._may_raise() else own)
    assert after == [own, own]


def test_what_could_not_be_raised_is_not_lowered(child: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker would stay slow for good."""
    own, change = os.getpriority(os.PRIO_PROCESS, 0), os.setpriority

    def refuse(which: int, who: int, value: int) -> None:
        if value < os.getpriority(which, who):
            raise PermissionError
        change(which, who, value)

    monkeypatch.setattr(os, "setpriority", refuse)
    priority.lower(child.pid)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == own
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_a_process_that_has_ended_has_no_priority() -> None:
    """Nothing is raised."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    priority.lower(process.pid)
