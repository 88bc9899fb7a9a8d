"""The types that a caller may pass as an image, and the bytes uploaded for each."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.samples import encode, orientation_exif, photo
from vit_api.client.inputs import read_upload


def _inputs(path: Path) -> Iterator[Any]:
    content = path.read_bytes()
    yield from (path, str(path), content, bytearray(content), memoryview(content), io.BytesIO(content))


def test_inputs(tmp_path: Path) -> None:
    """Paths, bytes and file objects all give the file's bytes."""
    path = tmp_path / "image.png"
    path.write_bytes(b"content")
    assert {read_upload(image) for image in _inputs(path)} == {b"content"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16"])
def test_pillow_images(mode: str) -> None:
    """Images of each mode are encoded losslessly in a format that can be decoded."""
    image = Image.new(mode, (8, 6), 1 if mode in "1LIPF" or mode == "I;16" else None)
    with Image.open(io.BytesIO(read_upload(image))) as decoded:
        assert (decoded.size, decoded.mode) == (image.size, mode)
        assert decoded.tobytes() == image.tobytes()


def test_a_pillow_image_keeps_its_orientation() -> None:
    """The EXIF orientation of a photo is uploaded with it."""
    with Image.open(io.BytesIO(encode(photo(), "JPEG", exif=orientation_exif(6)))) as image:
        upload = read_upload(image)
    with Image.open(io.BytesIO(upload)) as decoded:
        assert decoded.getexif()[0x0112] == 6
