"""Web origins, in the form that browsers send. Knows nothing of what they are allowed to do."""

from __future__ import annotations

import re

ANY_ORIGIN = "*"

# RFC 6454, section 6.2, in the lower case that browsers send.
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def parse_origins(text: str) -> tuple[str, ...]:
    """Parse comma-separated origins, or `*` for any origin.

    Raises:
        ValueError: An item is not an origin, or `*` is combined with others.
    """
    origins = tuple(part.strip() for part in text.split(","))
    if origins != (ANY_ORIGIN,) and not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("Input should be * alone, or origins such as https://example.org:8443 without a path")
    return origins
