"""The calls to a fake torch.cuda: their order, and the stream of each.

No answer of a GPU is seen here; the tests marked `gpu` in `test_engines.py` see those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vit_api.model import engines
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
    """An event that knows the stream on which it was recorded."""

    def __init__(self) -> None:
        self.name = ""

    def record(self, stream: FakeStream) -> None:
        self.name = f"event of {stream.name}"
        calls.append(f"record on {stream.name}")


class FakeGraph:
    """A graph that records its replays."""

    def replay(self) -> None:
        calls.append("replay")


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
def _play_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
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


def test_pixels_travel_on_a_stream_of_their_own() -> None:
    """The compute stream waits only for their copy, and their memory is kept until it has used them."""
    link = CudaLink(torch.device("cpu"))
    pixels, arrival = link.send(torch.zeros(2, dtype=torch.uint8))
    assert calls == ["on side", "record on side"]
    calls.clear()
    link.accept(pixels, arrival)
    assert calls == ["compute waits for event of side", "kept for compute"]


def test_answers_come_back_behind_the_work_that_makes_them() -> None:
    """On the compute stream, with a separate event and without a wait."""
    link = CudaLink(torch.device("cpu"))
    result, arrival = link.fetch(torch.tensor([1.0, 2.0]))
    assert calls == ["record on compute"]
    assert isinstance(arrival, FakeEvent)
    assert result.tolist() == [1, 2]


def test_graphs_are_captured_from_the_largest_in_one_pool() -> None:
    """Each after runs that are not recorded, on one stream, as the shared memory pool requires."""
    seen: list[int] = []

    def network(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        calls.append("run")
        return pixels.float()

    inputs = torch.arange(4)
    recordings = engines._capture(network, inputs, (1, 2, 4))
    assert seen == [4, 4, 4, 2, 2, 2, 1, 1, 1]
    one = ["on side", "run", "run", "host waits for side", "capture on side in one pool", "run", "captured"]
    assert calls == ["side waits for compute", *one, *one, *one, "back to compute"]
    calls.clear()
    assert recordings[2]().tolist() == [0, 1]
    assert calls == ["replay"]


def test_a_failed_capture_leaves_the_stream_as_it_was() -> None:
    """The fallback and its events are on the compute stream."""

    def network(pixels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        engines._capture(network, torch.arange(4), (1, 4))
    assert calls[-1] == "back to compute"
