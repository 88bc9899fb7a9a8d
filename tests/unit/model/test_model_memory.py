"""A real model on a device without enough memory, simulated on the CPU by raising torch's own errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc.batch_stats import BatchStats
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import RecordPipe, RequestRecord, Status, unpack_answers
from vit_api.ipc.slots import OwnerSlots, SlotTable
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.lit_api import ViTAPI
from vit_api.metrics import COUNTED
from vit_api.model.memory_errors import translate_memory_error
from vit_api.model.staging import Done
from vit_api.worker.batching import BatchingPolicy
from vit_api.worker.loop import SlotLoop


def limit_memory_to(most: int, lit_api: ViTAPI, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
    """Make the network raise an out-of-memory error for more than `most` images."""
    assert lit_api.model is not None
    network = lit_api.model._logits

    def small(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > most:
            raise error(_CUBLAS)
        return network(pixels)

    lit_api.model._logits = small


@pytest.fixture
def lit_api() -> ViTAPI:
    """Load the embedded model."""
    api = ViTAPI(load_checkpoint("digits"), max_batch_size=32)
    api.setup("cpu")
    return api


def test_torchs_error_becomes_ours(lit_api: ViTAPI) -> None:
    """Callers that must not import torch can catch it."""
    limit_memory_to(1, lit_api)
    images = [np.zeros(lit_api.checkpoint.preprocessing.pixel_shape, np.uint8)] * 2
    with pytest.raises(OutOfDeviceMemory):
        lit_api.predict(lit_api.batch(images))


_CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
_NVML = 'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1131, please report'
_CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    ("error", "is_short"),
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True, id="allocator"),
        pytest.param(torch.AcceleratorError("CUDA error: out of memory\nSearch for", 2), True, id="pinned memory"),
        pytest.param(RuntimeError(_CUBLAS), True, id="cuBLAS"),
        pytest.param(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True, id="cuDNN"),
        pytest.param(RuntimeError("could not create a primitive"), True, id="oneDNN"),
        pytest.param(RuntimeError("could not create a primitive descriptor for a matmul"), False, id="no kernel"),
        pytest.param(
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True, id="cuDNN 9"
        ),
        pytest.param(RuntimeError(_NVML), True, id="allocator without NVML"),
        pytest.param(RuntimeError(_CPU), True, id="CPU"),
        pytest.param(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False, id="another cuBLAS error"),
        pytest.param(
            torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700), False, id="sticky"
        ),
        pytest.param(ValueError("out of memory"), False, id="not from torch"),
    ],
)
def test_out_of_memory_errors_of_all_libraries_are_recognised(error: Exception, is_short: bool) -> None:
    """Each becomes OutOfDeviceMemory, and no other error does."""

    @translate_memory_error
    def step() -> None:
        raise error

    with pytest.raises(OutOfDeviceMemory if is_short else type(error)):
        step()


@pytest.mark.parametrize("hook", ["batch", "predict", "unbatch"])
def test_each_step_can_run_out_of_memory(lit_api: ViTAPI, monkeypatch: pytest.MonkeyPatch, hook: str) -> None:
    """Staging allocates pinned memory, the launch device memory, and late errors of CUDA surface in the wait."""
    model = lit_api.model
    assert model is not None

    def fail(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: out of memory", 2)

    images = [np.zeros(lit_api.checkpoint.preprocessing.pixel_shape, np.uint8)] * 2
    failing: dict[str, tuple[object, str]] = {
        "batch": (model._staging, "stage"),
        "predict": (model._link, "fetch"),
        "unbatch": (Done, "synchronize"),
    }
    monkeypatch.setattr(*failing[hook], fail)
    with pytest.raises(OutOfDeviceMemory):
        lit_api.unbatch(lit_api.predict(lit_api.batch(images)))


@pytest.mark.parametrize(
    ("failure", "works"),
    [
        pytest.param(None, True, id="works"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), True, id="full"),
        pytest.param(torch.AcceleratorError("CUDA error: out of memory", 2), True, id="driver out of memory"),
        pytest.param(torch.AcceleratorError("CUDA error: an illegal memory access", 700), False, id="broken"),
    ],
)
def test_a_full_device_works_and_a_broken_one_does_not(
    lit_api: ViTAPI, monkeypatch: pytest.MonkeyPatch, failure: Exception | None, works: bool
) -> None:
    """After a failed batch, this check decides whether the worker continues."""

    def fail(*_: object, **__: object) -> torch.Tensor:
        assert failure is not None
        raise failure

    if failure is not None:
        monkeypatch.setattr(torch, "ones", fail)
    assert lit_api.has_working_device() is works


def test_a_model_that_overflows_is_not_served(lit_api: ViTAPI) -> None:
    """Some weights overflow in float16: the start fails instead of every request."""
    assert lit_api.model is not None
    network = lit_api.model._logits
    lit_api.model._logits = lambda pixels: network(pixels) * torch.inf
    with pytest.raises(RuntimeError, match="infinite or NaN"):
        lit_api.model.prepare("eager")


@pytest.mark.parametrize(
    ("most", "error"),
    [
        *((most, torch.OutOfMemoryError) for most in (0, 1, 3, 31)),
        pytest.param(3, RuntimeError, id="3, cuBLAS"),
    ],
)
def test_a_batch_is_split_until_it_fits(
    lit_api: ViTAPI, most: int, error: type[RuntimeError], noise: np.random.Generator
) -> None:
    """Each image gets the same result as alone; if not even one fits, all fail."""
    shape = lit_api.checkpoint.preprocessing.pixel_shape
    pixels = noise.integers(0, 256, (32, *shape), dtype=np.uint8)
    alone = [lit_api.unbatch(lit_api.predict(lit_api.batch([image])))[0] for image in pixels]
    limit_memory_to(most, lit_api, error)
    table, requests, answers = SlotTable(1, 32, shape), RecordPipe.for_requests(32), RecordPipe.for_answers(32)
    loop = SlotLoop(
        table,
        WorkerBoard(1),
        [requests, RecordPipe.for_requests(1)],
        [answers],
        BatchingPolicy(32, 0.0),
        metrics_board=MetricsBoard(["worker-0"], COUNTED),
        batch_stats=BatchStats(1, 32),
    )
    loop.take_number(0)
    slots = OwnerSlots(table, 0)
    for slot in range(32):
        taken = slots.take()
        assert taken is not None
        table.pixels[slot] = pixels[slot]
        slots.queue(slot, 0.0)
        requests.write([RequestRecord(*taken).pack()])
    loop.run(lit_api)
    got = {answer.slot: answer for answer in unpack_answers(answers.read(32))}
    assert len(got) == 32
    for slot, expected in enumerate(alone):
        assert got[slot].status == (Status.OK if most else Status.OUT_OF_MEMORY)
        if most:
            assert got[slot].prediction.probabilities == pytest.approx(expected.probabilities, abs=0.01)
