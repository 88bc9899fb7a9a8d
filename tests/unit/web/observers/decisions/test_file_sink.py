"""The file that several processes append decisions to."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import resource
import signal
from pathlib import Path

import pytest

from vit_api.web.observers.decisions.file_sink import FileSink

_PROCESSES, _BATCHES = 4, 40


def _append(path: Path, writer: int) -> None:
    sink = FileSink(str(path))
    for batch in range(_BATCHES):
        lines = [json.dumps([writer, batch, n, "x" * 2000 * (n % 4)]).encode() for n in range(25)]
        assert sink.write(lines) == len(lines)


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    """Batches that are much longer than a pipe's atomic write stay whole."""
    path = tmp_path / "log"
    processes = [mp.get_context("spawn").Process(target=_append, args=(path, n)) for n in range(_PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    seen = [tuple(json.loads(line)[:3]) for line in path.read_text().splitlines()]
    assert len(seen) == len(set(seen)) == _PROCESSES * _BATCHES * 25


def _fill(path: Path, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sink = FileSink(str(path))
    assert sink.write([b"first"]) == 1
    assert sink.write([b"second", b"third", b"x" * 100]) == 2
    with pytest.raises(OSError):
        sink.write([b"y" * 100, b"z"])


def test_what_a_full_disk_cuts_off_is_taken_back(tmp_path: Path) -> None:
    """Only whole lines stay, and the writer learns how many."""
    path = tmp_path / "log"
    process = mp.get_context("fork").Process(target=_fill, args=(path, 40))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert path.read_text() == "first\nsecond\nthird\n"


def test_a_line_that_a_killed_process_left_is_ended(tmp_path: Path) -> None:
    """It damages no other line."""
    path = tmp_path / "log"
    path.write_text('{"whole": 1}\n{"to')
    FileSink(str(path)).write([b"{}"])
    assert path.read_text() == '{"whole": 1}\n{"to\n{}\n'


def test_a_renamed_file_is_followed(tmp_path: Path) -> None:
    """After `reopen`, lines go to the new file; before, to the renamed one."""
    path = tmp_path / "log"
    sink = FileSink(str(path))
    sink.write([b"1"])
    path.rename(tmp_path / "log.1")
    sink.write([b"2"])
    sink.reopen()
    sink.write([b"3"])
    assert ((tmp_path / "log.1").read_text(), path.read_text()) == ("1\n2\n", "3\n")


@pytest.mark.parametrize("kind", ["missing directory", "directory", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    """A pipe without a reader would block the thread for ever; a directory may appear later."""
    path = tmp_path / "log"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = path / "log"
    with pytest.raises(OSError):
        FileSink(str(path)).write([b"1"])
