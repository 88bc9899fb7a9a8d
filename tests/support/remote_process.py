"""An HTTP process that does nothing but what a test says: it claims keys, publishes values, and can be killed."""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tests.support.waiting import LONG_S
from vit_api.ipc.answer_table import AnswerTable, RegionWriter
from vit_api.ipc.flight_board import FlightBoard, ProcessFlights


def _obey(board: FlightBoard, table: AnswerTable | None, number: int, orders: Connection) -> None:
    """Call the methods that the test names, and send back what they return."""
    flights = ProcessFlights(board, number)
    writer = None if table is None else RegionWriter(table, number)
    while True:
        name, *arguments = orders.recv()
        orders.send(getattr(writer if name == "put" else flights, name)(*arguments))


class RemoteProcess:
    """A process that calls methods of `ProcessFlights`, and `RegionWriter.put`.

    Args:
        board: The claims of all processes.
        number: Its number.
        table: What it publishes to, if it does.
    """

    def __init__(self, board: FlightBoard, number: int, table: AnswerTable | None = None) -> None:
        self._orders, orders = mp.Pipe()
        self._process: BaseProcess = mp.get_context("fork").Process(
            target=_obey, args=(board, table, number, orders), daemon=True
        )
        self._process.start()
        orders.close()

    def __call__(self, *order: object) -> object:
        """Call a method, by its name and arguments, and return what it returns."""
        self._orders.send(order)
        assert self._orders.poll(LONG_S)
        return self._orders.recv()

    def kill(self) -> None:
        """Kill it, and wait until it is dead."""
        self._process.kill()
        self._process.join()
