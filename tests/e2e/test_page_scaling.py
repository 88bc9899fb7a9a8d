"""What the page sends of large images, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.support.page import SEVEN, Page, needs_browser
from tests.support.server import RunningServer

pytestmark = needs_browser


def _photo_of_a_seven(path: Path, *, orientation: int = 1, mode: str = "RGB") -> Path:
    """Write a picture as large as a camera's, with a sensor's noise, turned as `orientation` says."""
    noise = np.random.default_rng(0).normal(0, 12, (3000, 4000))
    with Image.open(SEVEN) as seven:
        pixels = np.asarray(seven.convert("L").resize((4000, 3000), Image.Resampling.BICUBIC)) + noise
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)
    if mode == "RGBA":
        picture.putpixel((0, 0), (0, 0, 0, 0))
        picture.paste((0, 0, 0, 0), (0, 0, 400, 400))
    if orientation == 6:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {"compress_level": 1}))
    assert path.stat().st_size > 2**20
    return path


def _shown(page: Page) -> list[tuple[str, float]]:
    """Return the labels and percentages that the page shows."""
    values = [float(value.removesuffix(" %")) for value in page.texts("#answer .value")]
    return list(zip(page.texts("#answer .label"), values, strict=True))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photo_is_scaled_down_before_it_is_sent(
    page: Page, digits_server: RunningServer, tmp_path: Path, orientation: int
) -> None:
    """What is sent is a fraction of the file, upright, and has the answer of the original."""
    photo = _photo_of_a_seven(tmp_path / "photo.jpg", orientation=orientation)
    page.js("document.getElementById('fresh').click()")
    page.choose(photo)
    page.wait_for("photo.jpg: 7")
    found = re.search(r"scaled down to ([\d.]+) KiB", page.text("#answer .file"))
    assert found is not None
    assert float(found[1]) * 1024 < photo.stat().st_size / 4
    original = dict(digits_server.top(photo.read_bytes(), 10))
    assert all(abs(original[label] - percent / 100) < 0.02 for label, percent in _shown(page))


def test_the_original_file_is_sent_where_that_is_chosen(page: Page, tmp_path: Path) -> None:
    """Whatever its size."""
    page.js("document.getElementById('original').click()")
    page.choose(_photo_of_a_seven(tmp_path / "photo.jpg"))
    page.wait_for("photo.jpg: 7")
    assert "scaled down" not in page.text("#answer .file")


def test_a_picture_with_transparency_is_sent_as_it_is(page: Page, tmp_path: Path) -> None:
    """The server's setting decides what shows through it."""
    page.choose(_photo_of_a_seven(tmp_path / "drawing.png", mode="RGBA"))
    page.wait_for("drawing.png: 7")
    assert "scaled down" not in page.text("#answer .file")


def test_a_file_that_the_browser_cannot_read_is_sent_as_it_is(page: Page, tmp_path: Path) -> None:
    """The server reads TIFF, or says what is wrong with a file that can't be read."""
    with Image.open(SEVEN) as seven:
        seven.convert("RGB").resize((1200, 900)).save(tmp_path / "scan.tif")
    (tmp_path / "wrong.jpg").write_bytes(b"no image" * 2**18)
    page.choose(tmp_path / "scan.tif")
    page.wait_for("scan.tif: 7")
    page.choose(tmp_path / "wrong.jpg")
    page.wait_for("wrong.jpg was not classified.")
    assert "scaled down" not in page.text("#answer .file")
