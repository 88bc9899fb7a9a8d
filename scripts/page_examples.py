"""Write the page's example images and their credits: `python -m scripts.page_examples`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from skimage import data

from scripts.train_digits import load_split, scan_to_image

FOLDER = Path(__file__).resolve().parent.parent / "vit_api" / "web" / "page" / "static" / "examples"

_DIGITS = (2, 3, 5, 7)
_DIGIT_SIZE = (160, 160)
_PHOTO_SIDE = 400
_JPEG_QUALITY = 80

_PHOTOS = {
    "cat": ("chelsea", "Stefan van der Walt", "CC0, by the photographer"),
    "coffee": ("coffee", "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0, by the photographer"),
    "rocket": (
        "rocket",
        "SpaceX, <https://www.flickr.com/photos/spacexphotos/16511594820/>",
        "public domain, by SpaceX",
    ),
}
"""By file name: scikit-image's name, the author and the licence, as documented in `skimage.data`."""

_DIGITS_CREDIT = (
    "| `digit-*.png` | scikit-learn's `load_digits`, enlarged | "
    "E. Alpaydin and C. Kaynak, <https://doi.org/10.24432/C50P49> | CC BY 4.0 |"
)
_CREDITS = """\
# Credits

| file | from | by | terms |
|---|---|---|---|
{photos}
{digits}

The photographs are scaled down. `python -m scripts.page_examples` writes this folder.
"""


def write_photos() -> None:
    """Write each photograph as a small JPEG."""
    for name, (source, _, _) in _PHOTOS.items():
        image = Image.fromarray(getattr(data, source)())
        image.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE), Image.Resampling.LANCZOS)
        image.save(FOLDER / f"{name}.jpg", quality=_JPEG_QUALITY, optimize=True, progressive=True)


def write_digits() -> None:
    """Write the first held-out scan of some digits."""
    split = load_split()
    for digit in _DIGITS:
        scan = split.held_out_scans[split.held_out_labels == digit][0]
        image = scan_to_image(scan).resize(_DIGIT_SIZE, Image.Resampling.BILINEAR)
        image.save(FOLDER / f"digit-{digit}.png", optimize=True)


def main() -> None:
    """Write the folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_photos()
    write_digits()
    rows = [
        f"| `{name}.jpg` | scikit-image's `data.{source}` | {whose} | {terms} |"
        for name, (source, whose, terms) in _PHOTOS.items()
    ]
    (FOLDER / "CREDITS.md").write_text(_CREDITS.format(photos="\n".join(rows), digits=_DIGITS_CREDIT), encoding="utf-8")


if __name__ == "__main__":
    main()
