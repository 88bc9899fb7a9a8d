"""The calls to a fake torch.cuda: their order, and the stream of each.

No GPU is involved; the tests marked `gpu` in `test_engines.py` use a real one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vit_api.model import cuda_graphs
from vit_api.model.cuda_graphs import NotCapturableError
from vit_api.model.staging import CudaLink, HostLink

calls: list[str] = []


class FakeStream:
    """A stream that records its waits."""

    def __init__(self, device: Any = None, name: str = "side") -> None:
        self.name = name

    def wait_event(self, event: Any) -> None:
        calls.append(f"{self.name} waits for {event.name}")

    def wait_stream(self, other: FakeStream) -> None:
        calls.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        calls.append(f"host waits for {self.name}")


class FakeEvent:
    """An event that stores the stream on which it was recorded."""

    def __init__(self) -> None:
        self.name = ""

    def record(self, stream: FakeStream) -> None:
        self.name = f"event of {stream.name}"
        calls.append(f"record on {stream.name}")


class FakeGraph:
    """A graph that records its replays."""

    def replay(self) -> None:
        calls.append("replay")


class SyncMode:
    """Torch's synchronisation debug mode: 0, or 2 while a synchronising call is an error."""

    now = 0

    def get(self) -> int:
        return self.now

    def set(self, mode: int | str) -> None:
        SyncMode.now = {"error": 2}.get(mode, mode)  # type: ignore[arg-type, assignment]
        calls.append("waiting is an error" if self.now else "waiting is allowed")
        if self.now:  # as torch does, once the mode is set
            warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2)


def synchronise() -> None:
    """Synchronise with the device, as `Tensor.item` does."""
    if SyncMode.now:
        raise RuntimeError("called a synchronizing CUDA operation")


@contextlib.contextmanager
def fake_capture(graph: FakeGraph, *, pool: str, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
    calls.append(f"capture on {stream.name} in {pool}")
    yield
    calls.append("captured")


@contextlib.contextmanager
def fake_stream(stream: FakeStream) -> Iterator[None]:
    calls.append(f"on {stream.name}")
    yield


@pytest.fixture(autouse=True)
def _fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    mode = SyncMode()
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", mode.get)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.set)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *of: calls.append(f"end allocation {of}"))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", fake_capture)
    monkeypatch.setattr(torch.cuda, "stream", fake_stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: calls.append(f"back to {stream.name}"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "one pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: FakeStream(name="compute"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: calls.append(f"kept for {stream.name}"))
    monkeypatch.setattr(CudaLink, "buffer", HostLink.buffer)  # pinned memory needs a driver


def test_pixels_are_copied_on_a_side_stream() -> None:
    """The compute stream waits only for the copy, and the memory is kept until that stream has used it."""
    link = CudaLink(torch.device("cpu"))
    pixels, arrival = link.send(torch.zeros(2, dtype=torch.uint8))
    assert calls == ["on side", "record on side"]
    calls.clear()
    link.accept(pixels, arrival)
    assert calls == ["compute waits for event of side", "kept for compute"]


def test_results_are_copied_on_the_compute_stream() -> None:
    """The copy is queued behind the work, with its own event and without a wait."""
    link = CudaLink(torch.device("cpu"))
    result, arrival = link.fetch(torch.tensor([1.0, 2.0]))
    assert calls == ["record on compute"]
    assert isinstance(arrival, FakeEvent)
    assert result.tolist() == [1, 2]


def test_only_recordings_use_cudnn_attention() -> None:
    """It prepares a plan for each batch size, for which a request would have to wait."""
    seen: list[bool] = []

    def network(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return pixels.float()

    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        cuda_graphs.capture(network, torch.arange(4), (1, 4))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert set(seen) == {True}


def test_graphs_are_captured_largest_first_into_one_pool() -> None:
    """Each is captured after warm-up runs, all on one stream, as a shared memory pool requires."""
    seen: list[int] = []

    def network(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        calls.append("run")
        return pixels.float()

    inputs = torch.arange(4)
    recordings = cuda_graphs.capture(network, inputs, (1, 2, 4))
    assert seen == [4, 4, 4, 4, 2, 2, 2, 2, 1, 1, 1, 1]
    one = ["on side", "run", "run", "waiting is an error", "run", "waiting is allowed", "host waits for side"]
    one += ["capture on side in one pool", "run", "captured"]
    assert calls == ["side waits for compute", *one, *one, *one, "back to compute"]
    calls.clear()
    assert recordings[2]().tolist() == [0, 1]
    assert calls == ["replay"]


def test_a_synchronising_network_is_not_captured() -> None:
    """The capture does not even begin: a failed one leaves the allocator unable to free memory."""

    def network(pixels: torch.Tensor) -> torch.Tensor:
        synchronise()
        return pixels.float()

    with pytest.raises(NotCapturableError, match="waits for the GPU"):
        cuda_graphs.capture(network, torch.arange(4), (1, 4))
    assert not any(call.startswith("capture") for call in calls)
    assert calls[-2:] == ["waiting is allowed", "back to compute"]


def test_another_error_in_the_check_is_raised() -> None:
    """An out-of-memory error is not reported as a network that can't be captured."""

    def network(pixels: torch.Tensor) -> torch.Tensor:
        if SyncMode.now:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels.float()

    with pytest.raises(torch.OutOfMemoryError):
        cuda_graphs.capture(network, torch.arange(4), (1, 4))
    assert calls[-2:] == ["waiting is allowed", "back to compute"]


@pytest.mark.parametrize(
    "is_ended", [pytest.param(False, id="capture still open"), pytest.param(True, id="ended by capture_end")]
)
def test_a_failed_capture_is_cleaned_up(monkeypatch: pytest.MonkeyPatch, is_ended: bool) -> None:
    """The compute stream is current again, and the allocator's pool is closed unless capture_end did so."""
    if is_ended:

        def refuse(*_: object) -> None:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refuse)

    def network(pixels: torch.Tensor) -> torch.Tensor:
        if calls[-1].startswith("capture"):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return pixels.float()

    with pytest.raises(RuntimeError, match="when stream is capturing"):
        cuda_graphs.capture(network, torch.arange(4), (1, 4))
    assert (calls[-2:] == ["end allocation (None, 'one pool')", "back to compute"]) is not is_ended
    assert calls[-1] == "back to compute"


def test_a_failure_to_free_memory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeing may fail after a failed capture that could not be cleaned up."""

    def fail() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    cuda_graphs.free_memory()
