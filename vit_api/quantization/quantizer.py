"""Quantizes a checkpoint, judges the result by the gate, and leaves out the layers that cost it most if it fails.

Knows nothing of the command line.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import PROCESSOR_FILES, Checkpoint
from vit_api.checkpoints.int8 import QUANTIZATION_CONFIG, model_file, write_verdict
from vit_api.checkpoints.weights import INDEX, weight_files
from vit_api.environment.cores import available_cores
from vit_api.quantization.gate import Comparison, Probabilities, compare, probabilities

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Run = Callable[[Pixels], NDArray[np.float32]]
"""Maps pixels [batch, height, width, 3] to logits."""

BATCH_SIZE = 8
_COMPARED_LAYERS = 16
"""Images that show what each layer costs."""
_FIRST_LEFT_OUT = 1
"""Products that are left out at first, doubled until the gate is passed or half of them are."""


class _Quantized(NamedTuple):
    """A quantized network, the dtype of the rest of it, what of it was left out, and how far it is from float32."""

    model: Any
    float_dtype: str
    left_out: list[str]
    compared: Comparison

    @property
    def is_accurate(self) -> bool:
        """Whether it passes the gate, the number of images apart, which no other network would mend."""
        return not self.compared.failures(min_images=0)


class Quantizer:
    """Quantizes one checkpoint.

    Args:
        checkpoint: The checkpoint.
        calibration: uint8 [height, width, 3] each; the ranges of activations are those on them.
        judged: Returns the images that are judged, in the same order each time. They should be others.
        min_images: Minimum number of images that are judged.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Sequence[Pixels],
        judged: Callable[[], Iterator[Pixels]],
        min_images: int,
    ) -> None:
        from vit_api.model.model import VisionModel

        self._checkpoint = checkpoint
        self._calibration = calibration
        self._judged = judged
        self._min_images = min_images
        self._threads = available_cores()
        model = VisionModel(checkpoint, "cpu", "float32", self._threads)
        self._exported = model.export()
        self._expected = self._run_all(self._compile(self._exported), judged())

    def run(self, out: Path) -> tuple[Comparison, list[str], list[str]]:
        """Write the int8 checkpoint and its verdict.

        Returns:
            How far it is from float32, why it fails the gate (empty if it passes), and the layers that were left out.
        """
        found = self._search()
        failures = found.compared.failures(self._min_images)
        self._write(out, found)
        described = {
            "comparison": found.compared.figures(),
            "float_dtype": found.float_dtype,
            "left_out": found.left_out,
            "calibration_images": len(self._calibration),
            "versions": {name: version(name) for name in ("openvino", "nncf", "torch")},
        }
        write_verdict(out, failures, described)
        return found.compared, failures, found.left_out

    def _search(self) -> _Quantized:
        """Return the first network that is accurate enough, or the last one tried: that with most in float32."""
        found = self._quantize([])
        if found.is_accurate:
            return found
        ranked = self._rank_products(found.model)
        count = _FIRST_LEFT_OUT
        while not found.is_accurate and count <= len(ranked) // 2:
            found = self._quantize(ranked[:count])
            count *= 2
        return found

    def _quantize(self, left_out: list[str]) -> _Quantized:
        """Return the network without these products in int8, with the rest in bfloat16 if that is accurate enough."""
        from vit_api.model import int8
        from vit_api.model.openvino_network import has_native_bfloat16, set_float_dtype

        model = int8.quantize(self._exported, self._calibration, left_out)
        for dtype in (torch.bfloat16, torch.float32) if has_native_bfloat16() else (torch.float32,):
            set_float_dtype(model, dtype)
            compared = compare(self._expected, self._run_all(self._compile(model), self._judged()))
            found = _Quantized(model, str(dtype).removeprefix("torch."), left_out, compared)
            logger.info("%d left out, the rest in %s: %s", len(left_out), found.float_dtype, compared.figures())
            if found.is_accurate:
                break
        return found

    def _rank_products(self, quantized: Any) -> list[str]:
        """Return the names of what is quantized, first the matrix product or attention whose rounding costs most."""
        from vit_api.model import int8

        images = list(self._calibration[:_COMPARED_LAYERS])
        expected = self._run_all(self._compile(self._exported), iter(images))

        def remaining(name: str) -> float:
            without = self._compile(int8.in_floating_point(quantized, self._exported, name))
            return compare(expected, self._run_all(without, iter(images))).mean_difference

        costs = {name: remaining(name) for name in int8.quantized_products(quantized)}
        return sorted(costs, key=lambda name: costs[name])

    def _compile(self, model: Any) -> Run:
        from vit_api.model.openvino_network import OpenVINONetwork

        network = OpenVINONetwork(model, self._threads)
        return lambda pixels: network(torch.from_numpy(pixels)).numpy().copy()

    def _run_all(self, run: Run, images: Iterator[Pixels]) -> Probabilities:
        rows = []
        batch: list[Pixels] = []
        for image in images:
            batch.append(image)
            if len(batch) == BATCH_SIZE:
                rows.append(run(np.stack(batch)))
                batch.clear()
        if batch:
            rows.append(run(np.stack(batch)))
        logits = np.concatenate(rows)
        return probabilities(logits, sigmoid=self._checkpoint.has_sigmoid)

    def _write(self, out: Path, quantized: _Quantized) -> None:
        """Write the network, and copy the checkpoint, which is served in the other dtypes."""
        import openvino

        out.mkdir(parents=True, exist_ok=True)
        for name in (*PROCESSOR_FILES, INDEX, *weight_files(self._checkpoint.path)):
            source = self._checkpoint.path / name
            if source.is_file():
                shutil.copyfile(source, out / name)
        config = json.loads((self._checkpoint.path / "config.json").read_bytes())
        (out / "config.json").write_text(
            json.dumps(config | {"quantization_config": QUANTIZATION_CONFIG}, indent=2) + "\n"
        )
        openvino.save_model(quantized.model, model_file(out), compress_to_fp16=False)
