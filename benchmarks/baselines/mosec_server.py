"""A mosec server as in its documentation: a stage of workers that decode, and one worker that runs batches.

Runs in mosec's own environment, with this repository's packages behind it (`harness.peers`). mosec's port and timeout
are in its environment variables. Arguments: model.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

import numpy as np
from mosec import Server, ValidationError, Worker
from numpy.typing import NDArray

from benchmarks.baselines.command_line import arguments, lit_api

_MAX_BATCH_SIZE = 32
_MAX_WAIT_MS = 5
_OPTIONS: Namespace = arguments(needs_port=False)  # mosec creates its workers without arguments


class Decode(Worker):  # type: ignore[misc]
    """Decodes one upload at a time."""

    def __init__(self) -> None:
        self._api = lit_api(_OPTIONS)

    def deserialize(self, data: bytes) -> bytes:
        """Return the body unchanged: the bytes of an image."""
        return data

    def forward(self, data: bytes) -> NDArray[np.uint8]:
        """Decode an upload.

        Raises:
            ValidationError: It is not an image.
        """
        try:
            return self._api.decode_request(data)
        except OSError as error:
            raise ValidationError(str(error)) from error


class Classify(Worker):  # type: ignore[misc]
    """Runs batches."""

    def __init__(self) -> None:
        self._api = lit_api(_OPTIONS, max_batch_size=_MAX_BATCH_SIZE)
        self._api.setup("cpu")

    def forward(self, data: list[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """Classify a batch."""
        api = self._api
        return [api.encode_response(prediction) for prediction in api.unbatch(api.predict(api.batch(data)))]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=len(os.sched_getaffinity(0)))
    server.append_worker(Classify, max_batch_size=_MAX_BATCH_SIZE, max_wait_time=_MAX_WAIT_MS)
    server.run()
