"""Decides whether a client may send more now. Knows nothing of HTTP, nor of what identifies a client.

Windows are fixed: a client has its whole budget within each. All processes and servers compute the same ends for them,
so that only counts have to be shared, and the ends differ between clients, so that waiting clients do not all return
at once. Around the end of a window a client may use two budgets in a row; a second rate with a short window limits
that.
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

_CACHED_CLIENTS = 4096


class Verdict(NamedTuple):
    """Whether a request is allowed, and how much of the client's budget is left.

    Attributes:
        rate: The decisive rate: the one that is exceeded, or else the one with the least left.
        remaining: How much of it is left.
        reset_s: Seconds until the whole budget is available again.
        is_refused: Whether the request exceeds a rate; then nothing was counted.
    """

    rate: Rate
    remaining: int
    reset_s: float
    is_refused: bool


class Charge(NamedTuple):
    """An amount to count in a window.

    Attributes:
        name: Identifies the client, the rate and the window.
        window_s: The window's length in seconds.
        amount: How much to add; negative to take back.
    """

    name: str
    window_s: int
    amount: int


class ServersCounts(Protocol):
    """Counts that all servers share."""

    def add(self, charges: Sequence[Charge]) -> Awaitable[list[int] | None]:
        """Add to the counts and return the total of each window; None if the totals do not arrive in time."""


class Budgets:
    """The rates, and what all clients of this server have used, for all its HTTP processes.

    Args:
        rates: The rates of each client.
        processes: Number of HTTP processes.
    """

    def __init__(self, rates: Sequence[Rate], processes: int) -> None:
        self.rates = rates
        self.counts = SharedCounts(processes)
        self.secret = os.urandom(16)


class RateLimiter:
    """Counts what clients use. For one HTTP process.

    With several servers, each also keeps its own counts, which decide alone while the shared ones are unavailable.

    Args:
        budgets: The rates, and the counts of all HTTP processes.
        process: The number of this HTTP process.
        servers: The counts of all servers; None if this is the only one.
        clock: Returns the time in seconds, the same on all servers.
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
        self._locate = functools.lru_cache(_CACHED_CLIENTS)(self._compute_location)
        self._servers = servers
        self._clock = clock

    def take_now(self, client: str, amount: int) -> Verdict | None:
        """Do what `take` does without waiting for other servers; None if there are any."""
        if self._servers is not None:
            return None
        now_s = self._clock()
        shift, keys = self._locate(client)
        ends_s = self._ends_of(shift, now_s)
        verdict = self._judge(self._add(keys, amount, ends_s, now_s), amount, ends_s, now_s)
        if verdict.is_refused:
            self._add(keys, -amount, ends_s, now_s)
        return verdict

    async def take(self, client: str, amount: int) -> Verdict:
        """Count `amount` for a client in every window, or in none if it exceeds one of them."""
        now_s = self._clock()
        shift, keys = self._locate(client)
        ends_s = self._ends_of(shift, now_s)
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

    def _ends_of(self, shift: int, now_s: float) -> list[int]:
        """Return when the current window of each rate ends, given the shift of a client's windows."""
        return [int(now_s + shift) // rate.window_s * rate.window_s + rate.window_s - shift for rate in self._rates]

    def _compute_location(self, client: str) -> tuple[int, tuple[int, ...]]:
        """Return the shift of a client's windows, in seconds, and its key for each rate.

        The keys depend on a secret, so that an attacker can't choose addresses that all fall into one set.
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
        """Return the verdict for the total of each window, which includes `amount`."""
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
