"""A CUDA kernel that adds to the residual stream and normalises the sum, in one pass over the memory.

torch needs three kernels for it (bias, sum, norm) that together move twice as many bytes. NVRTC, which comes with
torch's CUDA builds, compiles the kernel within half a second at the start; no compiler or CUDA toolkit is needed. Must
not know the model.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Norm = tuple[Tensor, Tensor, float]
"""The weight and bias [width] and the epsilon of a layer norm."""

AddNorm = Callable[[Tensor, Tensor, Tensor, Norm], Tensor]
"""Called with the residual stream `x` [batch, tokens, width], what to add to it [batch * tokens, width], the bias
[width] to add to each row, and a norm. Adds to `x` in place, and returns the norm of the sum."""

_SOURCE = Path(__file__).with_suffix(".cu")
_NAME = "add_norm"
_WARP = 32
_NUMBERS_PER_THREAD = 8
_MAX_WIDTH = 1024 * _NUMBERS_PER_THREAD
_DEFINES = {torch.float16: (), torch.bfloat16: (b"-DBFLOAT16",)}


def make_add_norm(dtype: torch.dtype, width: int) -> AddNorm | None:
    """Compile the kernel for the current CUDA device; None, with the reason in the log, if that fails.

    Args:
        dtype: float16 or bfloat16; there is no kernel for others.
        width: Numbers in a row, a multiple of 8 up to 8,192; there is no kernel for others.
    """
    if dtype not in _DEFINES or width % _NUMBERS_PER_THREAD or width > _MAX_WIDTH:
        return None
    try:
        kernel = _load(_compile(_SOURCE.read_bytes(), _DEFINES[dtype]))
    except Exception as error:  # no NVRTC, or a torch with other internals
        logger.info("The residual sums are not fused with the norms: %s", str(error).partition("\n")[0])
        return None
    block = -(-width // (_NUMBERS_PER_THREAD * _WARP)) * _WARP

    def add_norm(x: Tensor, added: Tensor, bias: Tensor, norm: Norm) -> Tensor:
        assert x.is_contiguous()
        assert added.is_contiguous()
        normed = torch.empty_like(x)
        weight, shift, eps = norm
        arguments = [x, added, bias, weight, shift, normed, width, eps]
        kernel(grid=(x.numel() // width, 1, 1), block=(block, 1, 1), args=arguments)
        return normed

    return add_norm


def _compile(source: bytes, defines: tuple[bytes, ...]) -> bytes:
    """Compile CUDA C++ for the current device; return the machine code.

    `torch.cuda._compile_kernel` would do it, but only where the CUDA toolkit's headers are.

    Raises:
        RuntimeError: NVRTC refused it.
        OSError: There is no NVRTC.
    """
    nvrtc = torch.cuda._utils._get_nvrtc_library()
    major, minor = torch.cuda.get_device_capability()
    options = [f"--gpu-architecture=sm_{major}{minor}".encode(), *defines]
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, _SOURCE.name.encode(), 0, None, None))
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
            raise RuntimeError(_log(nvrtc, program))
        size = ctypes.c_size_t()
        _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, code))
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _log(nvrtc: Any, program: ctypes.c_void_p) -> str:
    """Return what NVRTC says about a program."""
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, text)
    return text.value.decode(errors="replace")


def _check(result: int) -> None:
    """Raise a RuntimeError unless NVRTC succeeded."""
    if result:
        raise RuntimeError(f"NVRTC failed with error {result}")


def _load(code: bytes) -> Callable[..., None]:
    """Load machine code; return what launches its kernel on the current stream."""
    kernels = torch.cuda._utils._cuda_load_module(code, [_NAME])
    assert isinstance(kernels, dict)
    return kernels[_NAME]
