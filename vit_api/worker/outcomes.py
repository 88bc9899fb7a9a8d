"""Runs batches of images through the LitAPI's hooks: each image gets a prediction, or a failure that says why not.

Shared by the worker's loop and by `classify`. Must not know slots, pipes or torch.

`start` launches a batch on the device and returns; `finish` waits for it. Several batches may be started before the
first is finished. A batch that exceeds the device's memory is run again in halves, down to single images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc.records import Prediction, Status
from vit_api.logs import RepeatFilter

if TYPE_CHECKING:
    from vit_api.lit_api import ViTAPI
    from vit_api.model.model import Launched

logger = logging.getLogger(__name__)
logger.addFilter(RepeatFilter())

POLL_S = 100e-6
"""Interval at which a batch on the device is polled: a device can't be waited for together with a pipe. Linux may
delay each sleep by its timer slack (50 us by default, prctl(2)), so a shorter interval would gain little."""

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why an image has no prediction.

    Attributes:
        status: `FAILED` or `OUT_OF_MEMORY`.
        reason: A sentence for the operator, in the log or on a terminal. Not for clients: it may name internals.
    """

    status: Status
    reason: str


RunOutcome = Prediction | Failure
"""What the model run yields for one image."""

OUT_OF_MEMORY = Failure(Status.OUT_OF_MEMORY, "The device does not have enough free memory for this image.")
NOT_FINITE = Failure(
    Status.FAILED,
    "The model's output for this image is infinite or NaN: check the model's weights, or set another dtype.",
)


class BrokenDevice(Exception):
    """The device no longer computes; only a new process can use it again."""


class Started(NamedTuple):
    """A batch that was launched on the device, or failed to be.

    Attributes:
        images: Its images, each uint8 [height, width, 3].
        staged_at: When staging ended, in seconds of the monotonic clock.
        output: What `unbatch` takes, or the failure of all images.
        parts: What its predictions must have besides the most probable classes.
    """

    images: Sequence[NDArray[np.uint8]]
    staged_at: float
    output: Launched | Failure
    parts: int = 0


def start(lit_api: ViTAPI, images: Sequence[NDArray[np.uint8]], parts: int = 0) -> Started:
    """Launch a batch on the device, behind those that were started before.

    Args:
        lit_api: Its `batch` and `predict` are run.
        images: Each uint8 [height, width, 3]; `finish` may read them again.
        parts: What the predictions must have besides the most probable classes, see `records.ALL_CLASSES`.

    Raises:
        BrokenDevice: The device no longer computes.
    """
    size = len(images)
    staged = _attempt(lit_api, lambda: lit_api.batch(images), size)
    staged_at = time.monotonic()
    if isinstance(staged, Failure):
        return Started(images, staged_at, staged, parts)

    def launch() -> Launched:
        return lit_api.predict(staged, parts) if parts else lit_api.predict(staged)

    return Started(images, staged_at, _attempt(lit_api, launch, size), parts)


def is_done(lit_api: ViTAPI, started: Started) -> bool:
    """Return whether `finish` has nothing to wait for. True if the poll fails, as `finish` raises the same error."""
    if isinstance(started.output, Failure):
        return True
    try:
        return lit_api.is_done(started.output)
    except Exception:  # a CUDA error of the batch surfaces in whichever call comes next
        return True


def finish(lit_api: ViTAPI, started: Started, on_complete: Callable[[Started], None] | None = None) -> list[RunOutcome]:
    """Wait for a batch and return the outcome of each image, in their order.

    Args:
        lit_api: Its `unbatch` is run, and all three hooks again for the halves of a batch that was too large.
        started: The batch.
        on_complete: Called with each batch, or part of one, that the model ran to its end.

    Raises:
        BrokenDevice: The device no longer computes.
    """
    size = len(started.images)
    while not is_done(lit_api, started):
        time.sleep(POLL_S)
    predictions = _collect(lit_api, started)
    if not isinstance(predictions, Failure):
        if on_complete is not None:
            on_complete(started)
        return [_check_finite(prediction) for prediction in predictions]
    if predictions.status == Status.OUT_OF_MEMORY:
        lit_api.free_memory()
        if size > 1:
            images, middle, parts = started.images, size // 2, started.parts
            halves = images[:middle], images[middle:]
            return [one for half in halves for one in finish(lit_api, start(lit_api, half, parts), on_complete)]
    return [predictions] * size


def _collect(lit_api: ViTAPI, started: Started) -> list[Prediction] | Failure:
    output, size = started.output, len(started.images)
    if isinstance(output, Failure):
        return output

    def unbatch() -> list[Prediction]:
        predictions = lit_api.unbatch(output)
        if len(predictions) != size:
            raise RuntimeError(f"unbatch returned {len(predictions)} predictions for {size} images")
        return predictions

    return _attempt(lit_api, unbatch, size)


def _attempt(lit_api: ViTAPI, step: Callable[[], T], size: int) -> T | Failure:
    """Return what a step on a batch of `size` images returns, or its failure, which is logged.

    When this returns, the exception is gone, and with it the frames that hold the batch's tensors.

    Raises:
        BrokenDevice: The step failed, and the device no longer computes.
    """
    try:
        return step()
    except OutOfDeviceMemory:
        logger.warning("The device does not have enough free memory for a batch of %d", size)
        return OUT_OF_MEMORY
    except Exception as error:
        logger.exception("A batch of %d failed", size)
        if not lit_api.has_working_device():
            raise BrokenDevice("The device no longer computes.") from None
        return Failure(Status.FAILED, f"The model failed: {type(error).__name__}: {_first_line(error)}")


def _check_finite(prediction: Prediction) -> RunOutcome:
    """Return the prediction, or a failure if it has an infinity or a NaN, which JSON can't carry."""
    if prediction.is_finite:
        return prediction
    logger.error(NOT_FINITE.reason)
    return NOT_FINITE


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
