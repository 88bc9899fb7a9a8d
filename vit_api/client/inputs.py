"""Converts the images that a caller passes to the bytes to upload. Knows nothing of servers, and never imports PIL."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vit_api.client.results import UnreadableInput

_FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (("PNG", {"compress_level": 1}), ("TIFF", {}))
"""Both are lossless. PNG is preferred; TIFF covers the modes that PNG lacks: CMYK, YCbCr, LAB, F."""


@runtime_checkable
class ReadableFile(Protocol):
    """An open binary file."""

    def read(self) -> bytes:
        """Return the rest of the file."""


@runtime_checkable
class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that is used here."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Encode the image into a file."""

    def getexif(self) -> Any:
        """Return its EXIF data, which includes the orientation."""


ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | ReadableFile | PillowImage
"""A path, the bytes of an image file, an open binary file or a Pillow image."""


def read_upload(image: ImageInput) -> bytes:
    """Return the bytes to upload for an image.

    An open file is read once, from its current position, so that the bytes can be sent again. A Pillow image is
    encoded losslessly, with its EXIF data and so its orientation.

    Raises:
        UnreadableInput: The file can't be read, or Pillow can't encode the image.
        TypeError: The image has a type that is not supported.
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
    raise TypeError(f"An image must be a path, bytes, a binary file or a PIL image, not {type(image).__name__}.")


def _read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: the name contains a null character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableInput(f"The file {str(path)!r} can't be read: {reason}.") from error


def _read_file(file: ReadableFile) -> bytes:
    try:
        content = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed, or is text that is not UTF-8
        raise UnreadableInput(f"The file can't be read: {str(error).removesuffix('.')}.") from error
    if not isinstance(content, bytes):
        raise TypeError("The file is open in text mode: open it in binary mode, open(path, 'rb').")
    return content


def _encode(image: PillowImage) -> bytes:
    failure: Exception | None = None
    for name, options in _FORMATS:
        file = io.BytesIO()
        try:
            image.save(file, name, exif=image.getexif(), **options)
        except Exception as error:  # whatever Pillow's encoders, or the decoder of a lazy image, raise
            failure = error
        else:
            return file.getvalue()
    raise UnreadableInput(f"The image can't be encoded: {str(failure).removesuffix('.')}.") from failure
