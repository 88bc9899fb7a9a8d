"""A Vision Transformer on a device: uint8 pixels in, the most probable classes out.

With `vit`, the only module that imports torch and transformers; only workers import it. Knows nothing of slots or HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from vit_api.checkpoint import Checkpoint
from vit_api.cores import available_cores
from vit_api.errors import OutOfDeviceMemory
from vit_api.records import TOP_K, Prediction
from vit_api.vit import fuse

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_BFLOAT16_CAPABILITY = (8, 0)
_NARROW = 128
"""Narrower models are no faster in bfloat16 on the CPU. One thread of a CPU with AVX512-BF16, 17 tokens, 4 layers: 64
wide, one image takes 0.58 ms in float32 and 0.86 in bfloat16, 32 images 3.8 and 3.9; 192 wide 2.5 and 2.5, 26 and 16.
"""


class TopK(NamedTuple):
    """The most probable classes of a batch, still on the device.

    Attributes:
        probabilities: float32 [batch, k], largest first.
        indices: int64 [batch, k].
    """

    probabilities: torch.Tensor
    indices: torch.Tensor


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


@contextlib.contextmanager
def _naming_memory_errors() -> Iterator[None]:
    """Turn torch's error into ours, for those who may not import torch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemory("the device's memory does not suffice") from error


class VisionModel:
    """An image-classification checkpoint, loaded on a device and ready to run.

    Args:
        checkpoint: What to load. Weights come from safetensors alone, and code from transformers alone.
        device: As torch names it: `cpu`, `cuda:0`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        cpu_threads: Threads that torch uses for one operation on the CPU, in this process; None: see `choose_threads`.

    Attributes:
        device: Where it runs.
        dtype: What it computes in; normalisation and softmax are always float32.
        device_name: The hardware's own name.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str, cpu_threads: int | None) -> None:
        transformers_logging.disable_progress_bar()
        self.device = torch.device(device)
        config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
        width = _width(config)
        self.dtype = choose_dtype(dtype, self.device, width)
        torch.set_num_threads(cpu_threads or choose_threads(self.device, width))
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        self._pixel_shape = checkpoint.preprocessing.pixel_shape
        self._model = AutoModelForImageClassification.from_pretrained(
            checkpoint.path,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=self.dtype,
        )
        self._model.to(self.device).eval()
        self._top_k = min(TOP_K, self._model.config.num_labels)
        self._scale, self._shift = self._normalisation(checkpoint)
        with torch.inference_mode():
            self._logits = fuse(self._model, self._scale, self._shift, self._unfused) or self._unfused

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

    def stage(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Gather images, each uint8 [height, width, 3], into one uint8 [batch, height, width, 3] on the device."""
        batch = torch.from_numpy(np.stack(images))
        with _naming_memory_errors():
            return batch.to(self.device, non_blocking=True)

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor) -> TopK:
        """Launch the model on staged pixels, uint8 [batch, height, width, 3], and return its top k on the device."""
        with _naming_memory_errors():
            logits = self._logits(pixels).to(torch.float32)
            return TopK(*logits.softmax(dim=-1).topk(self._top_k, dim=-1))

    def _unfused(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits of uint8 [batch, height, width, 3] as transformers computes them, for any architecture."""
        inputs = pixels.permute(0, 3, 1, 2).to(torch.float32) * self._scale + self._shift
        logits: torch.Tensor = self._model(pixel_values=inputs.to(self.dtype)).logits
        return logits

    def collect(self, output: TopK) -> list[Prediction]:
        """Wait for the device and return one prediction for each image of the batch."""
        probabilities, indices = output.probabilities.tolist(), output.indices.tolist()
        return [Prediction(tuple(i), tuple(p)) for i, p in zip(indices, probabilities, strict=True)]

    def free_memory(self) -> None:
        """Give the device's memory back that torch keeps for later."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Run each batch size once on zeros, so that no client pays for what the first run sets up."""
        started = time.monotonic()
        for size in batch_sizes:
            self.collect(self.forward(self.stage([np.zeros(self._pixel_shape, np.uint8)] * size)))
        logger.info("warmed up for batches of %s in %.1f s", list(batch_sizes), time.monotonic() - started)
