"""Shares of the slots."""

from __future__ import annotations

import pytest

from vit_api.web.core.slot_shares import SlotShares


def fill(shares: SlotShares, clients: list[str], free: int) -> int:
    """Have the clients take slots in turn until none may take another; return how many are free."""
    is_taken = True
    while is_taken:
        is_taken = False
        for client in clients:
            if free and shares.may_take(client, free):
                shares.add(client)
                free -= 1
                is_taken = True
    return free


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_a_small_table_is_used_up(slots: int) -> None:
    """One client may take all slots."""
    assert fill(SlotShares(), ["a"], slots) == 0


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_there_is_a_slot_for_another_client(clients: int) -> None:
    """This holds however many other clients take as many as they may."""
    shares = SlotShares()
    free = fill(shares, [str(number) for number in range(clients)], 512)
    assert free > 0
    assert shares.may_take("another", free)
    assert free <= 512 // 9 + 1


def test_slots_that_are_freed_may_be_taken_again() -> None:
    """The same client may take them; nothing is kept about a client that holds none."""
    shares = SlotShares()
    free = fill(shares, ["a"], 90)
    assert not shares.may_take("a", free)
    for _ in range(90 - free):
        shares.remove("a")
    assert shares._held == {}
    assert shares.may_take("a", 90)
