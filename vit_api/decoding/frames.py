"""Decodes several frames of an animation, or pages of a document, in one pass over its file.

`frame_times` says which frames there are. Knows nothing of HTTP, slots or models.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, TiffImagePlugin

from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding import tiff
from vit_api.decoding.cost import Cost
from vit_api.decoding.frame_times import FrameTimes, read_frame_times
from vit_api.decoding.image_limits import MAX_CPU_S
from vit_api.decoding.images import Decoding, Opened, Reading, lock_of, open_upload, pixels_of
from vit_api.decoding.memory import check_memory, check_size
from vit_api.errors import BadImage, ImageTooLarge

# Per pixel of the canvas, measured as in `cost` and `memory`: PIL holds the canvas, the frame before it, and what is to
# be put back; the decoders of WebP and AVIF have canvases of their own. Each frame is copied before it is converted.
_S_PER_MEGAPIXEL = {"GIF": 0.025, "WEBP": 0.04, "PNG": 0.06, "AVIF": 0.04}
_S_PER_MEGAPIXEL_OF_PAGES = 0.02
_BYTES_PER_PIXEL = {"GIF": 22, "WEBP": 23, "PNG": 25, "AVIF": 28}
_BYTES_PER_PIXEL_OF_PAGES = 9
_S_PER_FRAME = 0.0002


@dataclass(frozen=True)
class Frame:
    """A frame that was chosen.

    Attributes:
        index: Its position among all frames, from 0.
        time_ms: When it is shown, in milliseconds from the start; None for pages, which have no time.
    """

    index: int
    time_ms: float | None


STILL = (Frame(0, 0.0),)
"""The frames of a still picture."""


@dataclass(frozen=True)
class FramePlan:
    """The frames of an upload that are to be classified.

    Attributes:
        frames: The frames, in order.
        numbers: PIL's numbers of these.
        format_name: The format of the file.
        cost: What decoding them is expected to take, with the earlier frames that they are composed of.
        is_composed: Whether a frame needs those before it.
    """

    frames: tuple[Frame, ...]
    numbers: tuple[int, ...]
    format_name: str
    cost: Cost
    is_composed: bool


def plan_frames(upload: bytes, count: int, decoding: Decoding) -> FramePlan | None:
    """Choose up to `count` frames of an upload, the first and the last among them.

    Args:
        upload: The bytes of an image file.
        count: The number of frames to choose, from 2.
        decoding: How they will be decoded.

    Returns:
        The frames; None for a still picture.

    Raises:
        EmptyUpload: The upload has no bytes.
        UnsupportedImage: The upload is in none of the formats.
        ImageTooLarge: Decoding the frames takes too much memory or time.
        BadImage: The file is corrupt, or has too many frames.
    """
    with Reading(upload) as format_name:
        times = read_frame_times(upload, format_name)
    if times is None:
        return None
    chosen = choose(times, count)
    numbers = tuple(times.numbers[index] for index in chosen)
    starts_ms = times.starts_ms
    is_composed = format_name in _S_PER_MEGAPIXEL
    cost = _cost(times.size, format_name, numbers[-1] + 1 if is_composed else len(numbers), len(upload))
    _check(times, format_name, cost, decoding)
    frames = tuple(Frame(index, None if starts_ms is None else round(starts_ms[index], 3)) for index in chosen)
    return FramePlan(frames, numbers, format_name, cost, is_composed)


def choose(times: FrameTimes, count: int) -> list[int]:
    """Choose frames: those that are shown at `count` moments, evenly over the duration, or all if there are no more.

    Where one is shown at several of these moments, those next to it are chosen, too, so that there are `count`. Pages
    are chosen evenly by their numbers.
    """
    total = len(times.numbers)
    if total <= count:
        return list(range(total))
    starts_ms: Sequence[float] = range(total) if times.starts_ms is None else times.starts_ms
    chosen: list[int] = []
    for step in range(count):
        shown = bisect_right(starts_ms, starts_ms[-1] * step / (count - 1)) - 1
        first = chosen[-1] + 1 if chosen else 0
        chosen.append(min(max(shown, first), total - count + step))
    return chosen


def decode_frames(
    upload: bytes, plan: FramePlan, wanted: Collection[int], preprocessing: Preprocessing, decoding: Decoding
) -> Generator[tuple[int, npt.NDArray[np.uint8]], None, None]:
    """Decode frames one after the other; close it to stop early.

    Args:
        upload: The file.
        plan: The frames that were chosen of it.
        wanted: Positions in `plan.frames` of those to decode.
        preprocessing: The resize and the crop to apply.
        decoding: See `images.decode`.

    Yields:
        The position of each frame, and its uint8 pixels of shape `preprocessing.pixel_shape`.

    Raises:
        ViTError: As `images.decode`; BadImage also if they take too much CPU time together.
    """
    end_s = time.thread_time() + MAX_CPU_S
    with Reading(upload) as format_name, lock_of(format_name):
        opened = open_upload(upload, format_name, decoding, has_frames=True)
        with opened.image as image:
            at = 0
            for position in sorted(wanted):
                number = plan.numbers[position]
                for step in range(at, number + 1) if plan.is_composed else (number,):
                    image.seek(step)
                    if step == number or format_name == "WEBP":  # others compose the frames in between as they seek
                        _load(image)
                    _check_time(end_s)
                at = number + 1
                yield position, pixels_of(_frame_of(opened, plan, upload, decoding), preprocessing, decoding)


def _load(image: Image.Image) -> None:
    """Decode the current frame.

    Where an APNG's frame is blended and then taken back, PIL changes the very picture that it later puts back, so that
    the next frames are wrong. (Without a `load` between them it takes a copy first.)
    """
    previous = image._prev_im if isinstance(image, PngImagePlugin.PngImageFile) else None
    kept = None if previous is None else previous.copy()
    image.load()
    if kept is not None:
        image._prev_im = kept  # type: ignore[attr-defined]


def _frame_of(opened: Opened, plan: FramePlan, upload: bytes, decoding: Decoding) -> Opened:
    """Return the current frame as a picture of its own: conversions change it, and later frames are composed of it."""
    if plan.is_composed:
        return Opened(plan.format_name, opened.image.copy())
    if isinstance(opened.image, TiffImagePlugin.TiffImageFile) and not decoding.exact:
        tiff.refuse_kind(opened.image, upload)
    return opened


def _cost(size: tuple[int, int], format_name: str, steps: int, upload_bytes: int) -> Cost:
    """Return what decoding takes; an APNG is rebuilt from its chunks, and other decoders copy the file, too."""
    pixels = size[0] * size[1]
    per_megapixel = _S_PER_MEGAPIXEL.get(format_name, _S_PER_MEGAPIXEL_OF_PAGES)
    per_pixel = _BYTES_PER_PIXEL.get(format_name, _BYTES_PER_PIXEL_OF_PAGES)
    return Cost(steps * (pixels / 1e6 * per_megapixel + _S_PER_FRAME), pixels * per_pixel + upload_bytes)


def _check(times: FrameTimes, format_name: str, cost: Cost, decoding: Decoding) -> None:
    """Check size, memory and time before any pixel is decoded.

    Raises:
        ImageTooLarge: One of them is too much.
    """
    check_size(*times.size, decoding.max_side)
    if format_name in _BYTES_PER_PIXEL:  # a page is checked when it is decoded
        check_memory(times.size, cost.held_bytes, decoding.max_bytes)
    if cost.cpu_s > MAX_CPU_S:
        advice = "Scale it down or shorten it" if times.starts_ms else "Ask for fewer frames, or scale it down"
        raise ImageTooLarge(
            f"The {format_name} image has {len(times.numbers)} frames of {times.size[0]} x {times.size[1]} pixels: "
            f"decoding them takes about {cost.cpu_s:.0f} s of CPU time, and at most {MAX_CPU_S:g} s are allowed. "
            f"{advice}."
        )


def _check_time(end_s: float) -> None:
    if time.thread_time() > end_s:
        raise BadImage(
            f"The image is too complex: decoding its frames takes more than {MAX_CPU_S:g} s of CPU time. "
            "Scale it down or shorten it."
        )
