"""How the model runs: operator by operator, compiled, or as recorded CUDA graphs; with a check that all agree.

Knows nothing of checkpoints, staging or slots. What it runs is a function of uint8 pixels [batch, height, width, 3] on
the device; what that returns is packed, see `pack`.

- `eager` is the function itself. At small batches a GPU waits for Python to launch each of some 200 kernels.
- `cudagraph` records the function's kernels once for each of a few batch sizes, and launches them all with one call.
- `compile` has torch.compile write faster kernels first, on CUDA inside CUDA graphs too. That takes a compiler, and
  minutes at the first start, so it is not what `auto` takes.

A batch between two sizes is padded to the next. Images don't see each other in the model, so what the padding holds,
left from earlier batches, changes nothing; it is cut off from the result.
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

logger = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]
Run = Callable[[], Tensor]
Packed = TypeVar("Packed", Tensor, NDArray[np.float32])

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_COMMON_SIZES = 32
_RUNS_BEFORE_CAPTURE = 2
"""The first one loads libraries and chooses algorithms, which can't be recorded."""
_LEAST_LOG_PROBABILITY = -69.0
"""What is less likely, one in 1e30, may be so by any factor."""


class Engine(NamedTuple):
    """A way to run the model.

    Attributes:
        name: `eager`, `compile` or `cudagraph`.
        run: uint8 pixels [batch, height, width, 3] on the device to packed predictions; valid until its next call.
        sizes: The batch sizes that it was made for, and that others are padded to; none: it takes all as they are.
    """

    name: str
    run: Network
    sizes: tuple[int, ...] = ()


class EngineError(Exception):
    """An engine can't be had here, or gives other answers than the eager one."""


def batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes that are worth preparing for, ascending; the last is the largest that may come."""
    return (*(size for size in _SIZES if size < max_batch_size), max_batch_size)


def common_batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Return those of `batch_sizes` that will come often."""
    return tuple(size for size in batch_sizes(max_batch_size) if size <= _COMMON_SIZES)


def choose_engine(engine: str, device: torch.device) -> str:
    """Return the engine that a setting means; `auto`: CUDA graphs where there is CUDA, and eager on the CPU.

    CUDA graphs take away what Python costs, which at small batches is most of the time, and are ready within seconds
    without a compiler. On the CPU, kernels are few and long, and padding would cost as much as real images do.
    """
    if engine != "auto":
        return engine
    return "cudagraph" if device.type == "cuda" else "eager"


def pack(logits: Tensor, top_k: int) -> Tensor:
    """Put what a prediction has in one tensor, so that one copy brings it back; `unpack` takes it apart.

    The logits and one probability give each of the top k's probability and any other function of its logit; the
    probabilities alone would not, and those of unlikely classes are below what float32 can hold.

    Args:
        logits: Of any dtype, [batch, classes]; classes below 2**24, up to which float32 is exact.
        top_k: How many classes to keep.

    Returns:
        float32 [batch, 2 k + 1]: the top k's logits, their indices, and the probability of the first.
    """
    exact = logits.to(torch.float32)
    top, indices = exact.topk(top_k, dim=-1)
    probability = exact.softmax(dim=-1).amax(dim=-1, keepdim=True)
    return torch.cat([top, indices.to(torch.float32), probability], dim=1)


def unpack(packed: Packed) -> tuple[Packed, Packed, Packed]:
    """Return what was packed: logits [batch, k], indices [batch, k] and probabilities [batch, 1]."""
    top_k = packed.shape[1] // 2
    return packed[:, :top_k], packed[:, top_k:-1], packed[:, -1:]


def make_engine(
    wanted: str,
    eager: Network,
    compiled: Callable[[], Network],
    inputs: Callable[[int], Tensor],
    *,
    max_batch_size: int,
    most_deviation: float,
) -> Engine:
    """Return the engine that is wanted, or the eager one, with one warning, where it fails or disagrees.

    Args:
        wanted: `eager`, `compile` or `cudagraph`.
        eager: The function itself.
        compiled: Makes the compiled form of the function.
        inputs: Makes a uint8 tensor [so many images, height, width, 3] on the device.
        max_batch_size: Images in a batch at the most.
        most_deviation: By which its answers may differ from the eager engine's on noise; see `deviation`.
    """
    if wanted == "eager":
        return Engine("eager", eager)
    started = time.monotonic()
    sizes = batch_sizes(max_batch_size)
    try:
        run = _padded(wanted, compiled() if wanted == "compile" else eager, eager, inputs(max_batch_size), sizes)
        _check(run, eager, inputs, sizes, most_deviation)
    except Exception as error:  # of drivers, compilers or memory: whatever it is, eager works without them
        logger.warning("the engine %s can't be used, so that eager is: %s", wanted, _first_line(error))
        logger.debug("why the engine can't be used", exc_info=True)
    else:
        logger.info("engine %s for batches of %s made in %.1f s", wanted, list(sizes), time.monotonic() - started)
        return Engine(wanted, run, sizes)
    run = eager  # and with the exception gone, too, nothing holds what was recorded
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Engine("eager", run)


def compile_network(network: Network, sizes: int) -> Network:
    """Return a network that torch.compile compiles at its first call with each batch size.

    Args:
        network: uint8 pixels to logits.
        sizes: How many batch sizes will come.
    """
    import torch._dynamo.config

    # Each size is compiled apart; above this limit torch would run the rest eagerly without a word.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 2 * sizes)
    compiled: Network = torch.compile(network, dynamic=False)
    return compiled


def _padded(wanted: str, network: Network, eager: Network, inputs: Tensor, sizes: tuple[int, ...]) -> Network:
    """Return a network that pads each batch up to the next size.

    Args:
        wanted: `compile` or `cudagraph`.
        network: What runs; on CUDA, it is recorded.
        eager: What runs larger batches.
        inputs: uint8 [the largest size, height, width, 3]: where each batch's pixels are put.
        sizes: Ascending.
    """
    runs: Mapping[int, Run]
    if inputs.is_cuda:
        runs = _capture(network, inputs, sizes)
    elif wanted == "cudagraph":
        raise EngineError("there is no CUDA device")
    else:
        runs = {size: functools.partial(network, inputs[:size]) for size in sizes}

    def run(pixels: Tensor) -> Tensor:
        size = len(pixels)
        place = bisect.bisect_left(sizes, size)
        if place == len(sizes):
            return eager(pixels)
        inputs[:size].copy_(pixels)
        return runs[sizes[place]]()[:size]

    return run


def _capture(network: Network, inputs: Tensor, sizes: tuple[int, ...]) -> Mapping[int, Run]:
    """Record a network for each batch size.

    All recordings share one memory pool, since only one of them runs at a time and its result is copied before the next
    one does. The largest comes first, so that the others fit in what it took.
    """
    pool = torch.cuda.graph_pool_handle()
    compute = torch.cuda.current_stream(inputs.device)
    stream = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(compute)
    recordings: dict[int, Run] = {}
    try:
        for size in reversed(sizes):
            pixels = inputs[:size]
            with torch.cuda.stream(stream):
                for _ in range(_RUNS_BEFORE_CAPTURE):
                    network(pixels)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread's calls, if there are any, are none of ours to record or to forbid.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                packed = network(pixels)
            recordings[size] = functools.partial(_replay, graph, packed)
    finally:
        torch.cuda.set_stream(compute)  # a capture that fails leaves its own behind
    return recordings


def _replay(graph: torch.cuda.CUDAGraph, packed: Tensor) -> Tensor:
    """Launch what was recorded; return where it leaves its output."""
    graph.replay()
    return packed


def _check(
    run: Network, eager: Network, inputs: Callable[[int], Tensor], sizes: tuple[int, ...], most_deviation: float
) -> None:
    """Run noise through each of an engine's sizes, with as much padding as may be.

    Raises:
        EngineError: The answers are not those of the eager engine.
    """
    for smaller in (0, *sizes[:-1]):
        noise = inputs(smaller + 1).random_(0, 256)
        expected = eager(noise)
        off = deviation(expected, run(noise))
        if not off <= most_deviation:
            raise EngineError(f"its answers are off by {off:.2g} for a batch of {len(noise)}")


def deviation(expected: Tensor, found: Tensor) -> float:
    """Return how far packed predictions are from those expected: 0 if they are the same, nan if they are no numbers.

    That is the root mean square of the differences of logarithms of probabilities, class by class, over that of what is
    expected around its mean, plus 1, which is a factor of e. A class that is not expected among the top k counts with
    the least that is: it may have changed places with the last one.
    """
    if found.shape != expected.shape:
        return float("nan")
    expected_logs, expected_indices = _log_probabilities(expected)
    logs, indices = _log_probabilities(found)
    least = expected_logs[:, -1:]
    is_same = indices[:, :, None] == expected_indices[:, None, :]
    expected_here = torch.where(is_same.any(dim=2), (is_same * expected_logs[:, None, :]).sum(dim=2), least)
    difference = logs - expected_here
    spread = expected_logs - expected_logs.mean(dim=1, keepdim=True)
    return float(difference.square().mean().sqrt() / (1 + spread.square().mean().sqrt()))


def _log_probabilities(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the probabilities, and the indices."""
    logits, indices, probabilities = unpack(packed)
    logs = logits - logits[:, :1] + probabilities.log()
    return logs.clamp(min=_LEAST_LOG_PROBABILITY), indices.long()


def _first_line(error: Exception) -> str:
    """Word an exception in one line; those of compilers have hundreds."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
