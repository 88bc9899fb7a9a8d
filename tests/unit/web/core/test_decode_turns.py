"""The order in which images are decoded. The work blocks until the test releases it, so nothing depends on time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.server import wait_until
from vit_api.decoding.cost import Cost
from vit_api.urgency import Urgency
from vit_api.web.core.decode_turns import LARGE_S, OVERDUE_S, DecodeTurns

LONG_S = 60
MIB = 2**20
SMALL, LARGE = Cost(0.001, 1), Cost(10 * LARGE_S, 1)


class Works:
    """Work that blocks until the test releases it, and the order in which it began."""

    def __init__(self, threads: int, max_bytes: int) -> None:
        self.time_s = 0.0
        self.turns = DecodeTurns(threads, max_bytes, lambda: self.time_s)
        self.begun: list[Any] = []
        self._gates: dict[Any, threading.Event] = {}
        self._changed = threading.Condition()

    def add(self, name: Any, cost: Cost, client: str = "", urgency: Urgency = Urgency.NORMAL) -> None:
        gate = self._gates[name] = threading.Event()
        self.turns.submit(self._work(name, gate), cost, client, urgency)

    def _work(self, name: Any, gate: threading.Event) -> Callable[[], None]:
        def work() -> None:
            with self._changed:
                self.begun.append(name)
                self._changed.notify_all()
            assert gate.wait(LONG_S)

        return work

    def finish(self, name: Any) -> None:
        self._gates[name].set()

    def finish_all(self) -> None:
        for gate in self._gates.values():
            gate.set()

    def wait_for(self, count: int) -> list[Any]:
        """Return what has begun, once there are that many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, LONG_S), self.begun
            return list(self.begun)


@pytest.fixture
def start() -> Iterator[Callable[..., Works]]:
    """A factory of started turns; all work is released at the end."""
    started: list[Works] = []

    def begin(threads: int = 1, max_bytes: int = 100 * MIB) -> Works:
        works = Works(threads, max_bytes)
        works.turns.start()
        started.append(works)
        return works

    yield begin
    for works in started:
        works.turns.stop()
        works.finish_all()


def test_a_small_image_overtakes_large_ones(start: Callable[..., Works]) -> None:
    """It overtakes those that came first but have not begun."""
    works = start()
    for number in range(4):
        works.add(number, LARGE)
    works.wait_for(1)
    works.add("small", SMALL)
    works.finish(0)
    assert works.wait_for(2)[1] == "small"


def test_a_large_image_is_overtaken_only_by_as_much_as_it_costs(start: Callable[..., Works]) -> None:
    """Small images that keep coming don't hold it up forever."""
    works = start()
    works.add(0, SMALL)
    works.add("large", LARGE)
    for number in range(1, 2000):
        begun = works.wait_for(number)
        if "large" in begun:
            break
        works.add(number, SMALL)
        works.finish(begun[-1])
    assert 400 < len(begun) < 600  # it costs as much as 500 of them


def test_large_images_leave_a_thread_to_the_small(start: Callable[..., Works]) -> None:
    """However many large ones wait, one thread is kept for small ones."""
    works = start(threads=3)
    for number in range(6):
        works.add(number, LARGE)
    works.wait_for(2)
    works.add("small", SMALL)
    assert works.wait_for(3)[2] == "small"
    assert len(works.begun) == 3


def test_memory_is_bounded(start: Callable[..., Works]) -> None:
    """An image waits until enough memory is free; a smaller one does not wait behind it."""
    works = start(threads=4, max_bytes=100 * MIB)
    works.add("a", Cost(0.001, 60 * MIB))
    works.add("b", Cost(0.001, 40 * MIB))
    works.wait_for(2)
    works.add("c", Cost(0.001, 50 * MIB))
    works.finish("b")
    works.add("d", Cost(LARGE_S, 10 * MIB))
    assert works.wait_for(3)[2] == "d"
    works.finish("a")
    assert works.wait_for(4)[3] == "c"


def test_an_image_beyond_the_bound_is_decoded_with_no_other(start: Callable[..., Works]) -> None:
    """The decoder will refuse it, which takes no memory."""
    works = start(threads=2, max_bytes=100 * MIB)
    works.add("a", Cost(0.001, 1000 * MIB))
    works.wait_for(1)
    works.add("b", Cost(0.001, 5 * MIB))
    works.finish("a")
    assert works.wait_for(2) == ["a", "b"]


def test_cheaper_and_earlier_images_are_due_first(start: Callable[..., Works]) -> None:
    """Among large images, a photo overtakes one that costs much more, but not one that has waited for long."""
    works = start()
    works.add("first", LARGE)
    works.wait_for(1)
    works.add("dear", Cost(4 * LARGE_S, 1))
    works.add("cheap", Cost(LARGE_S, 1))
    works.time_s += 10
    works.add("late", Cost(LARGE_S, 1))
    works.finish_all()
    assert works.wait_for(4) == ["first", "cheap", "dear", "late"]


def test_work_that_raises_costs_no_thread(start: Callable[..., Works], caplog: pytest.LogCaptureFixture) -> None:
    """The exception is logged, and the thread goes on."""
    works = start()

    def fail() -> None:
        raise RuntimeError("planted")

    works.turns.submit(fail, SMALL)
    works.add("next", SMALL)
    assert works.wait_for(1) == ["next"]
    assert "planted" in caplog.text


def test_a_stop_drops_what_has_not_begun(start: Callable[..., Works]) -> None:
    """The threads end."""
    works = start()
    works.add("first", SMALL)
    works.wait_for(1)
    works.add("second", SMALL)
    works.turns.stop()
    works.finish_all()
    for thread in works.turns._threads:
        thread.join(LONG_S)
        assert not thread.is_alive()
    assert works.begun == ["first"]


def test_clients_take_turns(start: Callable[..., Works]) -> None:
    """A client's image is next, however many of the same cost another client sent before it."""
    works = start()
    for number in range(50):
        works.add(number, SMALL, "many")
    works.wait_for(1)
    works.add("one", SMALL, "one")
    works.finish(0)
    assert works.wait_for(2)[1] == "one"


def test_a_spare_thread_replaces_one_that_is_overdue(start: Callable[..., Works]) -> None:
    """Images with false headers don't hold up other clients' images, even if they occupy all threads."""
    works = start(threads=2)
    works.add("liar 1", SMALL, "liar")
    works.add("liar 2", SMALL, "liar")
    works.wait_for(2)
    works.add("honest", SMALL, "honest")
    assert len(works.begun) == 2
    works.time_s += 2 * OVERDUE_S
    assert works.wait_for(3)[2] == "honest"


def test_a_client_whose_image_took_too_long_waits_with_the_large(start: Callable[..., Works]) -> None:
    """Its next images then never occupy all threads."""
    works = start(threads=2)
    burned = threading.Event()

    def burn() -> None:
        end = time.thread_time() + 1.5 * OVERDUE_S
        while time.thread_time() < end:
            pass
        burned.set()

    works.turns.submit(burn, SMALL, "liar")
    assert burned.wait(LONG_S)
    wait_until(lambda: "liar" in works.turns._doubts)
    for number in range(3):
        works.add(number, SMALL, "liar")
    works.wait_for(1)
    works.add("honest", SMALL, "honest")
    assert sorted(map(str, works.wait_for(2))) == ["0", "honest"]


def test_files_of_an_exclusive_decoder_take_one_thread(start: Callable[..., Works]) -> None:
    """A second one would only wait in its thread."""
    works = start(threads=3)
    exclusive = Cost(0.001, 1, is_exclusive=True)
    works.add("a", exclusive)
    works.add("b", exclusive)
    works.wait_for(1)
    works.add("c", SMALL, "other")
    assert works.wait_for(2) == ["a", "c"]
    works.finish("a")
    assert works.wait_for(3)[2] == "b"


def test_images_of_low_urgency_come_last(start: Callable[..., Works]) -> None:
    """This holds even if they came first and the others are larger, but they are not kept waiting forever."""
    works = start()
    works.add("first", SMALL)
    works.wait_for(1)
    for number in range(3):
        works.add(f"low {number}", SMALL, urgency=Urgency.LOW)
    for number in range(9):
        works.add(number, SMALL)
    works.finish_all()
    assert works.wait_for(13) == ["first", *range(7), "low 0", 7, 8, "low 1", "low 2"]


def test_a_large_image_of_normal_urgency_comes_before_small_ones_of_low(start: Callable[..., Works]) -> None:
    """Size matters only within a class."""
    works = start()
    works.add("first", SMALL)
    works.wait_for(1)
    works.add("low", SMALL, urgency=Urgency.LOW)
    works.add("large", LARGE)
    works.finish_all()
    assert works.wait_for(3) == ["first", "large", "low"]
