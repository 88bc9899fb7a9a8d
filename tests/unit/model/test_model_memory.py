"""A real model whose device memory is too small, simulated on the CPU by torch's own error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import RecordPipe, RequestRecord, Status, unpack_answers
from vit_api.ipc.slots import OwnerSlots, SlotTable
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.lit_api import ViTAPI
from vit_api.metrics import COUNTED
from vit_api.worker.batching import BatchingPolicy
from vit_api.worker.loop import SlotLoop


def let_memory_suffice_for(most: int, lit_api: ViTAPI) -> None:
    """Make the network raise as CUDA does, for more than `most` images."""
    assert lit_api.model is not None
    network = lit_api.model._logits

    def small(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return network(pixels)

    lit_api.model._logits = small


@pytest.fixture
def lit_api() -> ViTAPI:
    """Load the embedded model."""
    api = ViTAPI(load_checkpoint("digits"), max_batch_size=32)
    api.setup("cpu")
    return api


def test_torchs_error_becomes_ours(lit_api: ViTAPI) -> None:
    """Callers that must not import torch can handle it."""
    let_memory_suffice_for(1, lit_api)
    images = [np.zeros(lit_api.checkpoint.preprocessing.pixel_shape, np.uint8)] * 2
    with pytest.raises(OutOfDeviceMemory):
        lit_api.predict(lit_api.batch(images))


@pytest.mark.parametrize(
    ("failure", "works"),
    [
        pytest.param(None, True, id="it computes"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), True, id="it is full"),
        pytest.param(torch.AcceleratorError("CUDA error: an illegal memory access", 700), False, id="it is broken"),
    ],
)
def test_a_full_device_works_and_a_broken_one_does_not(
    lit_api: ViTAPI, monkeypatch: pytest.MonkeyPatch, failure: Exception | None, works: bool
) -> None:
    """After a failed batch, this decides whether the worker continues."""

    def fail(*_: object, **__: object) -> torch.Tensor:
        assert failure is not None
        raise failure

    if failure is not None:
        monkeypatch.setattr(torch, "ones", fail)
    assert lit_api.has_working_device() is works


def test_a_model_that_overflows_is_not_served(lit_api: ViTAPI) -> None:
    """As in float16 with some weights: the start fails, instead of every request."""
    assert lit_api.model is not None
    network = lit_api.model._logits
    lit_api.model._logits = lambda pixels: network(pixels) * torch.inf
    with pytest.raises(RuntimeError, match="infinite or NaN"):
        lit_api.model.prepare("eager")


@pytest.mark.parametrize("most", [0, 1, 3, 31])
def test_a_batch_is_split_until_it_fits(lit_api: ViTAPI, most: int, noise: np.random.Generator) -> None:
    """Each image gets the result that it gets on its own; if not even one fits, each fails."""
    shape = lit_api.checkpoint.preprocessing.pixel_shape
    pixels = noise.integers(0, 256, (32, *shape), dtype=np.uint8)
    alone = [lit_api.unbatch(lit_api.predict(lit_api.batch([image])))[0] for image in pixels]
    let_memory_suffice_for(most, lit_api)
    table, requests, answers = SlotTable(1, 32, shape), RecordPipe.for_requests(32), RecordPipe.for_answers(32)
    loop = SlotLoop(
        table,
        WorkerBoard(1),
        requests,
        [answers],
        BatchingPolicy(32, 0.0),
        metrics_board=MetricsBoard(["worker-0"], COUNTED),
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
