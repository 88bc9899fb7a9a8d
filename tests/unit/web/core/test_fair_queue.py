"""Fairness between clients, seen in the order of the items, without threads or a clock."""

from __future__ import annotations

from collections import Counter

import pytest

from vit_api.web.core.fair_queue import FairQueue, Item


def queue_of(*items: tuple[str, float]) -> FairQueue[int]:
    """A queue of (client, expected CPU seconds), numbered."""
    queue: FairQueue[int] = FairQueue()
    for number, (client, cpu_s) in enumerate(items):
        queue.add(Item(client, cpu_s, number, number))
    return queue


def take(queue: FairQueue[int]) -> Item[int]:
    item = queue.pop(lambda _: True)
    assert item is not None
    return item


def test_a_client_with_one_item_is_next() -> None:
    """It comes before the thousand that another client queued first."""
    queue = queue_of(*[("many", 0.04)] * 1000, ("one", 0.001))
    assert take(queue).client == "one"
    assert len(queue) == 1000


def test_a_client_that_arrives_late_is_next() -> None:
    """It does not matter how much the other client has had, or in how many items."""
    queue = queue_of(*[("many", 0.001)] * 1000)
    for _ in range(500):
        queue.settle(take(queue), 0.001)
    queue.add(Item("one", 0.04, 0, 0))
    taken = [take(queue).client for _ in range(50)]
    assert taken.index("one") <= 40  # what is cheaper comes first, up to as much CPU time


def test_clients_share_cpu_time_and_not_items() -> None:
    """A client with expensive items gets fewer of them done."""
    queue = queue_of(*[("dear", 0.04), ("cheap", 0.004)] * 200)
    used: Counter[str] = Counter()
    for _ in range(150):
        item = take(queue)
        used[item.client] += round(item.cpu_s * 1000)
        queue.settle(item, item.cpu_s)
    assert used["dear"] == pytest.approx(used["cheap"], abs=41)


def test_what_an_item_really_took_is_charged() -> None:
    """A client gains nothing from files that look cheaper than they are."""
    queue = queue_of(*[("liar", 0.001), ("honest", 0.001)] * 200)
    counts: Counter[str] = Counter()
    for _ in range(110):
        item = take(queue)
        counts[item.client] += 1
        queue.settle(item, 0.1 if item.client == "liar" else 0.001)
    assert counts["liar"] <= 3


def test_time_is_not_saved_up() -> None:
    """A client that was idle does not get the time that others used meanwhile."""
    queue = queue_of(*[("busy", 0.01)] * 200, ("away", 0.01))
    for _ in range(100):
        queue.settle(take(queue), 0.01)
    for number in range(100):
        queue.add(Item("away", 0.01, number, number))
    counts = Counter(take(queue).client for _ in range(40))
    assert counts["busy"] >= 18


def test_an_item_that_may_not_run_is_passed() -> None:
    """Items behind it don't wait for it, and it keeps its place."""
    queue = queue_of(("a", 0.001), ("b", 0.002), ("b", 0.002))
    item = queue.pop(lambda candidate: candidate.client != "a")
    assert item is not None
    assert item.client == "b"
    assert queue.pop(lambda _: False) is None
    assert take(queue).client == "a"
    assert len(queue) == 1


def test_items_of_a_client_are_taken_out() -> None:
    """Other clients' items stay."""
    queue = queue_of(("a", 0.001), ("b", 0.002), ("a", 0.003))
    assert [item.content for item in queue.remove_all_of("a")] == [0, 2]
    assert queue.remove_all_of("unknown") == []
    assert len(queue) == 1
    assert take(queue).client == "b"
    assert queue.pop(lambda _: True) is None


def test_accounts_are_bounded() -> None:
    """Nothing is kept forever of clients that come once."""
    queue: FairQueue[int] = FairQueue()
    queue.add(Item("first", 1.0, 0, 0))
    for number in range(5000):
        queue.add(Item(str(number), 0.001, 0, 0))
        queue.settle(take(queue), 0.001)
    assert len(queue._accounts) <= 1025
    assert take(queue).client == "first"
