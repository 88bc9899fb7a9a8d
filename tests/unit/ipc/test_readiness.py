"""When a server with several models is ready, and what it says if it is not."""

from __future__ import annotations

import pytest

from vit_api.ipc.readiness import Readiness
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus

_READY = WorkerStatus(WorkerState.READY, "cpu", "CPU", "float32")


class Server:
    """Versions 1 and 2 of the default model, of one worker and two, and another model of one worker."""

    def __init__(self) -> None:
        self.whole = WorkerBoard(4)
        self.boards = {"a 1": self.whole.part(0, 1), "a 2": self.whole.part(1, 2), "b 1": self.whole.part(3, 1)}
        self.readiness = Readiness(self.boards, frozenset({"a 1", "a 2"}))

    def start(self, *titles: str) -> None:
        for title in titles:
            for worker in range(self.boards[title].workers):
                self.boards[title].publish(worker, _READY)


@pytest.fixture
def server() -> Server:
    return Server()


def test_it_depends_on_the_default_model_only(server: Server) -> None:
    """Every version of it with traffic must be ready; another model may still load."""
    server.start("a 1")
    assert not server.readiness.is_ready()
    server.start("a 2")
    assert server.readiness.is_ready()
    assert not server.readiness.is_whole()
    assert server.readiness.reason() == (
        "Not all versions are ready. b 1: 0 of 1 workers are ready: the model is loading."
    )
    server.start("b 1")
    assert server.readiness.is_whole()
    assert server.readiness.reason() == ""


def test_a_version_that_failed_is_not_waited_for(server: Server) -> None:
    """The others take its traffic; without any, the server is not ready."""
    server.start("a 1", "a 2", "b 1")
    server.boards["a 2"].mark_gone()
    assert server.readiness.is_ready()
    assert not server.readiness.is_whole()
    assert server.readiness.reason() == ("Not all versions are ready. a 2: its workers crashed and can't be restarted.")
    server.boards["a 1"].mark_gone()
    assert not server.readiness.is_ready()
    assert not server.readiness.is_gone()
    server.boards["b 1"].mark_gone()
    assert server.readiness.is_gone()


def test_every_connection_must_be_accepted_by_an_http_process() -> None:
    """While the server starts, another process accepts some and refuses their requests."""
    board, over = WorkerBoard(1), []
    readiness = Readiness({"a": board}, frozenset({"a"}), lambda: bool(over))
    board.publish(0, _READY)
    assert not readiness.is_ready()
    assert readiness.reason() == "Not all HTTP processes accept connections yet."
    over.append(True)
    assert readiness.is_ready()
    assert readiness.reason() == ""


def test_draining_is_of_all(server: Server) -> None:
    """Any part of the board tells that the server shuts down."""
    server.start("a 1", "a 2", "b 1")
    server.boards["b 1"].mark_draining()
    assert server.readiness.is_draining()
    assert not server.readiness.is_ready()
    assert server.readiness.reason() == "The server is shutting down."


def test_a_part_of_a_board_has_its_own_workers(server: Server) -> None:
    """They are numbered from 0 in it; the whole board has them all."""
    board = server.boards["a 2"]
    board.publish(1, _READY)
    board.count_batch(1, 7)
    board.mark_restarting(0)
    assert server.whole.read(2) == board.read(1) == _READY
    assert server.whole.counts_of(2) == (1, 7)
    assert (server.whole.restarts_of(1), board.ready_count(), server.whole.ready_count()) == (1, 1, 1)
    assert server.boards["a 1"].read(0).state == WorkerState.STARTING
