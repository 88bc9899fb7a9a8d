"""Rates, in the notation of the library `limits`: `10/second;600/minute`. Knows nothing of clients."""

from __future__ import annotations

from typing import NamedTuple

_MAX_RATES = 8
_MAX_AMOUNT = 10**9
_MAX_WINDOW_S = 400 * 86_400


class Rate(NamedTuple):
    """The number of images that a client may send within a window.

    Attributes:
        amount: Maximum number of images within a window.
        window_s: The window's length in seconds.
    """

    amount: int
    window_s: int


def parse_rates(text: str) -> tuple[Rate, ...]:
    """Parse rates, each `<images>/<window>`, separated by `;` or `,`.

    Raises:
        ValueError: The text is malformed, or a rate is out of range.
    """
    from limits import parse_many  # imported here: servers without a rate limit need not wait for it

    try:
        items = parse_many(text)
    except ValueError:
        raise ValueError("Input should be rates such as 600/minute or 10/second;5000/hour") from None
    rates = tuple(Rate(item.amount, item.get_expiry()) for item in items)
    if len(rates) > _MAX_RATES:
        raise ValueError(f"Input should be at most {_MAX_RATES} rates")
    for rate in rates:
        if not 1 <= rate.amount <= _MAX_AMOUNT or rate.window_s > _MAX_WINDOW_S:
            raise ValueError(f"A rate should be from 1 to {_MAX_AMOUNT} images, in at most 400 days")
    return rates
