"""Quantizes a checkpoint, judges the result by the gate, and leaves out the layers that cost it most if it fails.

Knows nothing of the command line.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import PROCESSOR_FILES, Checkpoint
from vit_api.checkpoints.int8 import model_file, write_verdict
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
_FIRST_LEFT_OUT = 2
"""Layers that are left out at first, doubled until the gate is passed or half of them are."""


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
        from vit_api.model import int8

        left_out: list[str] = []
        quantized = int8.quantize(self._exported, self._calibration)
        compared = self._compare(quantized)
        logger.info("All layers in int8: %s", compared.figures())
        if self._fails_by_accuracy(compared):
            ranked = self._rank_layers(quantized)
            count = _FIRST_LEFT_OUT
            while count <= max(len(ranked) // 2, _FIRST_LEFT_OUT) and self._fails_by_accuracy(compared):
                left_out = ranked[:count]
                quantized = int8.quantize(self._exported, self._calibration, left_out)
                compared = self._compare(quantized)
                logger.info("Without the %d layers that cost most: %s", count, compared.figures())
                count *= 2
        failures = compared.failures(self._min_images)
        self._write(out, quantized)
        described = {
            "comparison": compared.figures(),
            "left_out": left_out,
            "calibration_images": len(self._calibration),
            "versions": {name: version(name) for name in ("openvino", "nncf", "torch")},
        }
        write_verdict(out, failures, described)
        return compared, failures, left_out

    def _fails_by_accuracy(self, compared: Comparison) -> bool:
        """Return whether it fails the gate, the number of images apart: leaving out layers can't mend that."""
        return bool(compared.failures(min_images=0))

    def _rank_layers(self, quantized: Any) -> list[str]:
        """Return the names of the quantized matrix products, first the one whose rounding costs most."""
        from vit_api.model import int8

        images = list(self._calibration[:_COMPARED_LAYERS])
        expected = self._run_all(self._compile(self._exported), iter(images))

        def remaining(name: str) -> float:
            without = self._run_all(self._compile(int8.without_quantized_input(quantized, name)), iter(images))
            return compare(expected, without).mean_difference

        costs = {name: remaining(name) for name in int8.quantized_products(quantized)}
        return sorted(costs, key=lambda name: costs[name])

    def _compare(self, quantized: Any) -> Comparison:
        return compare(self._expected, self._run_all(self._compile(quantized), self._judged()))

    def _compile(self, model: Any) -> Run:
        import torch

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

    def _write(self, out: Path, quantized: Any) -> None:
        """Write the network, and copy the checkpoint, which is served in the other dtypes."""
        import openvino

        out.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", *PROCESSOR_FILES, INDEX, *weight_files(self._checkpoint.path)):
            source = self._checkpoint.path / name
            if source.is_file():
                shutil.copyfile(source, out / name)
        openvino.save_model(quantized, model_file(out), compress_to_fp16=False)
