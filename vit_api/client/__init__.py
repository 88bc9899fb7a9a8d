"""A typed client of this API, blocking and asynchronous: uploads images, tries again, returns dataclasses.

Needs httpx and nothing else of the server's packages; it can be used without installing those. What to send, what an
answer means and when to try again is in `protocol` and `answers`; `blocking` and `asynchronous` are the I/O alone.
"""

from vit_api.client.asynchronous import AsyncClient
from vit_api.client.blocking import Client
from vit_api.client.inputs import ImageInput
from vit_api.client.protocol import Retries
from vit_api.client.results import (
    Busy,
    Classification,
    ClassifyError,
    Outcome,
    Prediction,
    Rejected,
    ServerFailed,
    TimedOut,
    UnexpectedAnswer,
    Unreachable,
    UnreadableInput,
)

__all__ = [
    "AsyncClient",
    "Busy",
    "Classification",
    "ClassifyError",
    "Client",
    "ImageInput",
    "Outcome",
    "Prediction",
    "Rejected",
    "Retries",
    "ServerFailed",
    "TimedOut",
    "UnexpectedAnswer",
    "Unreachable",
    "UnreadableInput",
]
