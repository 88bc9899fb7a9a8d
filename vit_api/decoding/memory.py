"""Estimates the memory that decoding a picture takes from its header, and rejects what exceeds the limit.

Knows no pixels. tests/unit/decoding/test_hostile_images.py decodes the largest picture of each kind that is accepted,
and checks the growth of the process.
"""

from __future__ import annotations

from vit_api.errors import ImageTooLarge

# Bytes per pixel at the peak, measured as the growth of a process: the decoder's own buffers, PIL's picture of 4 bytes
# per pixel for each mode with colours, and the copy of another mode. libwebp holds two frames, and PIL the picture
# twice; libavif and libheif hold the planes, which take two bytes per sample beyond 8 bits.
_BYTES_PER_PIXEL = {"WEBP": 17.0, "AVIF": 18.0, "HEIC": 7.5}
_BYTES_PER_PIXEL_OF_MODE = {
    "1": 2.0,
    "L": 1.2,
    "P": 5.3,
    "RGB": 4.2,
    "RGBA": 4.2,
    "RGBX": 4.2,
    "I;16": 6.3,
    "I;16B": 6.3,
    "F": 13.0,
}
_OTHER_MODES = 8.4
# transformers' order of work: the picture is turned, then converted, and the first one is held all along.
_EXACT = 12.6


def check_size(width: int, height: int, max_side: int) -> None:
    """Check the size that a file declares.

    Raises:
        ImageTooLarge: A side is longer than `max_side`.
    """
    if max(width, height) > max_side:
        raise ImageTooLarge(
            f"The image is {width} x {height} pixels, and no side may be longer than {max_side}. Scale it down."
        )


def picture_bytes(format_name: str, mode: str, size: tuple[int, int], *, exact: bool) -> int:
    """Return about how many bytes decoding a picture takes.

    Args:
        format_name: One of `formats.FORMATS`.
        mode: PIL's mode of the picture.
        size: Width and height that are decoded: of a JPEG, after its own scaling.
        exact: Whether it is decoded as transformers does.
    """
    per_pixel = _BYTES_PER_PIXEL.get(format_name) or _BYTES_PER_PIXEL_OF_MODE.get(mode, _OTHER_MODES)
    return int(size[0] * size[1] * (max(per_pixel, _EXACT) if exact else per_pixel))


def check_memory(size: tuple[int, int], needed_bytes: int, max_bytes: int) -> None:
    """Check what decoding takes.

    Raises:
        ImageTooLarge: It is more than `max_bytes`.
    """
    if needed_bytes > max_bytes:
        raise ImageTooLarge(
            f"The image is {size[0]} x {size[1]} pixels: decoding it takes {needed_bytes >> 20} MiB, and at most "
            f"{max_bytes >> 20} MiB are allowed. Scale it down."
        )
