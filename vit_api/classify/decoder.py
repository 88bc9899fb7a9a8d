"""Reads and decodes image files with the server's LitAPI. Knows nothing of devices, and imports no torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.checkpoints.int8 import check_served
from vit_api.client.results import ClassifyError, Rejected, ServerFailed
from vit_api.decoding.frames import STILL, Frame
from vit_api.errors import InternalError, ViTError
from vit_api.labels.thresholds import Thresholds
from vit_api.lit_api import ViTAPI, options_of
from vit_api.settings import Settings

ReadUpload = Callable[[], bytes]
"""Reads one file. Raises UnreadableInput."""


@dataclass(frozen=True)
class Decoded:
    """A file that was read and, unless it has an error, decoded.

    Attributes:
        sha256: The digest of its bytes in hexadecimal; None if it could not be read.
        pixels: uint8 [height, width, 3] of the image, or of each requested frame.
        seconds: How long reading and decoding took.
        frames: The frames, if several were requested.
        error: Why there are no pixels.
    """

    sha256: str | None
    pixels: Sequence[NDArray[np.uint8]]
    seconds: float
    frames: Sequence[Frame] = ()
    error: ClassifyError | None = None


class FileDecoder:
    """Turns files into pixels.

    Args:
        lit_api: The LitAPI; its `setup` need not have run.
        frames: Number of frames of an animation, or pages of a document, to decode.
    """

    def __init__(self, lit_api: ViTAPI, frames: int = 1) -> None:
        self._lit_api = lit_api
        self._frames = frames

    def decode(self, read: ReadUpload) -> Decoded:
        """Read and decode one file; what is wrong with it is returned, not raised."""
        started = time.monotonic()
        sha256 = None
        pixels: Sequence[NDArray[np.uint8]] = ()
        frames: Sequence[Frame] = ()
        error = None
        try:
            upload = read()
            sha256 = hashlib.sha256(upload).hexdigest()
            pixels, frames = self._decode(upload)
        except ClassifyError as unreadable:
            error = unreadable
        except ViTError as undecodable:
            error = to_classify_error(undecodable)
        return Decoded(sha256, pixels, time.monotonic() - started, frames, error)

    def _decode(self, upload: bytes) -> tuple[Sequence[NDArray[np.uint8]], Sequence[Frame]]:
        if self._frames == 1:
            return [self._lit_api.decode_request(upload)], ()
        plan = self._lit_api.plan_frames(upload, self._frames)
        if plan is None:
            return [self._lit_api.decode_request(upload)], STILL
        return [one for _, one in self._lit_api.decode_frames(upload, plan, range(len(plan.frames)))], plan.frames


def build_lit_api(settings: Settings, max_batch_size: int, *, all_classes: bool = False) -> ViTAPI:
    """Return the server's LitAPI, which decodes; it classifies once its `setup` has run.

    Args:
        settings: The server's settings; those of the model and the images are used.
        max_batch_size: Maximum batch size.
        all_classes: Whether predictions have all classes and not only the most probable ones.

    Raises:
        CheckpointError: The model can't be found or can't be served.
    """
    checkpoint = load_checkpoint(settings.model, settings.revision, served_name=settings.model_name)
    check_served(checkpoint, settings.dtype, settings.engine, (), allow_unverified=settings.allow_unverified_int8)
    thresholds = settings.thresholds
    return ViTAPI(
        checkpoint,
        **options_of(settings),
        thresholds=None if thresholds is None else Thresholds.load(thresholds, checkpoint.labels),
        all_classes=all_classes,
        max_batch_size=max(2, max_batch_size),  # LitServe warns about batch hooks when the size is 1
    )


def to_classify_error(error: ViTError) -> ClassifyError:
    """Return the error as the client raises it."""
    kind = ServerFailed if error.status >= InternalError.status else Rejected
    return kind(error.message, code=error.code)
