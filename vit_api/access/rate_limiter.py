"""Says whether a client may use more now. Knows nothing of HTTP, nor of what a client is.

Windows are fixed: within each a client has its whole budget. Their ends are known beforehand and the same in every
process and server, so that nothing but counts has to be shared; and each client has its own, so that not all who wait
come back at once. Around a window's end a client may use two budgets in a row; a second rate with a short window
bounds that.
"""

from __future__ import annotations

import functools
import os
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol
from zlib import crc32

from vit_api.access.rates import Rate
from vit_api.access.shared_counts import CountColumn, SharedCounts

_REMEMBERED = 4096


class Verdict(NamedTuple):
    """What a client was told.

    Attributes:
        rate: The rate that counts: the one that refuses, or of which least is left.
        remaining: What is left of it.
        reset_s: Seconds until all of it is there again.
        is_refused: Whether the client may not, and nothing was counted.
    """

    rate: Rate
    remaining: int
    reset_s: float
    is_refused: bool


class Charge(NamedTuple):
    """Something used, to be counted.

    Attributes:
        name: Of the client, the rate and the window.
        window_s: How long the window is, in seconds.
        amount: How much; less than 0 to take back.
    """

    name: str
    window_s: int
    amount: int


class ServersCounts(Protocol):
    """Counts that several servers share."""

    def add(self, charges: Sequence[Charge]) -> Awaitable[list[int] | None]:
        """Count, and return what was used in each window; None if that can't be had in time."""


class Budgets:
    """What all clients of this server have used up, for all its HTTP processes.

    Args:
        rates: What each client may use.
        processes: HTTP processes.
    """

    def __init__(self, rates: Sequence[Rate], processes: int) -> None:
        self.rates = rates
        self.counts = SharedCounts(processes)
        self.secret = os.urandom(16)


class RateLimiter:
    """Count what clients use. For one HTTP process.

    With several servers, each counts for itself, too: that goes on alone while the others' counts can't be had.

    Args:
        budgets: What was used, in all processes.
        process: The number of the HTTP process.
        servers: What was used, in all servers; None: there are no others.
        clock: The time in seconds, which all servers share.
    """

    def __init__(
        self,
        budgets: Budgets,
        process: int,
        servers: ServersCounts | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rates = budgets.rates
        self._column = CountColumn(budgets.counts, process)
        self._secret = budgets.secret
        self._keys = struct.Struct(f"{len(self._rates)}Q")
        self._place = functools.lru_cache(_REMEMBERED)(self._place_of)
        self._servers = servers
        self._clock = clock

    async def take(self, client: str, amount: int) -> Verdict:
        """Count `amount` for a client in every window, or in none if it is too much for one."""
        now_s = self._clock()
        shift, keys = self._place(client)
        ends_s = [int(now_s + shift) // rate.window_s * rate.window_s + rate.window_s - shift for rate in self._rates]
        verdict = self._judge(self._add(keys, amount, ends_s, now_s), amount, ends_s, now_s)
        if self._servers is not None and not verdict.is_refused:
            charges = self._charges(client, amount, ends_s)
            used = await self._servers.add(charges)
            if used is not None:
                verdict = self._judge(used, amount, ends_s, now_s)
                if verdict.is_refused:
                    await self._servers.add([charge._replace(amount=-amount) for charge in charges])
        if verdict.is_refused:
            self._add(keys, -amount, ends_s, now_s)
        return verdict

    def _place_of(self, client: str) -> tuple[int, tuple[int, ...]]:
        """Return what a client's windows are shifted by, in seconds, and its key for each rate.

        The keys depend on a secret, so that nobody can choose addresses that crowd one set of the table.
        """
        name = client.encode()
        digest = blake2b(name, digest_size=self._keys.size, key=self._secret).digest()
        return crc32(name), self._keys.unpack(digest)

    def _add(self, keys: Sequence[int], amount: int, ends_s: Sequence[int], now_s: float) -> list[int]:
        return [self._column.add(key, amount, end_s, now_s) for key, end_s in zip(keys, ends_s, strict=True)]

    def _charges(self, client: str, amount: int, ends_s: Sequence[int]) -> list[Charge]:
        return [
            Charge(f"{client}/{rate.amount}/{rate.window_s}/{end_s}", rate.window_s, amount)
            for rate, end_s in zip(self._rates, ends_s, strict=True)
        ]

    def _judge(self, used: Sequence[int], amount: int, ends_s: Sequence[int], now_s: float) -> Verdict:
        """Return the verdict of what is used in each window, `amount` included."""
        refusing: Verdict | None = None
        tightest: Verdict | None = None
        for rate, count, end_s in zip(self._rates, used, ends_s, strict=True):
            if count > rate.amount:
                left = max(0, rate.amount - count + amount)
                if refusing is None or end_s - now_s > refusing.reset_s:
                    refusing = Verdict(rate, left, end_s - now_s, True)
            elif tightest is None or rate.amount - count < tightest.remaining:
                tightest = Verdict(rate, rate.amount - count, end_s - now_s, False)
        verdict = refusing or tightest
        assert verdict is not None
        return verdict
