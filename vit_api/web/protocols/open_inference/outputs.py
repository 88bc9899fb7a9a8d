"""The outputs of the model, and the response body. Pure; knows nothing of HTTP.

The JSON is $inference_response of the Open Inference Protocol; see `infer_request` for the extensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from vit_api.errors import BadRequest, UnsupportedOutput
from vit_api.ipc.records import ALL_CLASSES, EMBEDDING, MAX_TOP_K, Prediction
from vit_api.web.protocols.open_inference.infer_request import InferRequest, WantedOutput
from vit_api.web.protocols.open_inference.tensors import DTYPES, TensorSpec, pack_bytes
from vit_api.web.protocols.results import NO_EMBEDDING
from vit_api.web.responses import to_json

PROBABILITIES, INDICES, LABELS = "probabilities", "indices", "labels"
LOGITS, EMBEDDINGS = "logits", "embedding"
_TYPES = {PROBABILITIES: "FP32", INDICES: "INT32", LABELS: "BYTES", LOGITS: "FP32"}
_BY_DEFAULT = (PROBABILITIES, INDICES, LABELS)
"""The outputs of a request that names none: one that asks for more must say so."""

MODEL_VERSION = "1"

T = TypeVar("T")


class Outputs:
    """Encode responses.

    Args:
        model_name: The name of the model.
        labels: The class names, by index.
        has_sigmoid: Whether the model's probabilities are sigmoids; see `Checkpoint`.
        version: The version of the model.
    """

    def __init__(
        self, model_name: str, labels: Sequence[str], *, has_sigmoid: bool = False, version: str = MODEL_VERSION
    ) -> None:
        self._has_sigmoid = has_sigmoid
        self._model_name = model_name
        self._version = version
        self._labels = labels
        self.classes = min(MAX_TOP_K, len(labels))
        self._names = [spec.name for spec in self.specs()]

    def specs(self) -> list[TensorSpec]:
        """Return the description of each output."""
        shape = (-1, self.classes)
        top = f"of the {self.classes} most probable classes, most probable first"
        return [
            TensorSpec(PROBABILITIES, "FP32", shape, f"Probabilities {top}: sorted, not by class; see {INDICES!r}"),
            TensorSpec(INDICES, "INT32", shape, f"Indices {top}"),
            TensorSpec(LABELS, "BYTES", shape, f"Labels {top}"),
            TensorSpec(LOGITS, "FP32", (-1, len(self._labels)), "Logits of all classes, by class; only by name"),
            TensorSpec(EMBEDDINGS, "FP32", (-1, -1), "What the last layer reads, of length 1; only by name"),
        ]

    def parts_of(self, request: InferRequest) -> int:
        """Return what answers must have besides the most probable classes, see `records.ALL_CLASSES`."""
        names = [output.name for output in request.outputs]
        counts = [output.classes or 0 for output in request.outputs]
        needs_all = LOGITS in names or request.is_by_class or request.top_k == 0
        needs_all = needs_all or max([*counts, request.top_k or 0]) > MAX_TOP_K
        all_classes = ALL_CLASSES if needs_all and len(self._labels) > MAX_TOP_K else 0
        return all_classes | (EMBEDDING if EMBEDDINGS in names else 0)

    def check(self, request: InferRequest) -> None:
        """Check that the requested outputs exist.

        Raises:
            BadRequest: There is no such output, or it has no classification, or too few classes are requested.
        """
        for output in request.outputs:
            if output.name not in self._names:
                raise BadRequest(
                    f"There is no output {output.name!r}. Request one of {', '.join(map(repr, self._names))}."
                )
            if output.classes is None:
                continue
            if output.name != PROBABILITIES:
                raise BadRequest(f"Only {PROBABILITIES!r} has a classification, not {output.name!r}.")
            if output.classes < 1:
                raise BadRequest(
                    f"'classification' of {output.name!r} must be a positive integer, not {output.classes}."
                )

    def encode(self, request: InferRequest, predictions: Sequence[Prediction]) -> tuple[bytes, int | None]:
        """Return the response body, and the length of its JSON if binary data follows it."""
        wanted = request.outputs or [WantedOutput(name, request.is_binary) for name in _BY_DEFAULT]
        tensors, binary = [], []
        for output in wanted:
            datatype, rows = self._rows(request, output, predictions)
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
        response: dict[str, Any] = {"model_name": self._model_name, "model_version": self._version}
        if request.id is not None:
            response["id"] = request.id
        header = to_json(response | {"outputs": tensors})
        return (b"".join([header, *binary]), len(header)) if binary else (header, None)

    def _rows(
        self, request: InferRequest, output: WantedOutput, predictions: Sequence[Prediction]
    ) -> tuple[str, list[Sequence[Any]]]:
        """Return an output's datatype, and a row of values for each image."""
        if output.classes is not None:
            return "BYTES", [self._classification(prediction, output.classes) for prediction in predictions]
        if output.name == EMBEDDINGS:
            if not all(prediction.embedding for prediction in predictions):
                raise UnsupportedOutput(NO_EMBEDDING)
            return "FP32", [prediction.embedding_values() for prediction in predictions]
        datatype = _TYPES[output.name]
        rows = [(self._values(output.name, prediction), prediction.indices) for prediction in predictions]
        if request.is_by_class or output.name == LOGITS:
            return datatype, [_sort(values, indices) for values, indices in rows]
        count = self.classes if request.top_k is None else request.top_k or len(self._labels)
        return datatype, [values[:count] for values, _ in rows]

    def _values(self, name: str, prediction: Prediction) -> Sequence[Any]:
        """Return an output's values, the most probable class first."""
        if name == PROBABILITIES:
            return prediction.scores(sigmoid=self._has_sigmoid)
        if name == INDICES:
            return prediction.indices
        return prediction.logits if name == LOGITS else [self._labels[index] for index in prediction.indices]

    def _classification(self, prediction: Prediction, classes: int) -> list[str]:
        """Return `value:index:label` for each class, the format of Triton's classification extension.

        If more classes are requested than there are, all are returned, as Triton does.
        """
        scores = prediction.scores(sigmoid=self._has_sigmoid)
        top = zip(scores[:classes], prediction.indices[:classes], strict=True)
        return [f"{probability:f}:{index}:{self._labels[index]}" for probability, index in top]


def _sort(values: Sequence[T], indices: Sequence[int]) -> list[T]:
    """Return the values of all classes in the order of the classes."""
    by_class = dict(zip(indices, values, strict=True))
    return [by_class[index] for index in range(len(by_class))]


def _pack(datatype: str, rows: Sequence[Sequence[Any]]) -> bytes:
    if datatype == "BYTES":
        return pack_bytes([text.encode() for row in rows for text in row])
    return np.array(rows, DTYPES[datatype]).tobytes()
