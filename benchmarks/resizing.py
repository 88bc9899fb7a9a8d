"""How much the default resize differs from Pillow's, filter by filter, and how much faster it is.

    python -m benchmarks.resizing
    python -m benchmarks.resizing --model google/vit-base-patch16-224 --images photos/

Each filter must pass the gate of `benchmarks.accuracy`, with the model's answers for the same images, resized by
either. On photos, the pixels of a resize to 224 x 224 are compared, and the two take turns. The exit status is 1 if one
fails.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.accuracy import (
    CLEAR_MARGINS,
    MAX_DIFFERENCE,
    add_images,
    chosen_uploads,
    compare,
    probabilities,
)
from benchmarks.harness import command_line, results, tables
from vit_api.checkpoints.checkpoint import Checkpoint, load_checkpoint
from vit_api.decoding.resizing import resize

_FILTERS = range(6)  # the filters that an image processor can name
_PHOTO_SIZE = (500, 375)
_SIZE = (224, 224)
_TURNS = 60


def sample_photos() -> list[Image.Image]:
    """Return the photos that scikit-learn contains, at 500 x 375 pixels."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [Image.open(path).convert("RGB").resize(_PHOTO_SIZE) for path in sorted(folder.glob("*.jpg"))]


def pixels(photos: Sequence[Image.Image], resample: int) -> dict[str, Any]:
    """Return the maximum and the mean difference of pixels, out of 255, and the CPU time of both resizes."""
    differences, seconds = [], {True: [0.0], False: [0.0]}
    for photo in photos:
        images = {exact: np.asarray(resize(photo, _SIZE, resample, exact=exact)).astype(int) for exact in (True, False)}
        differences.append(np.abs(images[True] - images[False]))
        for _ in range(_TURNS):
            for exact, taken in seconds.items():
                taken.append(_time(functools.partial(resize, photo, _SIZE, resample, exact=exact)))
    pillow_s, default_s = (statistics.median(seconds[exact]) for exact in (True, False))
    return {
        "largest_pixel": int(max(difference.max() for difference in differences)),
        "mean_pixel": round(float(np.mean([difference.mean() for difference in differences])), 4),
        "pillow_us": round(pillow_s * 1e6),
        "default_us": round(default_s * 1e6),
        "ratio": round(pillow_s / default_s, 2),
    }


def _time(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def run(model: str, uploads: Sequence[bytes], photos: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Compare the default resize with Pillow's, for every filter."""
    checkpoint = load_checkpoint(model)
    compared = []
    for resample in _FILTERS:
        with_filter = _with_filter(checkpoint, resample)
        reference, ours = (probabilities(with_filter, uploads, "float32", is_exact=exact) for exact in (True, False))
        gate = compare(reference, ours, CLEAR_MARGINS["draft"])
        compared.append({"filter": Image.Resampling(resample).name.lower(), **pixels(photos, resample), **gate})
        print(compared[-1], flush=True)
    return compared


def _with_filter(checkpoint: Checkpoint, resample: int) -> Checkpoint:
    return dataclasses.replace(
        checkpoint, preprocessing=dataclasses.replace(checkpoint.preprocessing, resample=resample)
    )


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per filter."""
    head = ("filter", "largest pixel", "mean pixel", "Pillow, us", "default, us", "ratio", "largest p", "verdict")
    keys = ("filter", "largest_pixel", "mean_pixel", "pillow_us", "default_us", "ratio", "largest_difference")
    rows = [[*(row[key] for key in keys), "passes" if row["passes"] else "fails"] for row in report["results"]]
    return tables.markdown(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the resizes; exit with status 1 if a filter fails the gate."""
    parser = command_line.parser("resizing", __doc__)
    add_images(parser, default="digits, and photos of scikit-learn")
    options = command_line.parse(parser, arguments)
    uploads = chosen_uploads(options)
    if options.images:
        photos = [Image.open(io.BytesIO(upload)).convert("RGB") for upload in uploads[:20]]
    else:
        photos = sample_photos()
    uploads = uploads[: options.max_images]
    compared = run(options.model, uploads, photos)
    what = {"model": Path(options.model).name, "pictures": len(uploads), "photos": len(photos), "gate": MAX_DIFFERENCE}
    results.write(options.out, what | {"results": compared})
    if not all(row["passes"] for row in compared):
        sys.exit("A filter fails the gate: see above.")


if __name__ == "__main__":
    main()
