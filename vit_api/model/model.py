"""A Vision Transformer on a device: uint8 pixels in, the most probable classes out.

Combines `vit`, `engines` and `staging`. Must not know slots or HTTP. Only workers and `classify` import it, because the
import of torch takes seconds.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.cores import available_cores
from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc.records import MAX_TOP_K, Prediction
from vit_api.model.engines import (
    Engine,
    Network,
    batch_sizes,
    choose_engine,
    common_batch_sizes,
    compile_network,
    make_engine,
    pack,
    unpack,
)
from vit_api.model.staging import CudaLink, Event, HostLink, Staged, Staging
from vit_api.model.vit import fuse

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_BFLOAT16_CAPABILITY = (8, 0)
_NARROW = 128
"""Models below this width have operations too short for bfloat16 or several threads to pay off on the CPU."""

_MAX_DEVIATION = {torch.float32: 1e-3}
_MAX_DEVIATION_ELSE = 0.05
"""Maximum `engines.deviation`: the order of summation differs, and bfloat16 has 8 significant bits."""


class Launched(NamedTuple):
    """A batch that was launched on the device.

    Attributes:
        packed: The predictions in host memory; see `engines.pack`.
        arrival: The event at which they are complete.
    """

    packed: torch.Tensor
    arrival: Event

    def is_done(self) -> bool:
        """Return whether the predictions are complete."""
        return self.arrival.query()


def choose_dtype(dtype: str, device: torch.device, width: int) -> torch.dtype:
    """Return the dtype to compute in; `auto` selects the fastest one that the hardware supports natively.

    This is bfloat16 on CUDA devices with compute capability 8.0 or higher and on CPUs with AVX512-BF16 or AMX, float16
    on older CUDA devices (T4: 7.5), and float32 otherwise, and for narrow models on the CPU.

    Args:
        dtype: The setting.
        device: The device that runs the model.
        width: The model's hidden size; 0 if it has several or none.
    """
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if 0 < width < _NARROW:
        return torch.float32
    return torch.bfloat16 if _cpu_flags() & _BFLOAT16_CPU_FLAGS else torch.float32


def choose_threads(device: torch.device, width: int) -> int:
    """Return the number of threads for one operation on the CPU.

    That is one for each core, but a single one if a GPU computes, and for narrow models, whose operations are so short
    that threads would mostly wait for each other.

    Args:
        device: The device that runs the model.
        width: The model's hidden size; 0 if it has several or none.
    """
    return 1 if device.type == "cuda" or 0 < width < _NARROW else available_cores()


def _width(config: PreTrainedConfig) -> int:
    """Return the model's hidden size, or 0 if it has several or none."""
    width = getattr(config, "hidden_size", 0)
    return width if isinstance(width, int) else 0


def _cpu_flags() -> set[str]:
    """Return the instruction-set flags that Linux reports for the first processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _translate_memory_error(step: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a step raise `OutOfDeviceMemory` instead of torch's error, for callers that must not import torch."""

    @functools.wraps(step)
    def translated(*arguments: _P.args, **options: _P.kwargs) -> _T:
        try:
            return step(*arguments, **options)
        except torch.OutOfMemoryError as error:
            raise OutOfDeviceMemory("The device does not have enough free memory.") from error

    return translated


def _disable_tf32() -> None:
    """Disable TF32, which rounds factors to 10 bits of mantissa; by default torch uses it in convolutions.

    On devices with TF32, float32 is never selected by `auto`: a user who sets it wants the reference. float16 has as
    many bits as TF32.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


class VisionModel:
    """An image-classification checkpoint, loaded on a device and ready to run.

    Args:
        checkpoint: The checkpoint. Weights are loaded only from safetensors, and code only from transformers.
        device: torch's name of the device: `cpu`, `cuda:0`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        cpu_threads: Threads for one operation on the CPU in this process; by default, see `choose_threads`.
        max_batch_size: Maximum number of images in a batch.

    Attributes:
        device: The device that it runs on.
        dtype: The dtype that it computes in; softmax is always float32.
        device_name: The name that the hardware reports.
        device_uuid: The GPU's UUID in NVML; empty for the CPU.
        pixel_shape: (height, width, 3) of an image.
        engine: The engine that runs it; eager until `prepare`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        dtype: str,
        cpu_threads: int | None,
        max_batch_size: int = 32,
    ) -> None:
        transformers_logging.disable_progress_bar()
        self.device = torch.device(device)
        config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
        width = _width(config)
        self.dtype = choose_dtype(dtype, self.device, width)
        torch.set_num_threads(cpu_threads or choose_threads(self.device, width))
        _disable_tf32()
        self.device_name, self.device_uuid = "CPU", ""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # for streams, events and graphs, which use the current device
            properties = torch.cuda.get_device_properties(self.device)
            self.device_name, self.device_uuid = properties.name, f"GPU-{properties.uuid}"
        self.pixel_shape = checkpoint.preprocessing.pixel_shape
        self._max_batch_size = max_batch_size
        self._model = AutoModelForImageClassification.from_pretrained(
            checkpoint.path,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=self.dtype,
        )
        self._model.to(self.device).eval()
        self._top_k = min(MAX_TOP_K, self._model.config.num_labels)
        self._scale, self._shift = self._normalisation(checkpoint)
        self._link = CudaLink(self.device) if self.device.type == "cuda" else HostLink()
        self._staging = Staging(self._link, self.pixel_shape, max_batch_size)
        with torch.inference_mode():
            self._logits = fuse(self._model, self._scale, self._shift, self._unfused) or self._unfused
        self.engine = Engine("eager", self._run_eagerly)

    def _normalisation(self, checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
        """Fold rescaling and normalisation, (x * scale - mean) / std, into x * a + b; a and b are float32 [3, 1, 1]."""
        preprocessing = checkpoint.preprocessing
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        scale, shift = preprocessing.scale / std, -mean / std
        return (
            scale.view(3, 1, 1).to(self.device, torch.float32),
            shift.view(3, 1, 1).to(self.device, torch.float32),
        )

    @torch.inference_mode()
    def prepare(self, engine: str) -> None:
        """Set up an engine and warm up each batch size, so that no request pays for one-time initialisation.

        Args:
            engine: `auto`, `eager`, `compile` or `cudagraph`. If it is not available, the model stays eager, and a
                warning says why.

        Raises:
            RuntimeError: The model's output is infinite or NaN.
        """

        def compiled() -> Network:
            logits = compile_network(self._logits, len(batch_sizes(self._max_batch_size)))
            return lambda pixels: pack(logits(pixels), self._top_k)

        self.engine = make_engine(
            choose_engine(engine, self.device),
            self._run_eagerly,
            compiled,
            lambda images: torch.zeros((images, *self.pixel_shape), dtype=torch.uint8, device=self.device),
            max_batch_size=self._max_batch_size,
            max_deviation=_MAX_DEVIATION.get(self.dtype, _MAX_DEVIATION_ELSE),
        )
        started = time.monotonic()
        sizes = self.engine.sizes or common_batch_sizes(self._max_batch_size)
        for size in sizes:
            black = [np.zeros(self.pixel_shape, np.uint8)] * size
            if not all(prediction.is_finite for prediction in self.collect(self.launch(self.stage(black)))):
                raise RuntimeError(f"The model's output is infinite or NaN in {self.dtype}: set another dtype.")
        logger.info("Warmed up batches of %s in %.1f s", list(sizes), time.monotonic() - started)

    @_translate_memory_error
    def stage(self, images: Sequence[NDArray[np.uint8]]) -> Staged:
        """Gather images, each uint8 [height, width, 3], and start their copy to the device.

        Raises:
            OutOfDeviceMemory: They do not fit.
        """
        return self._staging.stage(images)

    @_translate_memory_error
    @torch.inference_mode()
    def launch(self, staged: Staged) -> Launched:
        """Launch the model on a staged batch, and the copy of its predictions to the host.

        Raises:
            OutOfDeviceMemory: The computation does not fit.
        """
        try:
            packed = self.engine.run(self._staging.accept(staged))
        finally:
            self._staging.give_back(staged)
        return Launched(*self._link.fetch(packed))

    def collect(self, launched: Launched) -> list[Prediction]:
        """Wait for this batch only, and return one prediction per image."""
        launched.arrival.synchronize()
        logits, indices, probabilities = unpack(launched.packed.numpy())
        columns = zip(indices.astype(np.int32).tolist(), logits.tolist(), probabilities[:, 0].tolist(), strict=True)
        return [Prediction(tuple(i), tuple(top), p) for i, top, p in columns]

    def _run_eagerly(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the packed predictions of uint8 [batch, height, width, 3] on the device."""
        return pack(self._logits(pixels), self._top_k)

    def _unfused(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits of uint8 [batch, height, width, 3] as transformers computes them, for any architecture."""
        inputs = pixels.permute(0, 3, 1, 2).to(torch.float32) * self._scale + self._shift
        logits: torch.Tensor = self._model(pixel_values=inputs.to(self.dtype)).logits
        return logits

    def has_working_device(self) -> bool:
        """Return whether the device still computes.

        After an illegal memory access or a failed assertion on a GPU, every later call of the process fails: see
        "sticky errors" in the documentation of the CUDA runtime API.
        """
        try:
            return bool(torch.ones(1, device=self.device).item() == 1)
        except torch.OutOfMemoryError:
            return True
        except RuntimeError:
            return False

    def free_memory(self) -> None:
        """Release the device memory that torch caches."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
