"""Decodes a plain JPEG, whose header has been read, with one call of Pillow's decoder.

Pillow reads the header in Python, segment by segment, and feeds the decoder in pieces: about 500 calls for a picture.
Here `jpeg.read_structure` has already found what the decoder needs. What it does not accept is opened by Pillow in the
usual way, which then says what is wrong. Knows nothing of the model's input.
"""

from __future__ import annotations

from PIL import Image, _imaging

from vit_api.decoding.image_limits import UploadFile
from vit_api.decoding.jpeg import JpegStructure

MAX_BYTES = 2 * 2**20
"""Pillow reads longer files piece by piece, which bounds the CPU time; see `UploadFile`."""

_MODES = {1: "L", 3: "RGB"}
_SCALES = (8, 4, 2)
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


class PlainJpeg(Image.Image):
    """A picture that is decoded when it is loaded, as Pillow's `JpegImageFile`, pixel for pixel.

    Args:
        upload: The file.
        structure: What its header says; `is_plain`.
    """

    def __init__(self, upload: bytes, structure: JpegStructure) -> None:
        super().__init__()
        self._upload = upload
        self._mode = _MODES[structure.components]
        self._size = structure.size
        self._draft_size: tuple[int, int] | None = None
        self._scale = 1
        for segment in structure.metadata:
            self._add_metadata(segment)

    @classmethod
    def takes(cls, upload: bytes, structure: JpegStructure) -> bool:
        """Return whether a file is plain and short."""
        return structure.is_plain and len(upload) <= MAX_BYTES and upload.startswith(b"\xff\xd8")

    @property
    def has_metadata(self) -> bool:
        """Whether it has EXIF data or XMP, which may turn it."""
        return bool(self.info)

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

    def load(self) -> _imaging.PixelAccess | None:
        """Decode it, unless it is decoded."""
        if self._im is None:
            self._im = self._decode() or self._decode_usually()
            self._upload = b""
        return None

    def _decode(self) -> _imaging.ImagingCore | None:
        """Return the pixels; None if the decoder does not finish with the last byte, or does not accept the file."""
        pixels = _imaging.new(self._mode, self._size)
        decoder = _imaging.jpeg_decoder(self._mode, self._mode, "", self._scale, 0)
        decoder.setimage(pixels, (0, 0, *self._size))
        try:
            consumed, error = decoder.decode(self._upload)
        finally:
            decoder.cleanup()
        return pixels if consumed < 0 and error >= 0 else None

    def _decode_usually(self) -> _imaging.ImagingCore:
        with Image.open(UploadFile(self._upload), formats=["JPEG"]) as image:
            image.draft(None, self._draft_size)
            image.load()
            if image.mode != self._mode or image.size != self._size:
                raise ValueError("The decoder found another picture than the header's.")
            return image.im

    def _add_metadata(self, segment: bytes) -> None:
        """Keep the contents of an APP1 segment as Pillow does."""
        if segment.startswith(_EXIF):
            self.info["exif"] = self.info["exif"] + segment[len(_EXIF) :] if "exif" in self.info else segment
        elif segment.startswith(_XMP):
            self.info["xmp"] = segment.split(b"\0", 1)[1]
