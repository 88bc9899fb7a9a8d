"""How many slots one client may hold, so that there is always one for another client. Knows no slots."""

from __future__ import annotations

from vit_api.web.core.caller import Caller

_TIMES_THE_FREE = 8


class SlotShares:
    """Count the slots of each client. For one HTTP process.

    A client may take a further slot while it holds fewer than eight times as many as are free: the dynamic threshold of
    Choudhury and Hahne ("Dynamic queue length thresholds", 1998). One client alone gets up to 8/9 of the slots, two get
    8/17 each, and a client that holds none finds a free one.

    What a client sends with low urgency does not count for what it sends with normal urgency, and the other way round:
    a client's backlog takes nothing from its urgent requests.
    """

    def __init__(self) -> None:
        self._held: dict[Caller, int] = {}

    def may_take(self, caller: Caller, free: int) -> bool:
        """Return whether a client may take one of so many free slots."""
        return self._held.get(caller, 0) < _TIMES_THE_FREE * free

    def add(self, caller: Caller) -> None:
        """Count a slot that a client took."""
        self._held[caller] = self._held.get(caller, 0) + 1

    def remove(self, caller: Caller) -> None:
        """Stop counting one."""
        held = self._held[caller] - 1
        if held:
            self._held[caller] = held
        else:
            del self._held[caller]
