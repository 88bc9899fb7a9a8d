"""Shares of the slots."""

from __future__ import annotations

import pytest

from vit_api.urgency import Urgency
from vit_api.web.core.caller import Caller
from vit_api.web.core.slot_shares import SlotShares


def fill(shares: SlotShares, callers: list[Caller], free: int) -> int:
    """Have the callers take slots in turn until none may take another; return how many are free."""
    is_taken = True
    while is_taken:
        is_taken = False
        for caller in callers:
            if free and shares.may_take(caller, free):
                shares.add(caller)
                free -= 1
                is_taken = True
    return free


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_a_small_table_is_used_up(slots: int) -> None:
    """One client may take all slots."""
    assert fill(SlotShares(), [Caller("a")], slots) == 0


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_there_is_a_slot_for_another_client(clients: int) -> None:
    """This holds however many other clients take as many as they may."""
    shares = SlotShares()
    free = fill(shares, [Caller(str(number)) for number in range(clients)], 512)
    assert free > 0
    assert shares.may_take(Caller("another"), free)
    assert free <= 512 // 9 + 1


def test_slots_that_are_freed_may_be_taken_again() -> None:
    """The same client may take them; nothing is kept about a client that holds none."""
    shares = SlotShares()
    free = fill(shares, [Caller("a")], 90)
    assert not shares.may_take(Caller("a"), free)
    for _ in range(90 - free):
        shares.remove(Caller("a"))
    assert shares._held == {}
    assert shares.may_take(Caller("a"), 90)


def test_what_a_client_sends_with_low_urgency_is_counted_on_its_own() -> None:
    """It has no part in what the client may send with normal urgency."""
    shares = SlotShares()
    for _ in range(80):
        shares.add(Caller("a", Urgency.LOW))
    assert fill(shares, [Caller("a")], 80) == 80 - 72
