"""A typed client for this API, sync and async: uploads images, retries, and returns dataclasses.

Its only dependency is httpx; none of the server's other packages has to be installed. `protocol` and `answers` decide
what to send, what a response means and when to retry; `blocking` and `asynchronous` do the I/O.
"""

from vit_api.client.asynchronous import AsyncClient
from vit_api.client.blocking import Client
from vit_api.client.inputs import ImageInput
from vit_api.client.protocol import Retries
from vit_api.client.results import (
    Busy,
    Classification,
    ClassifiedFrame,
    ClassifyError,
    Outcome,
    Rejected,
    ScoredLabel,
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
    "ClassifiedFrame",
    "ClassifyError",
    "Client",
    "ImageInput",
    "Outcome",
    "Rejected",
    "Retries",
    "ScoredLabel",
    "ServerFailed",
    "TimedOut",
    "UnexpectedAnswer",
    "Unreachable",
    "UnreadableInput",
]
