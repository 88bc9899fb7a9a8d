"""Turns what a caller has of an image into the bytes to upload. Knows nothing of servers, and never imports PIL."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vit_api.client.results import UnreadableInput

_FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (("PNG", {"compress_level": 1}), ("TIFF", {}))
"""Both lossless. PNG is what the server reads fastest; TIFF has the modes that PNG lacks: CMYK, YCbCr, LAB, F."""


@runtime_checkable
class ReadableFile(Protocol):
    """An open binary file."""

    def read(self) -> bytes:
        """Return what is left of it."""


@runtime_checkable
class PillowImage(Protocol):
    """A `PIL.Image.Image`, as far as it matters here."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Encode it into a file."""

    def getexif(self) -> Any:
        """Return its EXIF, which says how to turn it."""


ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | ReadableFile | PillowImage
"""A path, the bytes of an image file, an open binary file or a Pillow image."""


def read_upload(image: ImageInput) -> bytes:
    """Return an image's bytes as they are to be uploaded.

    A file is read from where it stands, once: the bytes can then be sent as often as need be. A Pillow image is
    encoded without loss, and keeps the EXIF that says how to turn it.

    Raises:
        UnreadableInput: The file can't be read, or Pillow can't encode the image.
        TypeError: It is none of these.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return _read_path(Path(image))
    if isinstance(image, PillowImage):
        return _encode(image)
    if isinstance(image, ReadableFile):
        return _read_file(image)
    raise TypeError(f"an image is a path, bytes, a binary file or a PIL image, not {type(image).__name__}")


def _read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableInput(f"{path} can't be read: {reason}") from error


def _read_file(file: ReadableFile) -> bytes:
    try:
        content = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed, or text that is not UTF-8
        raise UnreadableInput(f"the file can't be read: {error}") from error
    if not isinstance(content, bytes):
        raise TypeError("open the file in binary mode: open(path, 'rb')")
    return content


def _encode(image: PillowImage) -> bytes:
    failure: Exception | None = None
    for name, options in _FORMATS:
        file = io.BytesIO()
        try:
            image.save(file, name, exif=image.getexif(), **options)
        except Exception as error:  # Pillow raises whatever its encoders, or a lazy image's decoder, run into
            failure = error
        else:
            return file.getvalue()
    raise UnreadableInput(f"the image can't be encoded: {failure}") from failure
