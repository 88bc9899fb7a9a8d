"""A model of Triton's Python backend, which decodes and classifies a batch.

It is copied into a model repository as `model.py`, and runs in Triton's own environment, with this repository's
packages behind it (`harness.peers`). Its parameters are in the repository's configuration.
"""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from benchmarks.baselines.command_line import lit_api


class TritonPythonModel:
    """Takes an image file in each request; returns the most probable labels and their probabilities."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        options = Namespace(model=parameters["model"], dtype=parameters["dtype"], cpu_threads=1, decoder="pillow")
        self._api = lit_api(options, max_batch_size=config["max_batch_size"])
        self._api.setup("cpu")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Classify the uploads of a batch of requests, each of which has one."""
        responses: list[Any] = [None] * len(requests)
        decoded = []
        for number, request in enumerate(requests):
            upload = triton.get_input_tensor_by_name(request, "image").as_numpy().item()
            try:
                decoded.append((number, self._api.decode_request(upload)))
            except OSError as error:
                responses[number] = triton.InferenceResponse(error=triton.TritonError(str(error)))
        if decoded:
            output = self._api.predict(self._api.batch([pixels for _, pixels in decoded]))
            for (number, _), prediction in zip(decoded, self._api.unbatch(output), strict=True):
                responses[number] = _response(self._api.encode_response(prediction)["predictions"])
        return responses


def _response(predictions: list[dict[str, Any]]) -> Any:
    labels = np.array([[each["label"].encode() for each in predictions]], dtype=object)
    confidences = np.array([[each["confidence"] for each in predictions]], dtype=np.float32)
    return triton.InferenceResponse([triton.Tensor("label", labels), triton.Tensor("confidence", confidences)])
