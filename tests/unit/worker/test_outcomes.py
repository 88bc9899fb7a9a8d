"""Running batches: one outcome per image, whatever the hooks do. The model is plain arithmetic."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc.records import Prediction, Status
from vit_api.logs import RepeatFilter
from vit_api.worker import outcomes as module
from vit_api.worker.outcomes import NOT_FINITE, OUT_OF_MEMORY, BrokenDevice, Failure, Started, finish, is_done, start

_RAISES, _TOO_LARGE, _INFINITE, _NAN, _LOST = 255, 254, 253, 252, 251


@pytest.fixture(autouse=True)
def _new_repeat_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test log its failures: repeats are dropped for a minute."""
    monkeypatch.setattr(module.logger, "filters", [RepeatFilter()])


class FakeApi:
    """Predicts an image's first pixel as its class; some values fail.

    Attributes:
        calls: The hooks' names and batch sizes, in order.
        capacity: The largest batch that fits.
        late: An error for the next `unbatch` to raise.
        is_ready: Whether the device has completed all batches.
    """

    def __init__(self, capacity: int = 32) -> None:
        self.calls: list[tuple[str, int]] = []
        self.capacity = capacity
        self.late: Exception | None = None
        self.is_ready = True
        self.is_broken = False

    def batch(self, inputs: list[NDArray[np.uint8]]) -> list[int]:
        self.calls.append(("batch", len(inputs)))
        return [int(pixels.flat[0]) for pixels in inputs]

    def predict(self, x: list[int]) -> list[int]:
        self.calls.append(("predict", len(x)))
        if len(x) > self.capacity or _TOO_LARGE in x:
            raise OutOfDeviceMemory("planted")
        if _RAISES in x:
            raise RuntimeError("a planted failure\nwith details")
        return x

    def is_done(self, output: list[int]) -> bool:
        return self.is_ready

    def unbatch(self, output: list[int]) -> list[Prediction]:
        self.calls.append(("unbatch", len(output)))
        if self.late is not None:
            late, self.late = self.late, None
            raise late
        odd = {_INFINITE: math.inf, _NAN: math.nan}
        return [Prediction((value,), (odd.get(value, 0.0),), 1.0) for value in output if value != _LOST]

    def free_memory(self) -> None:
        self.calls.append(("free_memory", 0))

    def has_working_device(self) -> bool:
        return not self.is_broken


def _images(*values: int) -> list[NDArray[np.uint8]]:
    return [np.full((1, 1, 3), value, np.uint8) for value in values]


def _run(api: Any, *values: int) -> list[int | Status]:
    """Run a batch; return each image's class, or the status of its failure."""
    outcomes = finish(api, start(api, _images(*values)))
    return [outcome.status if isinstance(outcome, Failure) else outcome.indices[0] for outcome in outcomes]


def test_each_image_gets_its_own_prediction() -> None:
    """One run of the model answers the batch in order."""
    api = FakeApi()
    assert _run(api, 3, 1, 2) == [3, 1, 2]
    assert api.calls == [("batch", 3), ("predict", 3), ("unbatch", 3)]


def test_starting_a_batch_does_not_wait_for_the_device() -> None:
    """Two batches can be in flight at once."""
    api: Any = FakeApi()
    api.is_ready = False
    first, second = start(api, _images(1)), start(api, _images(2))
    assert api.calls == [("batch", 1), ("predict", 1)] * 2
    assert not is_done(api, first)
    api.is_ready = True
    assert finish(api, first) == [Prediction((1,), (0.0,), 1.0)]
    assert finish(api, second) == [Prediction((2,), (0.0,), 1.0)]


def test_a_batch_that_does_not_fit_is_halved() -> None:
    """It is halved until its parts fit; memory is freed before each retry, and the images keep their order."""
    api = FakeApi(capacity=2)
    assert _run(api, 0, 1, 2, 3, 4) == [0, 1, 2, 3, 4]
    assert [size for name, size in api.calls if name == "predict"] == [5, 2, 3, 1, 2]
    assert [name for name, _ in api.calls].count("free_memory") == 2


def test_only_the_image_that_does_not_fit_fails() -> None:
    """The other images of the batch get their results."""
    assert _run(FakeApi(), 1, _TOO_LARGE, 3, 4) == [1, Status.OUT_OF_MEMORY, 3, 4]


def test_an_out_of_memory_at_the_end_also_halves() -> None:
    """The device may report the error only when the results are collected."""
    api = FakeApi()
    api.late = OutOfDeviceMemory("planted")
    assert _run(api, 1, 2) == [1, 2]
    assert [size for name, size in api.calls if name == "predict"] == [2, 1, 1]


@pytest.mark.parametrize("value", [pytest.param(_INFINITE, id="infinite"), pytest.param(_NAN, id="nan")])
def test_a_prediction_that_is_not_finite_is_a_failure(value: int, caplog: pytest.LogCaptureFixture) -> None:
    """Only that image fails, and the log has the failure's message."""
    api: Any = FakeApi()
    outcomes = finish(api, start(api, _images(1, value, 3)))
    assert outcomes[1] == NOT_FINITE
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [False, True, False]
    assert NOT_FINITE.reason in caplog.messages


def test_a_model_that_raises_fails_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    """The reason is a single line; the log has the traceback."""
    api: Any = FakeApi()
    started = start(api, _images(1, _RAISES))
    assert is_done(api, started), "a failed batch has nothing to wait for"
    outcomes = finish(api, started)
    assert outcomes == [Failure(Status.FAILED, "The model failed: RuntimeError: a planted failure")] * 2
    assert [record.exc_info is not None for record in caplog.records if record.levelno == logging.ERROR] == [True]
    finish(api, start(api, _images(_RAISES)))
    assert len(caplog.records) == 1, "each batch would fill the log with tracebacks"


def test_a_missing_prediction_fails_the_batch() -> None:
    """Without it, images could get each other's answers."""
    assert _run(FakeApi(), 1, _LOST, 3) == [Status.FAILED] * 3


def test_a_broken_device_is_reported() -> None:
    """BrokenDevice is raised at launch and when results are collected."""
    api: Any = FakeApi()
    api.is_broken = True
    with pytest.raises(BrokenDevice):
        start(api, _images(_RAISES))
    started = start(api, _images(1))
    api.late = RuntimeError("planted")
    with pytest.raises(BrokenDevice):
        finish(api, started)


def test_completed_parts_are_reported() -> None:
    """The callback gets each part of a halved batch that completed, and none that failed."""
    api: Any = FakeApi(capacity=2)
    completed: list[Started] = []
    finish(api, start(api, _images(0, 1, 2, _TOO_LARGE)), completed.append)
    assert [len(started.images) for started in completed] == [2, 1]
    assert finish(api, start(api, _images(_TOO_LARGE)), completed.append) == [OUT_OF_MEMORY]
    assert len(completed) == 2
