"""Recognises the out-of-memory errors of torch and of CUDA's libraries."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from vit_api.errors import OutOfDeviceMemory

_P = ParamSpec("_P")
_T = TypeVar("_T")

_OUT_OF_MEMORY = re.compile(
    r"out of memory"  # pinned memory, streams, events and kernels: "CUDA error: out of memory"
    r"|can't allocate memory"  # the CPU's allocator
    r"|bad_alloc|could not create a memory object"  # OpenVINO's, and its kernels'
    r"|could not create a primitive$"  # oneDNN's, of a kernel that it has; else it names the missing descriptor
    r"|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS(_INTERNAL_ERROR\w*)?_ALLOC(ATION)?_FAILED"
    # In a container without NVML, or in a MIG slice, the allocator fails at counting the memory for its message.
    r"|NVML_SUCCESS == \w+ INTERNAL ASSERT FAILED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device ran out of memory, after which it still works.

    torch's allocator raises `torch.OutOfMemoryError`. Failed allocations of pinned memory, and of CUDA's libraries, are
    a `RuntimeError` like any other, recognisable only by the text.
    """
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


def translate_memory_error(step: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a step raise `OutOfDeviceMemory` instead of torch's errors, for callers that must not import torch."""

    @functools.wraps(step)
    def translated(*arguments: _P.args, **options: _P.kwargs) -> _T:
        try:
            return step(*arguments, **options)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfDeviceMemory("The device does not have enough free memory.") from error

    return translated
