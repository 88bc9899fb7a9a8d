"""Plain JPEGs and PNGs are decoded without Pillow's parser, to the same pixels."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support import samples
from vit_api.decoding import jpeg
from vit_api.decoding.image_limits import TooComplex
from vit_api.decoding.images import Decoding, open_upload
from vit_api.decoding.plain import MAX_BYTES, MAX_JPEG_BYTES, PlainJpeg, PlainPng, takes_jpeg


def _photo(size: tuple[int, int] = (157, 103), mode: str = "RGB", **options: Any) -> bytes:
    return samples.encode(samples.photos()["coffee"].resize(size).convert(mode), "JPEG", **options)


def _open_with_pillow(upload: bytes) -> Image.Image:
    return Image.open(io.BytesIO(upload), formats=["JPEG"])


def _open_plain(upload: bytes) -> PlainJpeg:
    header = jpeg.plain_header(upload)
    assert header is not None
    return PlainJpeg(upload, header, functools.partial(_open_with_pillow, upload))


def _open(upload: bytes) -> Image.Image:
    decoding = Decoding(exact=False, max_side=65_535, max_bytes=2**28, background=None)
    with open_upload(upload, "JPEG", decoding).image as image:
        return image


def _load(image: Image.Image, size: tuple[int, int] | None) -> tuple[Any, Any]:
    box = image.draft(None, size)
    image.load()
    return box, np.asarray(image)


def _assert_same(upload: bytes, size: tuple[int, int] | None) -> None:
    box, found = _load(_open_plain(upload), size)
    with _open_with_pillow(upload) as image:
        expected_box, expected = _load(image, size)
    assert box == expected_box
    np.testing.assert_array_equal(found, expected)


@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    target=st.none() | st.tuples(st.integers(1, 300), st.integers(1, 300)),
    mode=st.sampled_from(["RGB", "L"]),
    subsampling=st.integers(0, 2),
    quality=st.sampled_from([5, 75, 100]),
)
@settings(max_examples=60, deadline=None)
def test_any_size_and_scale_gives_the_pixels_of_pillow(
    size: Any, target: Any, mode: str, subsampling: int, quality: int
) -> None:
    """The size after scaling and the extent of the picture are the same, too."""
    _assert_same(_photo(size, mode, subsampling=subsampling, quality=quality), target)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"keep_rgb": True}, id="rgb"),
        pytest.param({"restart_marker_rows": 1}, id="restart markers"),
        pytest.param({"icc_profile": bytes(200_000)}, id="colour profile"),
        pytest.param({"comment": b"\xff\xd9" * 50}, id="comment with markers"),
        pytest.param({"optimize": True}, id="other Huffman tables"),
    ],
)
def test_other_contents_give_the_pixels_of_pillow(options: dict[str, Any]) -> None:
    """Colours without conversion, and segments beside the picture."""
    _assert_same(_photo(**options), None)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"progressive": True}, id="progressive"),
        pytest.param({"mode": "CMYK"}, id="cmyk"),
    ],
)
def test_other_kinds_are_left_to_pillow(options: dict[str, Any]) -> None:
    """Only one scan of grey or three colours is plain."""
    assert jpeg.plain_header(_photo(**options)) is None


def _with_second_frame(upload: bytes) -> bytes:
    start = upload.index(b"\xff\xc0")
    frame = upload[start : start + 2 + 17]
    return upload[:start] + frame + upload[start:]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda upload: upload[:1], id="one byte"),
        pytest.param(lambda upload: upload[: upload.index(b"\xff\xc0") + 6], id="no more than half a frame header"),
        pytest.param(lambda upload: upload[: upload.index(b"\xff\xda") + 4], id="no scan"),
        pytest.param(lambda upload: b"\n" + upload, id="bytes before the start"),
        pytest.param(lambda upload: upload[:2] + b"\xff" + upload[2:], id="fill byte"),
        pytest.param(lambda upload: upload[:2] + b"\0" + upload[2:], id="bytes between segments"),
        pytest.param(lambda upload: upload[:2] + b"\xff\xfe\0\0" + upload[2:], id="segment shorter than its length"),
        pytest.param(_with_second_frame, id="two frames"),
        pytest.param(lambda upload: upload.replace(b"\xff\xc0", b"\xff\xc9"), id="arithmetic coding"),
        pytest.param(lambda upload: upload.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), id="12 bits"),
    ],
)
def test_an_unusual_header_is_not_plain(change: Callable[[bytes], bytes]) -> None:
    """All that is not in the usual order is for the code that knows every case."""
    assert jpeg.plain_header(_photo()) is not None
    assert jpeg.plain_header(change(_photo())) is None


def test_a_long_file_without_its_end_is_left_to_pillow() -> None:
    """It would be decoded twice."""
    upload = _photo()
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)
    long = upload[:2] + comment * (MAX_BYTES // len(comment) + 1) + upload[2:]
    assert isinstance(_open(upload), PlainJpeg)
    assert isinstance(_open(long), PlainJpeg)
    assert not isinstance(_open(long[:-2]), PlainJpeg)
    assert not isinstance(_open(upload + bytes(MAX_BYTES)), PlainJpeg)


def test_a_long_file_of_too_many_pixels_is_left_to_pillow() -> None:
    """It would take seconds, and Pillow reads it piece by piece, within a limit of CPU time."""
    header = jpeg.PlainHeader((12_000, 10_000), 3, [])
    larger = jpeg.PlainHeader((12_000, 12_000), 3, [])
    upload = bytes(MAX_BYTES) + jpeg.END
    assert takes_jpeg(upload, header)
    assert not takes_jpeg(upload, larger)
    assert takes_jpeg(jpeg.END, larger)
    assert not takes_jpeg(bytes(MAX_JPEG_BYTES) + jpeg.END, header)


@pytest.mark.parametrize("size", [None, (30, 20)])
def test_a_file_without_its_end_is_completed(size: tuple[int, int] | None) -> None:
    """The decoder waits for the last marker, and the usual way adds it."""
    upload = _photo()
    box, found = _load(_open(upload[:-2]), size)
    expected_box, expected = _load(_open_with_pillow(upload), size)
    assert box == expected_box
    np.testing.assert_array_equal(found, expected)


def test_limits_hold_behind_a_plain_header() -> None:
    """What libjpeg does not accept at once is checked as any other file is."""
    upload = _photo()[: -len(jpeg.END)] + b"\xff\xda\0\2" * 200
    assert jpeg.plain_header(upload) is not None
    with pytest.raises(TooComplex):
        _open(upload).load()


def test_metadata_is_that_of_pillow() -> None:
    """EXIF data may turn a picture, so it must be the same; it is often in several segments."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 1000
    upload = _photo(exif=exif.tobytes(), xmp=b"<x/>")
    plain = _open_plain(upload)
    second = b"\xff\xe1" + (2 + 6 + 5).to_bytes(2, "big") + b"Exif\0\0" + b"12345"
    doubled = upload[:2] + second + upload[2:]
    with Image.open(io.BytesIO(upload)) as image, Image.open(io.BytesIO(doubled)) as image_of_doubled:
        assert plain.has_metadata
        assert plain.getexif()[0x0112] == 6
        for key in ("exif", "xmp"):
            assert plain.info[key] == image.info[key]
            assert _open_plain(doubled).info[key] == image_of_doubled.info[key]
    assert not _open_plain(_photo()).has_metadata


@given(changes=st.dictionaries(st.floats(0, 1, exclude_max=True), st.integers(0, 255), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_damage_has_the_consequences_that_it_has_in_pillow(changes: dict[float, int]) -> None:
    """A file that Pillow reads gives its pixels; one that its decoder refuses is refused."""
    damaged = bytearray(_photo((60, 40)))
    for where, value in changes.items():
        damaged[int(where * len(damaged))] = value
    upload = bytes(damaged)
    try:
        with _open_with_pillow(upload) as image:
            expected = np.asarray(image)
    except Exception:
        expected = None
    header = jpeg.plain_header(upload)
    if header is None:
        return
    try:
        plain = PlainJpeg(upload, header, functools.partial(_open_with_pillow, upload))
        plain.load()
        found = np.asarray(plain)
    except Exception:
        found = None
    if expected is not None:
        assert found is not None
        np.testing.assert_array_equal(found, expected)


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    mode=st.sampled_from(["RGB", "L", "RGBA"]),
    level=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_a_png_gives_the_pixels_of_pillow(size: Any, mode: str, level: int) -> None:
    """Of one part of data and of several."""
    picture = samples.photos()["coffee"].resize(size).convert(mode)
    upload = samples.encode(picture, "PNG", compress_level=level)
    plain = PlainPng.of(upload)
    assert plain is not None
    plain.load()
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(picture))


@pytest.mark.parametrize("mode", ["P", "1", "LA", "I;16"])
def test_other_pngs_are_left_to_pillow(mode: str) -> None:
    """Palettes, and samples of other sizes."""
    picture = samples.photos()["coffee"].convert("L").convert(mode)
    assert PlainPng.of(samples.encode(picture, "PNG")) is None


def test_a_transparent_colour_and_an_orientation_are_left_to_pillow() -> None:
    """They are in chunks that plain files don't have."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = samples.photos()["coffee"]
    for options in ({"exif": exif}, {"transparency": (1, 2, 3)}):
        assert PlainPng.of(samples.encode(picture, "PNG", **options)) is None


@given(changes=st.dictionaries(st.floats(0, 1, exclude_max=True), st.integers(0, 255), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_damage_to_a_png_has_the_consequences_that_it_has_in_pillow(changes: dict[float, int]) -> None:
    """The pixels are the same, or both refuse it."""
    damaged = bytearray(samples.encode(samples.photos()["coffee"].resize((30, 20)), "PNG"))
    for where, value in changes.items():
        damaged[int(where * len(damaged))] = value
    upload = bytes(damaged)
    plain = PlainPng.of(upload) if upload.startswith(b"\x89PNG\r\n\x1a\n") else None
    if plain is not None:
        assert _pixels(plain) == _pixels(io.BytesIO(upload))


def _pixels(source: Any) -> bytes | None:
    """Return the pixels of a picture or a file; None if it can't be read."""
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source, formats=["PNG"])
        image.load()
        return image.tobytes()
    except Exception:
        return None
