"""One forward pass in each engine and precision, as functions of the same uint8 pixels. Does not time them.

Each is made from this server's own network, so that all compute the same function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.checkpoints.int8 import FP8, INT8
from vit_api.environment.cpu_flags import has_vnni
from vit_api.model import int8
from vit_api.model.loading import load_network
from vit_api.model.model import VisionModel
from vit_api.model.openvino_network import OpenVINONetwork, has_native_bfloat16
from vit_api.model.vit import FusedViT

THREADS = 2
Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]
Runner = Callable[[Pixels], Logits]

_LARGEST, _ZERO_POINT = 127, 128

REFERENCE, BFLOAT16 = "this server, float32", "this server, bfloat16"
_NO_BFLOAT16 = "This CPU has no bfloat16."


def runners(checkpoint: Checkpoint, calibration: Sequence[Pixels], folder: Path) -> Iterator[tuple[str, Runner | str]]:
    """Yield the name of each engine and precision, and its forward pass, or why there is none here.

    Args:
        checkpoint: The model.
        calibration: The images that the ranges of activations are taken from.
        folder: For temporary files.
    """
    plain = VisionModel(checkpoint, "cpu", "float32", THREADS)
    yield REFERENCE, _torch(_logits(plain))
    halved = VisionModel(checkpoint, "cpu", "bfloat16", THREADS) if has_native_bfloat16() else None
    yield BFLOAT16, _NO_BFLOAT16 if halved is None else _torch(_logits(halved))
    exported = plain.export()
    quantized = int8.quantize(exported, calibration)
    made: dict[str, Callable[[], Runner]] = {
        "OpenVINO, float32": lambda: _openvino(exported, torch.float32),
        "OpenVINO, bfloat16": lambda: _openvino(exported, torch.bfloat16),
        "OpenVINO, int8 by NNCF, else float32": lambda: _openvino(quantized, torch.float32),
        "OpenVINO, int8 by NNCF, else bfloat16": lambda: _openvino(quantized, torch.bfloat16),
    }
    onnx_file = folder / "float32.onnx"
    made |= {
        "ONNX Runtime, float32": lambda: _onnx(_export_onnx(plain, onnx_file)),
        "ONNX Runtime, int8 dynamic": lambda: _onnx(_quantize_dynamically(onnx_file)),
        "ONNX Runtime, int8 QDQ per channel": lambda: _onnx(_quantize_qdq(onnx_file, calibration)),
    }
    made |= {
        "this server, int8 as on CUDA": lambda: _scaled(checkpoint, INT8),
        "this server, fp8 as on CUDA": lambda: _scaled(checkpoint, FP8),
        "torch's onednn.qlinear, int8 dynamic": lambda: _qlinear(plain),
        "torch.compile, float32": lambda: _compiled(plain),
        "torch.compile, bfloat16": lambda: _compiled(halved),
        "torchao, int8 dynamic, compiled": lambda: _torchao(checkpoint),
    }
    for name, make in made.items():
        if halved is None and name.endswith("bfloat16"):
            yield name, _NO_BFLOAT16
            continue
        print(f"Preparing {name}", flush=True)  # compilers take minutes
        try:
            yield name, _tried(make(), calibration)
        except Exception as error:  # of compilers and exporters: anything; the table says so
            yield name, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]


def _logits(model: VisionModel) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda pixels: model.forward(pixels)[1]


def _tried(runner: Runner, images: Sequence[Pixels]) -> Runner:
    """Return a runner that works for batches of 1 and 8; a compiler's failure shows only now."""
    for size in (1, 8):
        runner(np.stack(images[:size]))
    return runner


def _torch(logits: Callable[[torch.Tensor], torch.Tensor]) -> Runner:
    def run(pixels: Pixels) -> Logits:
        with torch.inference_mode():
            found: Logits = logits(torch.from_numpy(pixels)).float().numpy()
            return found

    return run


def _compiled(model: VisionModel | None) -> Runner:
    assert model is not None
    return _torch(torch.compile(_logits(model), dynamic=False))


def _scaled(checkpoint: Checkpoint, dtype: str) -> Runner:
    return _torch(_logits(VisionModel(checkpoint, "cpu", dtype, THREADS, emulates_cuda=True)))


class _QLinear(NamedTuple):
    """A layer in oneDNN's int8: weights per output channel, activations by the largest number of the batch."""

    packed: torch.Tensor
    scale: torch.Tensor
    zeros: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax() / _LARGEST
        rounded = (x / scale).round_().add_(_ZERO_POINT).to(torch.uint8).flatten(0, -2)
        weights = (self.packed, self.scale, self.zeros, self.bias)
        made: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, float(scale), _ZERO_POINT, *weights, 1.0, 0, torch.float32, "none", [], ""
        )
        return made.view(*x.shape[:-1], -1)


def _qlinear(model: VisionModel) -> Runner:
    def convert(linear: Any) -> Any:
        scale = linear.weight.abs().amax(1) / _LARGEST
        rounded = (linear.weight / scale[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        return _QLinear(packed, scale, torch.zeros_like(scale, dtype=torch.int64), linear.bias)

    fused = model.network
    if not isinstance(fused, FusedViT):
        raise TypeError("only for a ViT in its fused form")
    return _torch(fused.with_products(convert))


def _torchao(checkpoint: Checkpoint) -> Runner:
    if not has_vnni():
        raise RuntimeError("without VNNI, torch has no fast kernel for it: an image takes seconds")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    preprocessing = checkpoint.preprocessing
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(3, 1, 1)
    shift = -torch.tensor(preprocessing.mean, dtype=torch.float32).view(3, 1, 1) / std
    scale = preprocessing.scale / std
    # The fused form has no modules that torchao could replace.
    network: Any = load_network(checkpoint.path, [torch.float32], preprocessing.pixel_shape, scale, shift)
    quantize_(network, Int8DynamicActivationInt8WeightConfig())
    compiled: Any = torch.compile(network, dynamic=False)
    return _torch(lambda pixels: compiled(pixel_values=pixels.permute(0, 3, 1, 2).float() * scale + shift).logits)


def _openvino(model: Any, dtype: torch.dtype) -> Runner:
    network = OpenVINONetwork(model, THREADS, dtype)
    return lambda pixels: network(torch.from_numpy(pixels)).numpy().copy()


def _export_onnx(model: VisionModel, file: Path) -> Path:
    class Traced(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return model.forward(pixels)[1]

    example = torch.zeros((2, *model.pixel_shape), dtype=torch.uint8)
    with torch.no_grad():
        torch.onnx.export(
            Traced(),
            (example,),
            str(file),
            dynamo=False,
            opset_version=20,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
        )
    return file


@functools.cache  # both kinds of int8 are made from it
def _prepared(file: Path) -> Path:
    """Return the network with its constants folded: only weights that are constants are quantized."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = file.with_name("prepared.onnx")
    quant_pre_process(file, out, skip_symbolic_shape=True)
    return out


def _quantize_dynamically(file: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = file.with_name("dynamic.onnx")
    quantize_dynamic(_prepared(file), out, per_channel=True, weight_type=QuantType.QInt8)
    return out


def _quantize_qdq(file: Path, calibration: Sequence[Pixels]) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(calibration)

        def get_next(self) -> dict[str, Pixels] | None:
            image = next(self._rest, None)
            return None if image is None else {"pixels": image[None]}

    out = file.with_name("qdq.onnx")
    quantize_static(
        _prepared(file),
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    return out


def _onnx(file: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["logits"], {"pixels": pixels})[0]
