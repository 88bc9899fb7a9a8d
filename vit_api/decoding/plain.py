"""Decodes plain JPEGs and PNGs with one call of Pillow's decoder, and takes the pixels with one of its encoder.

Pillow reads headers in Python, piece by piece, and feeds its decoder in pieces: 400 to 500 calls for a picture. What
the decoder does not accept in one call is opened by Pillow in the usual way, which then says what is wrong. Knows
nothing of the model's input.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, _imaging

from vit_api.decoding import jpeg
from vit_api.decoding.image_limits import UploadFile
from vit_api.decoding.jpeg import PlainHeader
from vit_api.decoding.png import CHECKSUM_BYTES, CHUNK, MAX_CHUNKS, SIGNATURE

MAX_BYTES = 2 * 2**20
"""Pillow reads longer files piece by piece, which bounds the CPU time; see `UploadFile`."""
MAX_JPEG_BYTES, MAX_JPEG_PIXELS = 64 * 2**20, 128_000_000
"""Except for JPEGs in one scan up to this, whose time is bounded by that: 100 megapixels take a second."""

RGB_OR_GREY = ("RGB", "L")
"""The modes that `pixels_of` takes."""

_JPEG_MODES = {1: "L", 3: "RGB"}
_SCALES = (8, 4, 2)
_ENCODED = 1
"""Pillow's encoder is at the end of the picture."""
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_PNG_HEADER = struct.Struct(">II5B")  # width, height, bits, colour type, compression, filter, interlace
# Of 8 bits, by bits, colour type, compression, filter and interlace.
_PNG_MODES = {(8, 0, 0, 0, 0): "L", (8, 2, 0, 0, 0): "RGB", (8, 6, 0, 0, 0): "RGBA"}


def takes_jpeg(upload: bytes, header: PlainHeader) -> bool:
    """Return whether a JPEG may be decoded in one call.

    One that the decoder does not accept is decoded again; so a long one must look complete.
    """
    width, height = header.size
    if len(upload) <= MAX_BYTES:
        return True
    return len(upload) <= MAX_JPEG_BYTES and width * height <= MAX_JPEG_PIXELS and upload.endswith(jpeg.END)


class PlainImage(Image.Image):
    """A picture that is decoded when it is loaded, as Pillow's own, pixel for pixel.

    Args:
        upload: The file.
        mode: Pillow's mode of it.
        size: Width and height.
    """

    def __init__(self, upload: bytes, mode: str, size: tuple[int, int]) -> None:
        super().__init__()
        self._upload = upload
        self._mode = mode
        self._size = size

    @property
    def has_metadata(self) -> bool:
        """Whether it has EXIF data or XMP, which may turn it."""
        return bool(self.info)

    def load(self) -> None:
        """Decode it, unless it is decoded."""
        if self._im is None:
            self._im = self._decode() or self._decode_usually()
            self._upload = b""

    def _decode(self) -> _imaging.ImagingCore | None:
        """Return the pixels; None if the decoder does not finish with the last byte, or does not accept the file."""
        raise NotImplementedError

    def _decode_usually(self) -> _imaging.ImagingCore:
        """Return the pixels, or raise what Pillow raises."""
        raise NotImplementedError

    def _run(self, decoder: _imaging.ImagingDecoder, data: bytes) -> _imaging.ImagingCore | None:
        pixels = _imaging.new(self._mode, self._size)
        try:
            decoder.setimage(pixels, (0, 0, *self._size))
            consumed, error = decoder.decode(data)
        finally:
            decoder.cleanup()
        return pixels if consumed < 0 and error >= 0 else None

    def _pixels_of(self, image: Image.Image) -> _imaging.ImagingCore:
        image.load()
        if image.mode != self._mode or image.size != self._size:
            raise ValueError("The decoder found another picture than the header's.")
        return image.im


class PlainJpeg(PlainImage):
    """A JPEG in one scan of grey or three colours.

    Args:
        upload: The file.
        header: Its header.
        open_usually: Opens it with Pillow, once the decoder does not accept it.
    """

    def __init__(self, upload: bytes, header: PlainHeader, open_usually: Callable[[], Image.Image]) -> None:
        super().__init__(upload, _JPEG_MODES[header.components], header.size)
        self._draft_size: tuple[int, int] | None = None
        self._scale = 1
        self._open_usually = open_usually
        for segment in header.metadata:
            self._add_metadata(segment)

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Have it scaled by 1/2, 1/4 or 1/8 while it is decoded, if it stays at least of a size.

        Args:
            mode: Ignored: it keeps its own.
            size: Minimum width and height.

        Returns:
            The mode, and the extent of the picture in scaled pixels.
        """
        width, height = self._size
        if size is not None:
            largest = min(width // size[0], height // size[1])
            self._draft_size = size
            self._scale = scale = next((scale for scale in _SCALES if largest >= scale), 1)
            self._size = -(-width // scale), -(-height // scale)
        return self._mode, (0, 0, width / self._scale, height / self._scale)

    def _decode(self) -> _imaging.ImagingCore | None:
        return self._run(_imaging.jpeg_decoder(self._mode, self._mode, "", self._scale, 0), self._upload)

    def _decode_usually(self) -> _imaging.ImagingCore:
        with self._open_usually() as image:
            image.draft(None, self._draft_size)
            return self._pixels_of(image)

    def _add_metadata(self, segment: bytes) -> None:
        """Keep the contents of an APP1 segment as Pillow does."""
        if segment.startswith(_EXIF):
            self.info["exif"] = self.info["exif"] + segment[len(_EXIF) :] if "exif" in self.info else segment
        elif segment.startswith(_XMP):
            self.info["xmp"] = segment.split(b"\0", 1)[1]


class PlainPng(PlainImage):
    """A PNG of 8 bits without palette, interlace, and chunks besides those of its pixels.

    Args:
        upload: The file.
        mode: Pillow's mode of it.
        size: Width and height.
        parts: Its compressed pixels.
    """

    def __init__(self, upload: bytes, mode: str, size: tuple[int, int], parts: Sequence[bytes]) -> None:
        super().__init__(upload, mode, size)
        self._parts = parts

    @classmethod
    def of(cls, upload: bytes) -> PlainPng | None:
        """Return the picture of a file; None if it is not plain, or long."""
        start = len(SIGNATURE) + 8  # of the header's contents
        if len(upload) > MAX_BYTES or upload[len(SIGNATURE) : start] != b"\0\0\0\x0dIHDR" or len(upload) < start + 17:
            return None
        width, height, *kind = _PNG_HEADER.unpack_from(upload, start)
        mode = _PNG_MODES.get(tuple(kind))
        end = start + _PNG_HEADER.size
        if mode is None or not width or not height or upload[end : end + 4] != _checksum(upload[start - 4 : end]):
            return None
        parts = _parts_from(upload, end + 4)
        return None if parts is None else cls(upload, mode, (width, height), parts)

    def _decode(self) -> _imaging.ImagingCore | None:
        return self._run(_imaging.zip_decoder(self._mode, self._mode), b"".join(self._parts))

    def _decode_usually(self) -> _imaging.ImagingCore:
        with Image.open(UploadFile(self._upload), formats=["PNG"]) as image:
            return self._pixels_of(image)


def _parts_from(upload: bytes, position: int) -> list[bytes] | None:
    """Return the data of the chunks from a position on; None if there are other ones, no end, or too many."""
    parts: list[bytes] = []
    while position + CHUNK.size <= len(upload) and len(parts) < MAX_CHUNKS:
        length, name = CHUNK.unpack_from(upload, position)
        if name != b"IDAT":
            return parts if name == b"IEND" else None
        position += CHUNK.size
        parts.append(upload[position : position + length])
        position += length + CHECKSUM_BYTES
    return None


def pixels_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels of a picture in RGB or grey, with one call of Pillow's encoder.

    Returns:
        uint8 [height, width, 3], not writable.
    """
    image.load()
    width, height = image.size
    pixels = image.im if image.mode == "RGB" else image.im.convert("RGB", Image.Dither.NONE)
    encoder = _imaging.raw_encoder("RGB", "RGB")
    try:
        encoder.setimage(pixels, (0, 0, width, height))
        _, status, data = encoder.encode(3 * width * height + 4 * width)
    finally:
        encoder.cleanup()
    if status != _ENCODED or len(data) != 3 * width * height:
        return np.asarray(image.convert("RGB"))
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")
