"""A Vision Transformer on a device: uint8 pixels in, the most probable classes out.

With `vit`, `engines` and `staging`, which it joins, the only module that imports torch and transformers; only workers
import it. Knows nothing of slots or HTTP.
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
"""Narrower models are no faster in bfloat16 on the CPU. One thread of a CPU with AVX512-BF16, 17 tokens, 4 layers: 64
wide, one image takes 0.58 ms in float32 and 0.86 in bfloat16, 32 images 3.8 and 3.9; 192 wide 2.5 and 2.5, 26 and 16.
"""


_MOST_DEVIATION = {torch.float32: 1e-3}
_MOST_DEVIATION_ELSE = 0.05
"""By which engines may differ, see `engines.deviation`; orders of summation differ, and bfloat16 keeps 8 bits."""


class Launched(NamedTuple):
    """A batch that the device computes.

    Attributes:
        packed: Its most probable classes, see `engines.pack`, in the host's memory.
        arrival: When they are there.
    """

    packed: torch.Tensor
    arrival: Event

    def is_done(self) -> bool:
        """Tell whether they are there."""
        return self.arrival.query()


def choose_dtype(dtype: str, device: torch.device, width: int) -> torch.dtype:
    """Return the dtype to compute in; `auto` takes the fastest one that the hardware has instructions for.

    That is bfloat16 on CUDA devices from compute capability 8.0 and CPUs with AVX512-BF16 or AMX, float16 on older
    CUDA devices (the T4: 7.5), and float32 elsewhere, also for narrow models on the CPU.

    Args:
        dtype: The setting.
        device: Where the model runs.
        width: The size of a token's vector; 0 if that is not one number.
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
    """Return how many threads one operation on the CPU should use.

    All cores, but one for narrow models, whose operations are so short that threads mostly wait for each other: on two
    cores, the 64 wide one serves 1.6 times as many images with one thread as with two. And one where a GPU computes.

    Args:
        device: Where the model runs.
        width: The size of a token's vector; 0 if that is not one number.
    """
    return 1 if device.type == "cuda" or 0 < width < _NARROW else available_cores()


def _width(config: PreTrainedConfig) -> int:
    """Return the size of a token's vector, or 0 where there are several or none."""
    width = getattr(config, "hidden_size", 0)
    return width if isinstance(width, int) else 0


def _cpu_flags() -> set[str]:
    """Return the instruction-set flags that Linux reports for the first processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _naming_memory_errors(step: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a step raise our error instead of torch's, for those who may not import torch."""

    @functools.wraps(step)
    def named(*arguments: _P.args, **options: _P.kwargs) -> _T:
        try:
            return step(*arguments, **options)
        except torch.OutOfMemoryError as error:
            raise OutOfDeviceMemory("the device's memory does not suffice") from error

    return named


def _be_exact() -> None:
    """Have float32 mean float32, also where the device could round its factors to TF32's 10 bits.

    torch would do so in convolutions. `auto` never takes float32 on such a device, so whoever does wants the reference;
    float16 has as many bits and is faster.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


class VisionModel:
    """An image-classification checkpoint, loaded on a device and ready to run.

    Args:
        checkpoint: What to load. Weights come from safetensors alone, and code from transformers alone.
        device: As torch names it: `cpu`, `cuda:0`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        cpu_threads: Threads that torch uses for one operation on the CPU, in this process; None: see `choose_threads`.
        max_batch_size: Images in a batch at the most.

    Attributes:
        device: Where it runs.
        dtype: What it computes in; normalisation and softmax are always float32.
        device_name: The hardware's own name.
        device_uuid: The GPU's own number, as NVML knows it; empty for the CPU.
        pixel_shape: (height, width, 3) of an image.
        engine: How it runs: eagerly, until `prepare`.
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
        _be_exact()
        self.device_name, self.device_uuid = "CPU", ""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # for streams, events and graphs, which don't say where
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
        """Fold rescale and normalise, (x * scale - mean) / std, into x * a + b. Each result is float32 [3, 1, 1]."""
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
        """Make an engine and run each batch size once, so that no client pays for what the first run sets up.

        Args:
            engine: `auto`, `eager`, `compile` or `cudagraph`. Where it can't be had, the model stays eager, and a
                warning says why.
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
            most_deviation=_MOST_DEVIATION.get(self.dtype, _MOST_DEVIATION_ELSE),
        )
        started = time.monotonic()
        sizes = self.engine.sizes or common_batch_sizes(self._max_batch_size)
        for size in sizes:
            black = [np.zeros(self.pixel_shape, np.uint8)] * size
            if not all(prediction.is_finite for prediction in self.collect(self.launch(self.stage(black)))):
                raise RuntimeError(f"the model gives infinite numbers, or none, in {self.dtype}; try another dtype")
        logger.info("warmed up for batches of %s in %.1f s", list(sizes), time.monotonic() - started)

    @_naming_memory_errors
    def stage(self, images: Sequence[NDArray[np.uint8]]) -> Staged:
        """Gather images, each uint8 [height, width, 3], and send them to the device.

        Raises:
            OutOfDeviceMemory: There is no room for them.
        """
        return self._staging.stage(images)

    @_naming_memory_errors
    @torch.inference_mode()
    def launch(self, staged: Staged) -> Launched:
        """Have the device run the model on a staged batch, and send back the most probable classes.

        Raises:
            OutOfDeviceMemory: There is no room for what the model computes.
        """
        try:
            packed = self.engine.run(self._staging.accept(staged))
        finally:
            self._staging.give_back(staged)
        return Launched(*self._link.fetch(packed))

    def collect(self, launched: Launched) -> list[Prediction]:
        """Wait for a batch, and for nothing else, and return one prediction for each of its images."""
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
        """Tell whether the device still computes.

        After an illegal access or a failed assertion on a GPU, every later call of the process fails: see "sticky"
        errors of CUDA's runtime API.
        """
        try:
            return bool(torch.ones(1, device=self.device).item() == 1)
        except torch.OutOfMemoryError:
            return True
        except RuntimeError:
            return False

    def free_memory(self) -> None:
        """Give the device's memory back that torch keeps for later."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
