"""Converts pictures of any mode to the colours that the model takes. Knows nothing of files and sizes."""

from __future__ import annotations

from PIL import Image

from vit_api.checkpoints.preprocessing import Preprocessing


def to_grey_or_rgb(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Convert to greyscale or RGB, as a person sees it.

    Resizing one channel and then repeating it gives the same pixels in a third of the time.
    """
    image.load()
    if image.mode in ("1", "L") and not (preprocessing.has_white_background and "transparency" in image.info):
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
