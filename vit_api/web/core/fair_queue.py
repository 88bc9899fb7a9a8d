"""Work of many clients that waits, served so that each client gets the same share of CPU time. No threads, no clock.

Theory of operation
-------------------
Each client has a queue of its own and an account of the CPU time that it has had. Next is the client whose account,
with what its next item is expected to take, is the lowest: the "finish tag" of fair queueing (Demers, Keshav and
Shenker, 1989; with Golestani's self-clocked virtual time, 1994). A client that was away starts with the account of
the client being served, so it neither saves up time nor owes any; a client with one small item is therefore served
before the thousand that another has queued, however cheap each of these claims to be. What an item really took is
charged once that is known, so a wrong estimate gains nothing.

Among a client's own items, the cheap come before the dear; see `due`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

_MAX_CLIENTS = 1024
"""Clients whose accounts are kept; beyond it, those that have nothing queued start again as if they were new."""

T = TypeVar("T")


class Item(Generic[T]):
    """One piece of work that waits or runs.

    Args:
        client: Whose it is.
        cpu_s: CPU seconds that it is expected to take.
        due: Rank among the client's own items; the lowest is first.
        content: What the caller wants back.
    """

    __slots__ = ("client", "content", "cpu_s", "due")

    def __init__(self, client: str, cpu_s: float, due: float, content: T) -> None:
        self.client = client
        self.cpu_s = cpu_s
        self.due = due
        self.content = content


class _Account(Generic[T]):
    """One client's items and the CPU seconds that it has had; `tag` is its rank in the queue, None if not in it."""

    __slots__ = ("items", "running", "tag", "used_s")

    def __init__(self, used_s: float) -> None:
        self.items: list[tuple[float, int, Item[T]]] = []
        self.running = 0
        self.tag: float | None = None
        self.used_s = used_s

    @property
    def next_tag(self) -> float:
        return self.used_s + self.items[0][2].cpu_s


class FairQueue(Generic[T]):
    """A queue of items that is fair to the clients they belong to."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account[T]] = {}
        self._ranking: list[tuple[float, int, _Account[T]]] = []  # a heap; each account is in it at most once
        self._numbers = itertools.count()
        self._virtual_s = 0.0
        self._running = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item[T]) -> None:
        """Queue an item."""
        account = self._account_of(item.client)
        account.used_s = max(account.used_s, self._virtual_s)
        heapq.heappush(account.items, (item.due, next(self._numbers), item))
        self._count += 1
        if account.tag is None:
            self._rank(account)

    def pop(self, may_run: Callable[[Item[T]], bool]) -> Item[T] | None:
        """Take the item that is next, or None if there is none.

        It counts as running until `settle`.

        Args:
            may_run: Returns whether an item may run now. If a client's next item may not, its others wait, too.
        """
        passed = []
        item = None
        while self._ranking:
            tag, _, account = self._ranking[0]
            if account.next_tag > tag:  # it was charged since it was ranked
                heapq.heappop(self._ranking)
                self._rank(account)
                continue
            candidate = account.items[0][2]
            if may_run(candidate):
                item = self._take(account)
                break
            passed.append(heapq.heappop(self._ranking))
        for entry in passed:
            heapq.heappush(self._ranking, entry)
        return item

    def peek(self) -> Item[T] | None:
        """Return an item that `pop` would take early; None if the queue is empty."""
        return self._ranking[0][2].items[0][2] if self._ranking else None

    def settle(self, item: Item[T], cpu_s: float) -> None:
        """Charge what a popped item took.

        Args:
            item: The item, which has ended.
            cpu_s: CPU seconds that it took.
        """
        account = self._accounts[item.client]
        account.used_s += cpu_s - item.cpu_s
        account.running -= 1
        self._running -= 1
        if not self._running and not self._count:
            self._accounts.clear()
            self._virtual_s = 0.0

    def remove_all_of(self, client: str) -> list[Item[T]]:
        """Take all items of a client that wait, without running them."""
        account = self._accounts.get(client)
        if account is None or not account.items:
            return []
        items = [item for _, _, item in account.items]
        self._count -= len(items)
        account.items.clear()
        account.tag = None
        self._ranking = [entry for entry in self._ranking if entry[2] is not account]
        heapq.heapify(self._ranking)
        return items

    def clear(self) -> None:
        """Drop all items that wait."""
        for account in self._accounts.values():
            account.items.clear()
            account.tag = None
        self._ranking.clear()
        self._count = 0

    def _account_of(self, client: str) -> _Account[T]:
        account = self._accounts.get(client)
        if account is None:
            if len(self._accounts) >= _MAX_CLIENTS:
                self._accounts = {name: other for name, other in self._accounts.items() if other.items or other.running}
            account = self._accounts[client] = _Account(self._virtual_s)
        return account

    def _rank(self, account: _Account[T]) -> None:
        account.tag = account.next_tag
        heapq.heappush(self._ranking, (account.tag, next(self._numbers), account))

    def _take(self, account: _Account[T]) -> Item[T]:
        """Take the next item of the account that is first in the ranking."""
        heapq.heappop(self._ranking)
        account.tag = None
        item = heapq.heappop(account.items)[2]
        self._virtual_s = max(self._virtual_s, account.used_s)
        account.used_s += item.cpu_s
        account.running += 1
        self._running += 1
        self._count -= 1
        if account.items:
            self._rank(account)
        return item
