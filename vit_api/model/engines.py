"""Engines: the model run eagerly, compiled, or as recorded CUDA graphs, with a check that all give the same results.

Must not know checkpoints, staging or slots. An engine runs a function of uint8 pixels [batch, height, width, 3] on the
device that returns packed predictions; see `pack`.

- `eager` calls the function itself. For small batches, a GPU waits while Python launches each of some 200 kernels.
- `cudagraph` records the function's kernels once for each of a few batch sizes, and launches them with a single call.
- `compile` lets torch.compile generate fused kernels first; on CUDA these are recorded, too. It needs a compiler, and
  takes minutes at the first start, so `auto` never selects it.
- `openvino` runs the exported function in OpenVINO, on the CPU, for any batch size. It is an extra.

A batch between two sizes is padded to the larger one. Images are independent of each other in the model, so the content
of the padding, which is left over from earlier batches, has no effect. Its results are discarded.
"""

from __future__ import annotations

import bisect
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_api.ipc.records import MAX_TOP_K
from vit_api.model import cuda_graphs
from vit_api.model.cuda_graphs import Network, Run

logger = logging.getLogger(__name__)

OPENVINO = "openvino"

Packed = TypeVar("Packed", Tensor, NDArray[np.float32])

_SIZES = {
    "compile": (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    "cudagraph": (
        *(1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
        *(40, 48, 56, 64, 80, 96, 112, 128),
        *(160, 192, 224, 256),
    ),
}
"""Where a batch fills the GPU, as one of 9 fills a T4, each image of padding costs as much as a real one. A recorded
size takes a fraction of a second and little memory, so there are many; to compile one takes ten seconds or more."""
_WARMED_SIZES = {"cuda": (1, 2, 4, 8, 16, 24, 32), "cpu": (1, 32)}
"""The batch sizes that an engine without padding is warmed up with. On the CPU, the first batch of a further size takes
no longer than the next; a large one shows that the memory suffices. All would take half a minute with a ViT-B/16."""
_MIN_LOG_PROBABILITY = -69.0
"""Probabilities below 1e-30 are treated as equal."""


class Engine(NamedTuple):
    """A way to run the model.

    Attributes:
        name: `eager`, `compile`, `cudagraph` or `openvino`.
        run: Maps uint8 pixels [batch, height, width, 3] on the device to packed predictions, valid until its next call.
        sizes: The batch sizes that it prepared; batches are padded to one of them. Empty if it does not pad.
    """

    name: str
    run: Network
    sizes: tuple[int, ...] = ()


class EngineError(Exception):
    """An engine is not available here, or its results differ from the eager engine's."""


def batch_sizes(engine: str, max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes to prepare, in ascending order; the last one is `max_batch_size`.

    Args:
        engine: `compile` or `cudagraph`.
        max_batch_size: Maximum number of images in a batch.
    """
    return (*(size for size in _SIZES[engine] if size < max_batch_size), max_batch_size)


def warmed_batch_sizes(device: torch.device, max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes to warm up an engine with that prepares none, in ascending order."""
    return tuple(sorted({min(size, max_batch_size) for size in _WARMED_SIZES[device.type]}))


def choose_engine(engine: str, device: torch.device) -> str:
    """Return the engine for a setting; `auto` selects CUDA graphs on CUDA, and eager on the CPU.

    CUDA graphs avoid the overhead of Python, which dominates small batches, and are ready within seconds without a
    compiler. On the CPU, kernels are few and long, and padding would cost as much as real images.
    """
    if engine != "auto":
        return engine
    return "cudagraph" if device.type == "cuda" else "eager"


def pack(logits: Tensor, top_k: int) -> Tensor:
    """Pack the top k of each image in one tensor, so that a single copy transfers it; the inverse of `unpack`.

    The logits and the top probability determine all probabilities of the top k, and any other function of the logits.
    The probabilities alone would not, and those of unlikely classes underflow in float32.

    Args:
        logits: [batch, classes] of any dtype; fewer than 2**24 classes, since indices are stored as float32.
        top_k: Number of classes to keep.

    Returns:
        float32 [batch, 2 k + 1]: the logits of the top k, their indices, and the probability of the first.
    """
    exact = logits.to(torch.float32)
    top, indices = exact.topk(top_k, dim=-1)
    probability = exact.softmax(dim=-1).amax(dim=-1, keepdim=True)
    return torch.cat([top, indices.to(torch.float32), probability], dim=1)


def unpack(packed: Packed) -> tuple[Packed, Packed, Packed]:
    """Return logits [batch, k], indices [batch, k] and top probabilities [batch, 1] of packed predictions."""
    top_k = packed.shape[1] // 2
    return packed[:, :top_k], packed[:, top_k:-1], packed[:, -1:]


def make_engine(
    wanted: str,
    eager: Network,
    compiled: Callable[[], Network],
    inputs: Callable[[int], Tensor],
    *,
    sizes: tuple[int, ...],
    max_deviation: float,
) -> Engine:
    """Return the requested engine; if it fails or its results differ, log one warning and return the eager one.

    Args:
        wanted: `eager`, `compile`, `cudagraph` or `openvino`.
        eager: The function itself.
        compiled: Returns the compiled form of the function.
        inputs: Returns a uint8 tensor [n, height, width, 3] on the device for a number of images n.
        sizes: The batch sizes to prepare, in ascending order.
        max_deviation: Maximum `deviation` from the results of the eager engine on noise.
    """
    if wanted == "eager":
        return Engine("eager", eager)
    started = time.monotonic()
    try:
        if wanted == OPENVINO:
            run = compiled()
        else:
            run = _padded(wanted, compiled() if wanted == "compile" else eager, eager, inputs(sizes[-1]), sizes)
        _check(run, eager, inputs, sizes, max_deviation)
    except Exception as error:  # from drivers, compilers or memory; the eager engine needs none of these
        logger.warning("The engine %s is not available; using eager instead: %s", wanted, _first_line(error))
        logger.debug("Why the engine is not available", exc_info=True)
    else:
        logger.info(
            "Prepared the engine %s for batches of %s in %.1f s", wanted, list(sizes), time.monotonic() - started
        )
        return Engine(wanted, run, () if wanted == OPENVINO else sizes)
    run = eager  # here the exception is gone as well, so that nothing refers to the recordings
    if torch.cuda.is_available():
        cuda_graphs.free_memory()
    return Engine("eager", run)


def compile_network(network: Network, sizes: int) -> Network:
    """Return a network that torch.compile compiles at the first call with each batch size.

    Args:
        network: Maps uint8 pixels to logits.
        sizes: Number of batch sizes that will occur.
    """
    import torch._dynamo.config

    # Each size is compiled separately. Beyond this limit torch silently runs the rest eagerly.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 2 * sizes)
    compiled: Network = torch.compile(network, dynamic=False)
    return compiled


def _padded(wanted: str, network: Network, eager: Network, inputs: Tensor, sizes: tuple[int, ...]) -> Network:
    """Return a network that pads each batch up to the next size.

    Args:
        wanted: `compile` or `cudagraph`.
        network: The function to run; on CUDA, it is recorded.
        eager: Runs batches that exceed all sizes.
        inputs: uint8 [largest size, height, width, 3]; each batch is copied here.
        sizes: In ascending order.
    """
    runs: Mapping[int, Run]
    if inputs.is_cuda:
        runs = cuda_graphs.capture(network, inputs, sizes)
    elif wanted == "cudagraph":
        raise EngineError("There is no CUDA device.")
    else:
        runs = {size: functools.partial(network, inputs[:size]) for size in sizes}

    def run(pixels: Tensor) -> Tensor:
        size = len(pixels)
        index = bisect.bisect_left(sizes, size)
        if index == len(sizes):
            return eager(pixels)
        inputs[:size].copy_(pixels)
        return runs[sizes[index]]()[:size]

    return run


def _check(
    run: Network, eager: Network, inputs: Callable[[int], Tensor], sizes: tuple[int, ...], max_deviation: float
) -> None:
    """Compare an engine with the eager one on noise.

    These are batches of each size with the maximum padding, and two batches without a wait in between, as when two are
    on the device, of which the first is the largest without padding.

    Raises:
        EngineError: The results differ.
    """

    def compare(*batches: Tensor) -> None:
        found = [run(noise).clone() for noise in batches]
        for noise, result in zip(batches, found, strict=True):
            off = deviation(eager(noise), result)
            if not off <= max_deviation:
                raise EngineError(f"Its results deviate by {off:.2g} for a batch of {len(noise)}.")

    def noise(images: int) -> Tensor:
        return inputs(images).random_(0, 256)

    for smaller in (0, *sizes[:-1]):
        compare(noise(smaller + 1))
    compare(noise(sizes[-1]), noise(1))


def deviation(expected: Tensor, found: Tensor) -> float:
    """Return the relative deviation of packed predictions: 0 if equal, NaN if they are not numbers.

    This is the root mean square of the differences between the log probabilities of each class, divided by 1 plus the
    standard deviation of the expected ones. A class that is not among the expected top k is compared with the smallest
    that is, because classes with almost equal probabilities may be swapped. If the top logits deviate more, relative to
    1 plus their root mean square, it is their deviation: a sigmoid, unlike a softmax, depends on them too.
    """
    if found.shape != expected.shape:
        return float("nan")
    top_k = min(MAX_TOP_K, expected.shape[1] // 2)  # comparing all of them with each other would take too much memory
    expected_logs, expected_indices = _log_probabilities(expected, top_k)
    logs, indices = _log_probabilities(found, top_k)
    least = expected_logs[:, -1:]
    is_same = indices[:, :, None] == expected_indices[:, None, :]
    expected_here = torch.where(is_same.any(dim=2), (is_same * expected_logs[:, None, :]).sum(dim=2), least)
    difference = logs - expected_here
    spread = expected_logs - expected_logs.mean(dim=1, keepdim=True)
    of_probabilities = difference.square().mean().sqrt() / (1 + spread.square().mean().sqrt())
    top, expected_top = found[:, 0], expected[:, 0]
    of_logits = (top - expected_top).square().mean().sqrt() / (1 + expected_top.square().mean().sqrt())
    return float(torch.maximum(of_probabilities, of_logits))


def _log_probabilities(packed: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the log probabilities and the class indices of the first `top_k`."""
    logits, indices, probabilities = unpack(packed)
    logits, indices = logits[:, :top_k], indices[:, :top_k]
    logs = logits - logits[:, :1] + probabilities.log()
    return logs.clamp(min=_MIN_LOG_PROBABILITY), indices.long()


def _first_line(error: BaseException) -> str:
    """Return the cause of an exception as one line; those of compilers have hundreds.

    A failed capture raises a second error at its end, which only says that there was a first one.
    """
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
