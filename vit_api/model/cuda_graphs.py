"""Records a network as CUDA graphs, one for each batch size. Must not know models or what the results mean.

A network that waits for the GPU in its forward pass, for instance with `.item()`, can't be recorded. Trying breaks the
process: the failed capture leaves torch's allocator in a state in which it no longer frees memory. So such a network
is detected before any capture begins, and a capture that fails for another reason is cleaned up.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]
Run = Callable[[], Tensor]

_RUNS_BEFORE_CHECK = 2
"""The first run loads libraries and selects algorithms, which can't be recorded."""
_SYNC_ERROR = "called a synchronizing CUDA operation"
"""The message of torch's errors in its synchronisation debug mode `error`: c10/cuda/CUDAFunctions.cpp."""


class NotCapturableError(Exception):
    """The network waits for the GPU."""


def capture(network: Network, inputs: Tensor, sizes: tuple[int, ...]) -> Mapping[int, Run]:
    """Record a network for each batch size.

    All recordings share one memory pool: only one of them runs at a time, and its result is copied before the next one
    starts. The largest is recorded first, so that the others fit in its memory.

    Args:
        network: Maps uint8 pixels on the device to a tensor.
        inputs: uint8 [largest size, height, width, 3] on the device; a recording reads its first images.
        sizes: The batch sizes.

    Returns:
        By size, what launches a recording and returns its output buffer.

    Raises:
        NotCapturableError: The network waits for the GPU; nothing was recorded.
        RuntimeError: A run or a capture failed.
    """
    pool = torch.cuda.graph_pool_handle()
    compute = torch.cuda.current_stream(inputs.device)
    stream = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(compute)
    recordings: dict[int, Run] = {}
    try:
        with _cudnn_attention():
            for size in sorted(sizes, reverse=True):
                recordings[size] = _record(network, inputs[:size], pool, stream)
    finally:
        torch.cuda.set_stream(compute)  # a failed capture leaves its own stream set
    return recordings


def _record(network: Network, pixels: Tensor, pool: Any, stream: torch.cuda.Stream) -> Run:
    """Record a network for one batch size, after runs that prepare and check it."""
    with torch.cuda.stream(stream):
        for _ in range(_RUNS_BEFORE_CHECK):
            network(pixels)
        with _forbid_waits():
            network(pixels)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: calls of other threads are neither recorded nor forbidden.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            packed = network(pixels)
    except Exception:
        _end_allocation(pixels.device, pool)
        raise
    return functools.partial(_replay, graph, packed)


@contextlib.contextmanager
def _cudnn_attention() -> Iterator[None]:
    """Let attention use cuDNN where torch prefers it: on Hopper and later, it takes less time than the flash kernel.

    It prepares a plan for each batch size at its first use. A recording has one size, which is run before it.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def free_memory() -> None:
    """Return the memory that torch caches to the device, as far as torch can."""
    with contextlib.suppress(RuntimeError):  # an assertion, if a failed capture could not be cleaned up
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _forbid_waits() -> Iterator[None]:
    """Make torch raise an error when the host waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            # torch sets the mode, and then warns once that it is a prototype.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    except RuntimeError as error:
        if _SYNC_ERROR not in str(error):
            raise
        raise NotCapturableError("The model waits for the GPU while it runs, for instance to read a value.") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _end_allocation(device: torch.device, pool: tuple[int, int]) -> None:
    """Tell the allocator that a failed capture is over.

    `CUDAGraph.capture_end` raises before it does so, in torch 2.11 and possibly later (pytorch #180395). Until it is
    told, `empty_cache` fails an assertion, and tensors that two streams used are never freed.
    """
    with contextlib.suppress(Exception):  # it has been told, or this torch has no such function
        torch._C._cuda_endAllocateToPool(device.index, pool)


def _replay(graph: torch.cuda.CUDAGraph, packed: Tensor) -> Tensor:
    """Launch a recording and return its output buffer."""
    graph.replay()
    return packed
