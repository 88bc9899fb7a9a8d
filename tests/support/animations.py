"""Animations and documents of several pages, made by Pillow, whose frames are known."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pillow_heif
from PIL import Image, ImageDraw

FORMATS: dict[str, dict[str, Any]] = {
    "GIF": {},
    "WEBP": {"lossless": True},
    "PNG": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "TIFF": {},
}
"""Formats with several frames, and how Pillow saves each so that its frames keep their colours."""


def colourful(count: int, size: tuple[int, int] = (80, 60), mode: str = "RGB") -> list[Image.Image]:
    """Return pictures of which no two are alike: a bar that moves over a ground that changes."""
    pictures = []
    for number in range(count):
        share = number * 200 // max(count - 1, 1)
        picture = Image.new("RGB", size, (share, 0, 255 - share))
        left = number % max(size[0] - 15, 1)
        ImageDraw.Draw(picture).rectangle((left, size[1] // 6, left + 15, size[1] // 2), fill=(0, 255, 0))
        pictures.append(picture.convert(mode))
    return pictures


def animate(pictures: Sequence[Image.Image], image_format: str, **options: Any) -> bytes:
    """Return an animation of pictures, or a document with a page of each."""
    file = io.BytesIO()
    if image_format == "HEIC":
        heif = pillow_heif.HeifFile()
        for picture in pictures:
            heif.add_from_pillow(picture)
        heif.save(file, quality=-1)
        return file.getvalue()
    if image_format != "TIFF":
        options = {"duration": 50} | options
    settings = FORMATS[image_format] | options
    pictures[0].save(file, image_format, save_all=True, append_images=pictures[1:], **settings)
    return file.getvalue()
