"""The three outputs of the model, and the answer's body. Pure; knows nothing of HTTP.

The JSON is $inference_response of the Open Inference Protocol; see `infer_request` for the extensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_api.errors import BadRequest
from vit_api.ipc.records import MAX_TOP_K, Prediction
from vit_api.web.protocols.open_inference.infer_request import InferRequest, WantedOutput
from vit_api.web.protocols.open_inference.tensors import DTYPES, TensorSpec, pack_bytes
from vit_api.web.requests import to_json

PROBABILITIES, INDICES, LABELS = "probabilities", "indices", "labels"
MODEL_VERSION = "1"


class Outputs:
    """Word the answers.

    Args:
        model_name: What the model is called.
        labels: The class names, by index.
    """

    def __init__(self, model_name: str, labels: Sequence[str]) -> None:
        self._model_name = model_name
        self._labels = labels
        self.classes = min(MAX_TOP_K, len(labels))
        self._names = [spec.name for spec in self.specs()]

    def specs(self) -> list[TensorSpec]:
        """Return what each output looks like."""
        shape = (-1, self.classes)
        first = f"Of the {self.classes} most probable classes, most probable first"
        return [
            TensorSpec(PROBABILITIES, "FP32", shape, f"{first}: sorted, not by class; {INDICES!r} says which"),
            TensorSpec(INDICES, "INT32", shape, f"{first}: the classes' numbers"),
            TensorSpec(LABELS, "BYTES", shape, f"{first}: the classes' names"),
        ]

    def check(self, request: InferRequest) -> None:
        """Refuse a request for what there is not.

        Raises:
            BadRequest: There is no such output, or it can't be had as a classification, or not of so few classes.
        """
        for output in request.outputs:
            if output.name not in self._names:
                raise BadRequest(f"there is no output {output.name!r}; there are {', '.join(map(repr, self._names))}")
            if output.classes is None:
                continue
            if output.name != PROBABILITIES:
                raise BadRequest(f"only {PROBABILITIES!r} can be had as a classification, not {output.name!r}")
            if output.classes < 1:
                raise BadRequest(f"a classification has at least one class, not {output.classes}")

    def word(self, request: InferRequest, predictions: Sequence[Prediction]) -> tuple[bytes, int | None]:
        """Return the answer's body, and how long the JSON in it is if binary data follows it."""
        wanted = request.outputs or [WantedOutput(name, request.is_binary) for name in self._names]
        tensors, binary = [], []
        for output in wanted:
            datatype, rows = self._rows(output, predictions)
            tensor: dict[str, Any] = {
                "name": output.name,
                "datatype": datatype,
                "shape": [len(rows), len(rows[0])],
            }
            if output.is_binary:
                binary.append(_pack(datatype, rows))
                tensor["parameters"] = {"binary_data_size": len(binary[-1])}
            else:
                tensor["data"] = [value for row in rows for value in row]
            tensors.append(tensor)
        answer: dict[str, Any] = {"model_name": self._model_name, "model_version": MODEL_VERSION}
        if request.id is not None:
            answer["id"] = request.id
        header = to_json(answer | {"outputs": tensors})
        return (b"".join([header, *binary]), len(header)) if binary else (header, None)

    def _rows(self, output: WantedOutput, predictions: Sequence[Prediction]) -> tuple[str, list[Sequence[Any]]]:
        """Return an output's datatype, and its values for each image."""
        if output.classes is not None:
            return "BYTES", [self._classification(prediction, output.classes) for prediction in predictions]
        if output.name == PROBABILITIES:
            return "FP32", [prediction.probabilities for prediction in predictions]
        if output.name == INDICES:
            return "INT32", [prediction.indices for prediction in predictions]
        return "BYTES", [[self._labels[index] for index in prediction.indices] for prediction in predictions]

    def _classification(self, prediction: Prediction, classes: int) -> list[str]:
        """Return `value:index:label` of each class, as Triton's classification extension words it.

        Who asks for more classes than there are gets all, as from Triton.
        """
        top = zip(prediction.probabilities[:classes], prediction.indices[:classes], strict=True)
        return [f"{probability:f}:{index}:{self._labels[index]}" for probability, index in top]


def _pack(datatype: str, rows: Sequence[Sequence[Any]]) -> bytes:
    if datatype == "BYTES":
        return pack_bytes([text.encode() for row in rows for text in row])
    return np.array(rows, DTYPES[datatype]).tobytes()
