"""Chooses the dtype and the threads to compute with, and makes torch round no more than the dtype does."""

from __future__ import annotations

import torch

from vit_api.environment.cores import available_cores
from vit_api.environment.cpu_flags import cpu_flags
from vit_api.model.scaled_products import FP8, MIN_FP8_CAPABILITY

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_BFLOAT16_CAPABILITY = (8, 0)
_NARROW = 128
"""Models below this width have operations too short for bfloat16 or several threads to pay off on the CPU."""


def choose_dtypes(dtype: str, device: torch.device, width: int) -> tuple[torch.dtype, ...]:
    """Return the dtypes to try, in order of preference; `auto` prefers the fastest that the hardware supports natively.

    On CUDA devices, this is float16. It has the same peak rate as bfloat16 and three more bits of significand: scores
    differ from transformers' by a tenth as much (benchmarks/results/accuracy.json). But its largest number is 65,504;
    checkpoints that exceed it get bfloat16 where the device supports it (compute capability 8.0 or higher), else
    float32. On the CPU, it is bfloat16 with AVX512-BF16 or AMX; float32 otherwise, and for narrow models.

    Args:
        dtype: The setting.
        device: The device that runs the model.
        width: The model's hidden size; 0 if it has several or none.
    """
    if dtype != "auto":
        return (_DTYPES[dtype],)
    if device.type == "cuda":
        return torch.float16, torch.bfloat16 if has_bfloat16(device) else torch.float32
    is_narrow = 0 < width < _NARROW
    return (torch.bfloat16 if cpu_flags() & _BFLOAT16_CPU_FLAGS and not is_narrow else torch.float32,)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a CUDA device computes in bfloat16 natively; older ones emulate it, many times slower."""
    return torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY


def choose_threads(device: torch.device, width: int) -> int:
    """Return the number of threads for one operation on the CPU.

    That is one for each core, but a single one if a GPU computes, and for narrow models, whose operations are so short
    that threads would mostly wait for each other.

    Args:
        device: The device that runs the model.
        width: The model's hidden size; 0 if it has several or none.
    """
    return 1 if device.type == "cuda" or 0 < width < _NARROW else available_cores()


def make_exact() -> None:
    """Disable what rounds more than the dtype does.

    - TF32 rounds factors to 10 bits of mantissa; by default torch uses it in convolutions. On devices with TF32,
      float32 is never selected by `auto`: a user who sets it wants the reference. float16 has as many bits as TF32.
    - With few rows, matrix products are split along the summed dimension. By default the partial sums of 16-bit
      products are rounded to 16 bits, too; in float16 they can overflow.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def disable_cudnn_attention() -> None:
    """Keep attention off cuDNN, which prepares a plan for each batch size, at its first use.

    On Hopper and later, builds with cuDNN 9.15 or newer prefer it to the flash kernel (check_prefer_cudnn_attention in
    torch's sdp_utils.cpp). Preparing a plan takes a large part of a second, while images wait. CUDA graphs, which are
    recorded before any image comes, use it nevertheless.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def check_scaled_dtype(dtype: str, device: torch.device) -> None:
    """Raise ValueError if a device has no products in a dtype of `scaled_products`; the CPU computes them slowly."""
    if dtype == FP8 and device.type == "cuda" and torch.cuda.get_device_capability(device) < MIN_FP8_CAPABILITY:
        raise ValueError("fp8 needs a GPU of compute capability 8.9 or higher. Set another dtype.")
