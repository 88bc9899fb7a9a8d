"""Exports a classifier to OpenVINO and runs it there, on the CPU.

An exported network maps uint8 pixels [batch, height, width, 3] to logits and, if the classifier has them, the features
that its last layer reads. The batch size is dynamic. Must not know how a network is quantized, nor files but its own.
Only this module and `int8` import openvino, which is an extra.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LOGITS, FEATURES = "logits", "features"
"""The outputs of an exported network."""
_TRACED_IMAGES = 2
"""A batch of one could be taken for a constant when the network is traced."""

_FLOAT_DTYPE = ["vit_api", "float_dtype"]
"""Where a model's runtime information has the dtype of what is not quantized."""
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}

Forward = Callable[[Tensor], tuple[Tensor | None, Tensor]]
"""Maps uint8 pixels to the features, or None, and the logits."""


class _Traceable(nn.Module):
    """A forward pass as the module that OpenVINO's converter takes.

    Args:
        forward: The forward pass.
        network: The modules that it calls, if any: the converter finds their weights by name.
    """

    def __init__(self, forward: Forward, network: nn.Module | None) -> None:
        super().__init__()
        self._forward = forward
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        features, logits = self._forward(pixels)
        return (logits,) if features is None else (logits, features)


def export(forward: Forward, pixel_shape: tuple[int, int, int], network: nn.Module | None = None) -> Any:
    """Return a forward pass in float32 as an `openvino.Model`.

    Args:
        forward: Must call nothing that torch can't trace, and no kernel of ours.
        pixel_shape: (height, width, 3) of an image.
        network: See `_Traceable`.
    """
    import openvino

    example = torch.zeros((_TRACED_IMAGES, *pixel_shape), dtype=torch.uint8)
    with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
        # The tracer warns about comparisons of shapes, which are those of every batch.
        warnings.simplefilter("ignore")
        model = openvino.convert_model(_Traceable(forward, network), example_input=example)
    model.reshape([-1, *pixel_shape])
    for output, name in zip(model.outputs, (LOGITS, FEATURES), strict=False):
        output.get_tensor().set_names({name})
    return model


def has_native_bfloat16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this CPU."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def set_float_dtype(model: Any, dtype: torch.dtype) -> None:
    """Note in a model the dtype of what is not quantized; its file keeps it."""
    model.set_rt_info(_name(dtype), _FLOAT_DTYPE)


def float_dtype(model: Any) -> torch.dtype:
    """Return the dtype that `set_float_dtype` noted; float32 if it noted none."""
    noted = model.get_rt_info(_FLOAT_DTYPE).astype(str) if model.has_rt_info(_FLOAT_DTYPE) else _name(torch.float32)
    return next(dtype for dtype in _HINTS if _name(dtype) == noted)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class OpenVINONetwork:
    """An exported network, compiled for the CPU.

    Args:
        model: The `openvino.Model`, or the path of its file.
        threads: Threads of one forward pass.
        dtype: The dtype of what is not quantized; by default, that of `float_dtype`. Without native bfloat16, float32
            takes its place.

    Attributes:
        dtype: The dtype that what is not quantized runs in.
    """

    def __init__(self, model: Any, threads: int, dtype: torch.dtype | None = None) -> None:
        import openvino

        core = openvino.Core()
        if isinstance(model, Path):
            model = core.read_model(model)
        wanted = float_dtype(model) if dtype is None else dtype
        self.dtype = torch.bfloat16 if wanted == torch.bfloat16 and has_native_bfloat16() else torch.float32
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _HINTS[self.dtype],
            # Several workers on one machine would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = core.compile_model(model, "CPU", options)
        self._request = self._compiled.create_infer_request()
        self._names = [next(iter(output.get_names())) for output in self._compiled.outputs]

    @property
    def has_features(self) -> bool:
        """Whether it returns features."""
        return FEATURES in self._names

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float32 logits [batch, classes] of uint8 pixels [batch, height, width, 3]."""
        return self.run(pixels)[1]

    def run(self, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the features [batch, size], None if it has none, and the logits, all float32."""
        outputs = self._request.infer([pixels.contiguous().numpy()], share_inputs=True)
        found = {name: torch.from_numpy(outputs[name]) for name in self._names}
        return found.get(FEATURES), found[LOGITS]
