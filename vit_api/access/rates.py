"""Rates in the notation of the library `limits`, such as `10/second;600/minute`. Knows nothing of who is limited."""

from __future__ import annotations

from typing import NamedTuple

_MOST_RATES = 8
_LARGEST_AMOUNT = 10**9
_LONGEST_WINDOW_S = 400 * 86_400


class Rate(NamedTuple):
    """How much a client may use.

    Attributes:
        amount: Images within a window.
        window_s: The window's length in seconds.
    """

    amount: int
    window_s: int


def parse_rates(text: str) -> tuple[Rate, ...]:
    """Return the rates of a text: `<images>/<window>`, with `;` or `,` between several.

    Raises:
        ValueError: It is malformed, or a rate is out of bounds.
    """
    from limits import parse_many  # takes 0.2 s, which only those need who use it

    try:
        items = parse_many(text)
    except ValueError:
        raise ValueError("Input should be rates such as 600/minute or 10/second;5000/hour") from None
    rates = tuple(Rate(item.amount, item.get_expiry()) for item in items)
    if len(rates) > _MOST_RATES:
        raise ValueError(f"Input should be at most {_MOST_RATES} rates")
    for rate in rates:
        if not 1 <= rate.amount <= _LARGEST_AMOUNT or rate.window_s > _LONGEST_WINDOW_S:
            raise ValueError(f"A rate should be 1 to {_LARGEST_AMOUNT} images in at most 400 days")
    return rates
