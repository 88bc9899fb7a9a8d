"""The cells of the comparison: an upload, and the model that classifies it. Knows nothing of servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import checkpoints, pictures

SMALL, LARGE = "32 px", "224 px"
CAMERA = "camera-224"
_ANSWERS = 3


@dataclass(frozen=True)
class Cell:
    """An upload and a model.

    Attributes:
        name: Its name on the command line and in the result.
        upload: The description of the upload.
        model: The model, named after the size of its input.
        make: Returns the upload.
        images_per_s: About what two cores do, if that is so little that a turn may have to be longer.
    """

    name: str
    upload: str
    model: str
    make: Callable[[], bytes]
    images_per_s: float | None = None

    def seconds(self, turn_s: float, connections: int) -> float:
        """Return the length of a turn with this many connections.

        All send their first image at once, and what they wait for at the end is not counted. So a turn has time for
        several answers on each.
        """
        if self.images_per_s is None:
            return turn_s
        return max(turn_s, _ANSWERS * connections / self.images_per_s)


CELLS = (
    Cell("png-32", "PNG of 32 px", SMALL, lambda: pictures.small_png(32)),
    Cell("jpeg-65k-32", "65 KB JPEG, 500x375", SMALL, lambda: pictures.noisy_jpeg(65_000)),
    Cell("jpeg-65k-224", "65 KB JPEG, 500x375", LARGE, lambda: pictures.noisy_jpeg(65_000)),
    Cell("jpeg-110k-224", "110 KB JPEG, 500x375", LARGE, lambda: pictures.noisy_jpeg(110_000)),
    Cell(CAMERA, "2.4 MB JPEG, 4032x3024", LARGE, pictures.camera_jpeg, images_per_s=32),
)


def checkpoint(model: str, folder: Path) -> str:
    """Return the checkpoint of a cell's model: the embedded one, or one that is created in a folder."""
    if model == SMALL:
        return "digits"
    checkpoints.save_two_layer_vit(folder)
    return str(folder)
