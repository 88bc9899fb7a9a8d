"""A remote-controlled HTTP process that claims keys, publishes values, and can be killed."""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tests.support.waiting import LONG_S
from vit_api.ipc.answer_table import AnswerTable, RegionWriter
from vit_api.ipc.flight_board import FlightBoard, ProcessFlights


def _serve(board: FlightBoard, table: AnswerTable | None, number: int, calls: Connection) -> None:
    """Call the methods that the test names, and send their results back."""
    flights = ProcessFlights(board, number)
    writer = None if table is None else RegionWriter(table, number)
    while True:
        name, *arguments = calls.recv()
        calls.send(getattr(writer if name == "put" else flights, name)(*arguments))


class RemoteProcess:
    """A process in which a test calls methods of `ProcessFlights`, and `RegionWriter.put`.

    Args:
        board: The claims of all processes.
        number: Its number.
        table: The table that it publishes to, if any.
    """

    def __init__(self, board: FlightBoard, number: int, table: AnswerTable | None = None) -> None:
        self._calls, calls = mp.Pipe()
        self._process: BaseProcess = mp.get_context("fork").Process(
            target=_serve, args=(board, table, number, calls), daemon=True
        )
        self._process.start()
        calls.close()

    def __call__(self, *call: object) -> object:
        """Call a method by name and arguments, and return its result."""
        self._calls.send(call)
        assert self._calls.poll(LONG_S)
        return self._calls.recv()

    def kill(self) -> None:
        """Kill it and wait for its exit."""
        self._process.kill()
        self._process.join()
