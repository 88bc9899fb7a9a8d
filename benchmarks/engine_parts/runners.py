"""One forward pass in each engine and precision, as functions of the same uint8 pixels. Does not time them.

Each is made from this server's own network, so that all compute the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.model import int8
from vit_api.model.loading import load_network
from vit_api.model.model import VisionModel
from vit_api.model.openvino_network import OpenVINONetwork

THREADS = 2
Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]
Runner = Callable[[Pixels], Logits]

REFERENCE, OURS = "this server, float32", "this server, bfloat16"


def runners(checkpoint: Checkpoint, calibration: Sequence[Pixels], folder: Path) -> Iterator[tuple[str, Runner | str]]:
    """Yield the name of each engine and precision, and its forward pass, or why there is none here.

    Args:
        checkpoint: The model.
        calibration: The images that the ranges of activations are taken from.
        folder: For temporary files.
    """
    models = {dtype: VisionModel(checkpoint, "cpu", dtype, THREADS) for dtype in ("float32", "bfloat16")}
    plain = models["float32"]
    yield REFERENCE, _torch(_logits(plain))
    yield OURS, _torch(_logits(models["bfloat16"]))
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
        "torch.compile, bfloat16": lambda: _torch(torch.compile(_logits(models["bfloat16"]), dynamic=False)),
        "torchao, int8 dynamic, compiled": lambda: _torchao(checkpoint),
    }
    for name, make in made.items():
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


def _torchao(checkpoint: Checkpoint) -> Runner:
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


def _quantize_dynamically(file: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = file.with_name("dynamic.onnx")
    quantize_dynamic(file, out, per_channel=True, weight_type=QuantType.QInt8)
    return out


def _quantize_qdq(file: Path, calibration: Sequence[Pixels]) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(calibration)

        def get_next(self) -> dict[str, Pixels] | None:
            image = next(self._rest, None)
            return None if image is None else {"pixels": image[None]}

    prepared, out = file.with_name("prepared.onnx"), file.with_name("qdq.onnx")
    quant_pre_process(file, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
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
