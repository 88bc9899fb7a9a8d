"""Quantizes a checkpoint, judges the result by the gate, and leaves out the layers that cost it most if it fails.

Knows nothing of the command line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.checkpoints.int8 import CPU, INT8, QUANTIZATION_CONFIG, model_file, write_verdict
from vit_api.environment.cores import available_cores
from vit_api.environment.cpu_flags import has_vnni
from vit_api.quantization import speed
from vit_api.quantization.copies import copy_checkpoint
from vit_api.quantization.gate import Comparison, compare
from vit_api.quantization.judge import Judge, Pixels, Run, answers
from vit_api.quantization.speed import Speed

logger = logging.getLogger(__name__)

_COMPARED_LAYERS = 8
"""Images that show what each layer costs."""


class Result(NamedTuple):
    """What was made.

    Attributes:
        compared: How far the int8 network is from float32.
        failures: Why it fails the gate, a sentence each; empty if it passes.
        left_out: The products that are not in int8.
        speed: Its speed beside that of the checkpoint in the default dtype; None if it was not measured.
    """

    compared: Comparison
    failures: list[str]
    left_out: list[str]
    speed: Speed | None


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
        may_leave_out: Whether to leave layers out if the gate is failed; it takes minutes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Sequence[Pixels],
        judged: Callable[[], Iterator[Pixels]],
        min_images: int,
        *,
        may_leave_out: bool = True,
    ) -> None:
        from vit_api.model.model import VisionModel

        self._checkpoint = checkpoint
        self._calibration = calibration
        self._min_images = min_images
        self._may_leave_out = may_leave_out
        self._threads = available_cores()
        self._exported = VisionModel(checkpoint, "cpu", "float32", self._threads).export()
        self._judge = Judge(self._compile(self._exported), judged, has_sigmoid=checkpoint.has_sigmoid)

    def run(self, out: Path) -> Result:
        """Write the int8 checkpoint and its verdict."""
        found = self._search()
        if not found.is_accurate:  # it may have been judged in part
            found = found._replace(compared=self._judge.compare(self._compile(found.model), may_stop=False))
        failures = found.compared.failures(self._min_images)
        measured = self._measure_speed(found.model)
        self._write(out, found)
        described = {
            "dtype": INT8,
            "device": CPU,
            "comparison": found.compared.figures(),
            "speed": measured.figures(),
            "float_dtype": found.float_dtype,
            "has_vnni": has_vnni(),
            "left_out": found.left_out,
            "calibration_images": len(self._calibration),
            "versions": {name: version(name) for name in ("openvino", "nncf", "torch")},
        }
        write_verdict(out, failures, described)
        return Result(found.compared, failures, found.left_out, measured)

    def _search(self) -> _Quantized:
        """Return an accurate network with few products left out, or the last one tried: that without half of them.

        The number of products that are left out is doubled until the network is accurate, and then bisected.
        """
        from vit_api.model import int8

        quantized = int8.quantize(self._exported, self._calibration)
        found = self._judged(quantized, [])
        if found.is_accurate or not self._may_leave_out:
            return found
        ranked = self._rank_products(quantized)
        too_few, count = 0, 1
        while not found.is_accurate and count <= len(ranked) // 2:
            too_few, found = len(found.left_out), self._judged(quantized, ranked[:count])
            count *= 2
        while found.is_accurate and len(found.left_out) - too_few > 1:
            middle = (len(found.left_out) + too_few) // 2
            tried = self._judged(quantized, ranked[:middle])
            found, too_few = (tried, too_few) if tried.is_accurate else (found, middle)
        return found

    def _judged(self, quantized: Any, left_out: list[str]) -> _Quantized:
        """Return the network without these products in int8, with the rest in bfloat16 if that is accurate enough."""
        from vit_api.model import int8
        from vit_api.model.openvino_network import has_native_bfloat16, set_float_dtype

        for dtype in (torch.bfloat16, torch.float32) if has_native_bfloat16() else (torch.float32,):
            model = int8.in_floating_point(quantized, self._exported, left_out)
            set_float_dtype(model, dtype)
            compared = self._judge.compare(self._compile(model))
            found = _Quantized(model, str(dtype).removeprefix("torch."), left_out, compared)
            logger.info("%d left out, the rest in %s: %s", len(left_out), found.float_dtype, compared.figures())
            if found.is_accurate:
                break
        return found

    def _rank_products(self, quantized: Any) -> list[str]:
        """Return the names of what is quantized, first the matrix product or attention whose rounding costs most."""
        from vit_api.model import int8

        images = list(self._calibration[:_COMPARED_LAYERS])
        sigmoid = self._checkpoint.has_sigmoid
        expected = answers(self._compile(self._exported), images, has_sigmoid=sigmoid)

        def remaining(name: str) -> float:
            without = self._compile(int8.in_floating_point(quantized, self._exported, [name]))
            return compare(expected, answers(without, images, has_sigmoid=sigmoid)).mean_difference

        costs = {name: remaining(name) for name in int8.quantized_products(quantized)}
        ranked = sorted(costs, key=lambda name: costs[name])
        logger.info("Costs most in int8: %s", ", ".join(ranked[:4]))
        return ranked

    def _measure_speed(self, quantized: Any) -> Speed:
        """Return the speed beside the checkpoint's in the dtype that a server takes by default."""
        from vit_api.model.model import VisionModel

        default = VisionModel(self._checkpoint, "cpu", "auto", self._threads)

        @torch.inference_mode()
        def run_default(pixels: Pixels) -> object:
            return default.forward(torch.from_numpy(pixels))

        found = speed.measure(self._compile(quantized), run_default, default.float_dtype, self._calibration)
        logger.info("Speed: %s", found.figures())
        return found

    def _compile(self, model: Any) -> Run:
        from vit_api.model.openvino_network import OpenVINONetwork

        network = OpenVINONetwork(model, self._threads)
        return lambda pixels: network(torch.from_numpy(pixels)).numpy().copy()

    def _write(self, out: Path, quantized: _Quantized) -> None:
        """Write the network, and copy the checkpoint, which is served in the other dtypes."""
        import openvino

        copy_checkpoint(self._checkpoint, out, {"quantization_config": QUANTIZATION_CONFIG})
        openvino.save_model(quantized.model, model_file(out), compress_to_fp16=False)
