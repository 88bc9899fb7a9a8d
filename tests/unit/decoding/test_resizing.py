"""The SIMD resize agrees with Pillow's, for any filter, ratio and box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support import samples
from tests.support.threads import run_in_threads
from vit_api.decoding import resizing
from vit_api.decoding.resizing import resize, resizer_name

# The filters that an image processor can name.
FILTERS = {Image.Resampling(number).name.lower(): number for number in range(6)}
# The maximum and the mean difference from Pillow's pixels, on photos. Sharpening filters overshoot at edges, which the
# two implementations clip at different points.
LIMITS = {
    "nearest": (0, 0.0),
    "box": (0, 0.0),
    "hamming": (0, 0.0),
    "bilinear": (1, 0.2),
    "bicubic": (10, 0.2),
    "lanczos": (24, 0.3),
}
SIZES = [(224, 224), (341, 256), (32, 32), (17, 91), (700, 900), (1, 1), (1, 224), (500, 3)]

needs_simd = pytest.mark.skipif(resizing.simd is None, reason="cykooz-resizer has no wheel for this platform")


def differences(
    image: Image.Image, size: tuple[int, int], resample: int, box: resizing.Box | None = None
) -> np.ndarray:
    ours, pillows = (np.asarray(resize(image, size, resample, box, exact=exact)).astype(int) for exact in (False, True))
    assert ours.shape == pillows.shape
    return np.abs(ours - pillows)


@needs_simd
def test_the_fast_resizer_is_in_use() -> None:
    """Exact decoding uses Pillow."""
    assert resizer_name(exact=False) == "cykooz-resizer"
    assert resizer_name(exact=True) == "pillow"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P"])
@pytest.mark.parametrize("name", FILTERS)
def test_pixels_are_close_to_pillows(name: str, mode: str) -> None:
    """Photos are scaled up and down with every filter, in modes with and without SIMD."""
    largest, mean = LIMITS[name]
    found = [
        differences(photo.convert(mode), size, FILTERS[name])
        for photo in (samples.photos()["china"], samples.photos()["chelsea"])
        for size in SIZES
        if mode != "P" or name == "nearest"
    ]
    assert max((difference.max() for difference in found), default=0) <= largest
    assert max((difference.mean() for difference in found), default=0) <= mean


_FEW_PIXELS, _STRIP, _AT_EDGES = 64, 2, 16
"""A mean says nothing of a few pixels, or of a strip: all of them may be at edges, where the filters differ most. A
shift by one pixel would change those of the smallest image by 85."""


@pytest.mark.parametrize("name", FILTERS)
@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True),
)
@example(size=(2, 2), target=(1, 1), corners=[0.0, 0.25, 0.375, 0.5])
@example(size=(2, 2), target=(1, 2), corners=[0.75, 0.375, 1.0, 0.5])
@example(size=(2, 2), target=(2, 2), corners=[0.0, 0.5, 0.125, 1.0])
def test_any_box_and_ratio_agree_with_pillow(
    name: str, size: tuple[int, int], target: tuple[int, int], corners: list[float]
) -> None:
    """Boxes may have fractional edges, be slivers, or reach the border; a shift by one pixel would fail."""
    left, right = sorted((corners[0] * size[0], corners[1] * size[0]))
    top, bottom = sorted((corners[2] * size[1], corners[3] * size[1]))
    if right - left < 1e-3 or bottom - top < 1e-3:
        return  # Pillow stores the corners in single precision
    ramp = Image.fromarray(np.linspace(0, 255, size[0] * size[1]).reshape(size[::-1]).astype(np.uint8))
    found = differences(ramp, target, FILTERS[name], (left, top, right, bottom))
    if found.size < _FEW_PIXELS or min(target) <= _STRIP:
        step = 255 * (size[0] + 1) / (size[0] * size[1])  # to the next pixel below and beside it
        assert found.max() <= max(_AT_EDGES, step / 4)
    else:
        assert found.mean() <= 2


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (2, 3), (4096, 4096)])
@pytest.mark.parametrize("name", FILTERS)
def test_a_single_colour_is_kept(name: str, size: tuple[int, int]) -> None:
    """No ratio changes it; the largest of these images has several blocks of Pillow's memory."""
    resized = np.asarray(resize(Image.new("RGB", size, (250, 3, 77)), (224, 240), FILTERS[name], exact=False))
    assert (resized == (250, 3, 77)).all()


def test_all_blocks_of_a_large_image_are_read() -> None:
    """Pillow allocates images above 16 MiB in blocks."""
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    assert differences(Image.fromarray(noise), (64, 64), FILTERS["bilinear"]).max() <= 1


def test_threads_can_resize_concurrently() -> None:
    """A resizer has buffers, which threads do not share."""
    photo = samples.photos()["china"]
    expected = np.asarray(resize(photo, (224, 224), 2, exact=False))
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(20):
                if (np.asarray(resize(photo, (224, 224), 2, exact=False)) != expected).any():
                    wrong.append("pixels")
        except Exception as error:
            wrong.append(error)

    run_in_threads(work)
    assert wrong == []


def test_pillow_resizes_if_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every filter then gives Pillow's pixels bit for bit."""
    monkeypatch.setattr(resizing, "simd", None)
    monkeypatch.setattr(resizing, "_SIMD_FILTERS", {})
    assert resizer_name(exact=False) == "pillow"
    for resample in FILTERS.values():
        assert not differences(samples.photos()["china"], (224, 224), resample).any()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("name", FILTERS)
def test_a_picture_of_the_right_size_stays_as_it_is(name: str, mode: str) -> None:
    """Every filter would return the same pixels, with and without a box that is the whole picture."""
    photo = samples.photos()["china"].convert(mode)
    for box in (None, (0.0, 0.0, float(photo.width), float(photo.height))):
        assert not differences(photo, photo.size, FILTERS[name], box).any()
    shifted = (0.5, 0.0, float(photo.width), float(photo.height))
    assert np.asarray(resize(photo, photo.size, FILTERS[name], shifted, exact=False)).shape[1] == photo.width
