"""Who asks for a classification, and how urgently. Knows nothing of HTTP."""

from __future__ import annotations

from typing import NamedTuple

from vit_api.urgency import Urgency


class Caller(NamedTuple):
    """Who asks.

    Attributes:
        client: Who sent the image; clients share slots and decoding.
        urgency: How urgent it is, if the model has to run.
    """

    client: str = ""
    urgency: Urgency = Urgency.NORMAL


ANY = Caller()
"""For images of which nothing is known."""
