"""Mutated real files give pixels or a ViTError; `make fuzz` tries many more of them than the suite."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import samples
from tests.support.pictures import heic
from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding import image_limits
from vit_api.decoding.images import decode
from vit_api.errors import BadImage, EmptyUpload, ImageTooLarge, UnsupportedImage

# The suite runs the same few examples each time; with FUZZ_EXAMPLES set, they are random.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 1_000,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
MAX_SIDE = 512
SQUARE = Preprocessing((48, 48), None, None, 2, 1 / 255, (0.5,) * 3, (0.5,) * 3)
CROPPED = Preprocessing(None, 36, (32, 32), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)
# Lengths, counts and offsets that break parsers, as two or four bytes in either byte order.
EDGES = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff\xff", b"\0\1", b"\1\0", b"\x80"]


FILES = {**samples.image_files(), "heic": heic(samples.photo())}
real_files = st.sampled_from(sorted(FILES)).map(FILES.__getitem__)


@st.composite
def positions(draw: st.DrawFn, upload: bytes) -> int:
    """Draw an offset in the file, more often near its start, where headers and tables are."""
    return draw(st.integers(0, min(draw(st.sampled_from([32, 512, len(upload)])), len(upload))))


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """Draw a real file and mutate it a few times."""
    upload = draw(real_files)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(positions(upload))
        kind = draw(st.sampled_from(["flip", "overwrite", "insert", "repeat", "drop", "truncate", "splice"]))
        if kind == "flip" and start < len(upload):
            upload = upload[:start] + bytes([upload[start] ^ 1 << draw(st.integers(0, 7))]) + upload[start + 1 :]
        elif kind == "overwrite":
            piece = draw(st.sampled_from(EDGES) | st.binary(min_size=1, max_size=8))
            upload = upload[:start] + piece + upload[start + len(piece) :]
        elif kind == "insert":
            upload = upload[:start] + draw(st.sampled_from(EDGES) | st.binary(max_size=64)) + upload[start:]
        elif kind == "repeat":
            piece = upload[start : start + draw(st.integers(1, 256))]
            upload = upload[:start] + piece * draw(st.integers(2, 16)) + upload[start:]
        elif kind == "drop":
            upload = upload[:start] + upload[start + draw(st.integers(1, 64)) :]
        elif kind == "truncate":
            upload = upload[: draw(st.integers(0, len(upload)))]
        elif kind == "splice":
            other = draw(real_files)
            upload = upload[:start] + other[draw(positions(other)) :]
    return upload


def check(upload: bytes, preprocessing: Preprocessing, *, exact: bool) -> None:
    image_limits.is_quick(upload)
    try:
        pixels = decode(upload, preprocessing, max_side=MAX_SIDE, exact=exact)
    except (BadImage, EmptyUpload, ImageTooLarge, UnsupportedImage):
        return
    assert pixels.shape == preprocessing.pixel_shape
    assert pixels.dtype == np.uint8


@FUZZ
@given(upload=mutated_files(), exact=st.booleans(), preprocessing=st.sampled_from([SQUARE, CROPPED]))
def test_mutated_files_give_pixels_or_our_errors(upload: bytes, exact: bool, preprocessing: Preprocessing) -> None:
    """Bits are flipped, bytes overwritten, inserted, repeated, dropped or cut off, and two files spliced."""
    check(upload, preprocessing, exact=exact)


@pytest.mark.parametrize("name", sorted(FILES))
def test_truncated_files_give_pixels_or_our_errors(name: str) -> None:
    """Files are cut at every length of the header and at 48 lengths of the rest."""
    upload = FILES[name]
    step = 1 if EXAMPLES else len(upload) // 48
    for length in [*range(min(48, len(upload))), *range(48, len(upload), step)]:
        check(upload[:length], SQUARE, exact=True)
