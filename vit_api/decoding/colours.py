"""Converts pictures of any mode to the colours that the model takes. Knows nothing of sizes.

transformers' pipeline drops alpha and clips 16 bits; `to_rgb` does the same, bit for bit. `to_eye` gives what an
image viewer shows: 16 bits are scaled.
"""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding import tiff

Colour = tuple[int, int, int]

_COLOURS: dict[str, Colour | None] = {"none": None, "white": (255, 255, 255), "black": (0, 0, 0)}
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")


def parse_background(text: str) -> Colour | None:
    """Return the colour that shows through transparent pixels; None to drop alpha.

    Args:
        text: `none`, `white`, `black` or `#rrggbb`.

    Raises:
        ValueError: It is none of them.
    """
    if text in _COLOURS:
        return _COLOURS[text]
    if not _HEX.fullmatch(text):
        raise ValueError(f"Input should be none, white, black or #rrggbb. Got {text!r}.")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def has_transparency(image: Image.Image) -> bool:
    """Return whether a loaded picture may have transparent pixels."""
    return image.mode in _WITH_ALPHA or image.info.get("transparency") is not None


def to_eye(image: Image.Image, preprocessing: Preprocessing, background: Colour | None) -> Image.Image:
    """Convert a loaded picture to greyscale, RGB or, if alpha is still to be dropped or blended, RGBA.

    Resizing one channel and then repeating it gives the same pixels in a third of the time, and a resized picture with
    alpha on a background is the same as both in the other order.
    """
    if image.mode in _DEEP:
        image = _deep_to_grey(image)
    elif image.mode == "F":
        image = tiff.float_to_grey(image)
    if background is not None and has_transparency(image):
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode == "RGBA":
        return image
    if image.mode == "L" and image.info.get("transparency") is None:
        return image
    if image.mode == "1":
        return image.convert("L")
    return to_rgb(image, preprocessing)


def to_rgb(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Convert to RGB as transformers does: alpha is dropped; 16 bits are clipped or scaled as PIL does.

    The pipeline's own conversion drops alpha, but keeps the one transparent colour of a GIF or PNG beside the RGB
    pixels. A processor that converts once more (`do_convert_rgb`) then replaces that colour by white.
    """
    image.load()
    if not preprocessing.has_white_background:
        image.info.pop("transparency", None)  # otherwise PIL computes a transparent colour that is never used
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if rgb.info.get("transparency") is None:
        return rgb
    white = Image.new("RGBA", rgb.size, "white")
    return Image.alpha_composite(white, rgb.convert("RGBA")).convert("RGB")


def on_background(image: Image.Image, background: Colour) -> Image.Image:
    """Put a picture with alpha on a colour; others stay as they are."""
    if not has_transparency(image):
        return image
    picture = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", picture.size, background)
    flat.paste(picture, mask=picture.getchannel("A"))
    return flat


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """Keep the high byte of 16 bits, as PIL does for RGB; PIL would clip grey to white."""
    values = np.asarray(image)
    bits = tiff.bits_of(image)
    if bits == 16:
        high = 0 if values.dtype.byteorder == ">" else 1
        grey = np.ascontiguousarray(values.view(np.uint8)[:, high::2])
    else:
        grey = (values >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - grey if tiff.is_inverted(image) else grey)
