"""The queue of operators' commands, with channels that only record what is sent."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from vit_api.ipc.channel import ChannelClosed
from vit_api.processes.commands import CommandQueue, CommandRefused, CommandResult
from vit_api.shared.messages import Command, CommandReply


class _End:
    """The end of a channel."""

    def __init__(self) -> None:
        self.sent: list[CommandReply] = []
        self.is_closed = False

    def send(self, reply: CommandReply) -> None:
        if self.is_closed:
            raise ChannelClosed
        self.sent.append(reply)


class _Channels:
    """Channels to two HTTP processes."""

    def __init__(self) -> None:
        self.ends: dict[int, Any] = {0: _End(), 1: _End()}

    def close(self, number: int) -> None:
        del self.ends[number]


class _Bench:
    """A queue whose commands wait until they are told to go on.

    Attributes:
        begun: The names of the commands that were begun.
        may_end: The names of those that may end.
    """

    def __init__(self) -> None:
        self.channels = _Channels()
        self.begun: list[str] = []
        self.may_end: set[str] = set()
        self.was_stopped = False
        self.queue = CommandQueue(self.channels, self._run)  # type: ignore[arg-type]

    def _run(self, command: Command) -> Generator[None, None, CommandResult]:
        self.begun.append(command.name)
        try:
            while command.name not in self.may_end:
                yield
        except GeneratorExit:
            self.was_stopped = True
            raise
        if command.kind == "refused":
            raise CommandRefused("No.", "bad_request")
        if command.kind == "broken":
            raise RuntimeError("planted")
        return CommandResult("7")

    def replies(self, process: int) -> list[tuple[int, str | None, str, str | None]]:
        return [(one.number, one.problem, one.code, one.version) for one in self.channels.ends[process].sent]


@pytest.fixture
def bench() -> _Bench:
    return _Bench()


def test_commands_run_one_after_the_other(bench: _Bench) -> None:
    """Each is answered to the process that sent it, and the next begins at once."""
    bench.queue.add(0, Command(1, "load", "first", {}))
    bench.queue.add(1, Command(1, "load", "second", {}))
    bench.queue.step()
    assert bench.begun == ["first"]
    bench.may_end = {"first"}
    bench.queue.step()
    assert bench.begun == ["first", "second"]
    assert (bench.replies(0), bench.replies(1)) == ([(1, None, "", "7")], [])
    bench.may_end = {"second"}
    bench.queue.step()
    assert bench.replies(1) == [(1, None, "", "7")]


@pytest.mark.parametrize(
    ("kind", "problem", "code"),
    [
        pytest.param("refused", "No.", "bad_request", id="refused"),
        pytest.param("broken", "The server failed. Its log says why.", "load_failed", id="unexpected"),
    ],
)
def test_a_command_that_fails_does_not_stop_the_next(bench: _Bench, kind: str, problem: str, code: str) -> None:
    """The caller is told why."""
    bench.may_end = {"bad", "good"}
    bench.queue.add(0, Command(1, kind, "bad", {}))
    bench.queue.add(0, Command(2, "load", "good", {}))
    bench.queue.step()
    assert bench.replies(0) == [(1, problem, code, None), (2, None, "", "7")]


def test_too_many_commands_are_refused_at_once(bench: _Bench) -> None:
    """So that nobody fills the memory of the main process."""
    for number in range(18):
        bench.queue.add(0, Command(number, "load", "one", {}))
    assert [code for _, _, code, _ in bench.replies(0)] == ["not_ready"] * 2


def test_a_shutdown_stops_what_runs_and_refuses_what_waits(bench: _Bench) -> None:
    """Nothing is left that anybody waits for."""
    bench.queue.add(0, Command(1, "load", "one", {}))
    bench.queue.step()
    bench.queue.add(1, Command(1, "load", "two", {}))
    bench.queue.refuse_all()
    assert bench.was_stopped
    assert [code for process in (0, 1) for _, _, code, _ in bench.replies(process)] == ["not_ready"] * 2


def test_a_caller_that_died_is_forgotten(bench: _Bench) -> None:
    """Its command is done all the same."""
    bench.channels.ends[0].is_closed = True
    bench.may_end = {"one"}
    bench.queue.add(0, Command(1, "load", "one", {}))
    bench.queue.step()
    assert bench.begun == ["one"]
    assert 0 not in bench.channels.ends
