"""Judges a checkpoint in int8 or fp8 as CUDA computes them, and writes a copy with the verdict.

Nothing is calibrated, and the copy has the original weights: they are rounded when it is loaded. Without a GPU, the CPU
computes the same products; only the order of sums differs, and what is not rounded may run in another dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.checkpoints.int8 import CPU, CUDA, write_verdict
from vit_api.model.model import VisionModel
from vit_api.quantization import speed
from vit_api.quantization.copies import copy_checkpoint
from vit_api.quantization.judge import Judge, Pixels
from vit_api.quantization.quantizer import Result
from vit_api.quantization.speed import Speed


class ScaledQuantizer:
    """Judges one checkpoint.

    Args:
        checkpoint: The checkpoint.
        dtype: `int8` or `fp8`.
        judged: Returns the images that are judged, in the same order each time.
        min_images: Minimum number of images that are judged.

    Raises:
        ValueError: The checkpoint or the GPU can't compute in this dtype.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: str, judged: Callable[[], Iterator[Pixels]], min_images: int
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._judged = judged
        self._min_images = min_images
        self._device = "cuda:0" if torch.cuda.is_available() else CPU
        self._model = VisionModel(checkpoint, self._device, dtype, None, emulates_cuda=True)

    def run(self, out: Path) -> Result:
        """Write the copy and its verdict."""
        reference = VisionModel(self._checkpoint, self._device, "float32", None)
        judge = Judge(_run(reference), self._judged, has_sigmoid=self._checkpoint.has_sigmoid)
        compared = judge.compare(_run(self._model), may_stop=False)
        failures = compared.failures(self._min_images)
        measured = None if self._device == CPU else self._measure_speed()
        copy_checkpoint(self._checkpoint, out, {})
        described = {
            "dtype": self._dtype,
            "device": CUDA,
            "judged_on": self._model.device_name,
            "comparison": compared.figures(),
            "float_dtype": self._model.float_dtype,
            "versions": {"torch": version("torch")},
        }
        write_verdict(out, failures, described | ({} if measured is None else {"speed": measured.figures()}))
        return Result(compared, failures, [], measured)

    def _measure_speed(self) -> Speed:
        """Return the speed beside the checkpoint's in the default dtype, both as CUDA graphs."""
        default = VisionModel(self._checkpoint, self._device, "auto", None)
        images = [image for image, _ in zip(self._judged(), range(speed.BATCH_SIZE), strict=False)]
        for model in (self._model, default):
            model.prepare("auto", (speed.BATCH_SIZE,))

        def run(model: VisionModel, pixels: Pixels) -> object:
            return model.collect(model.launch(model.stage(list(pixels))))

        return speed.measure(
            lambda pixels: run(self._model, pixels), lambda pixels: run(default, pixels), default.float_dtype, images
        )


def _run(model: VisionModel) -> Callable[[Pixels], NDArray[np.float32]]:
    @torch.inference_mode()
    def run(pixels: Pixels) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = model.forward(torch.from_numpy(pixels).to(model.device))[1].float().cpu().numpy()
        return logits

    return run
