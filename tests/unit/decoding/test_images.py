"""Exact decoding gives transformers' pixels bit for bit; any upload gives pixels or a ViTError."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor
from transformers.image_utils import load_image

from tests.support import samples
from tests.support.pictures import png_chunk
from tests.support.threads import run_in_threads
from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.checkpoints.processor_file import read_preprocessing
from vit_api.decoding import images
from vit_api.decoding.images import decode
from vit_api.errors import BadImage, EmptyUpload, ImageTooLarge, UnsupportedImage, ViTError

MAX_SIDE = 4096
SQUARE = Preprocessing((48, 48), None, None, 2, 1 / 255, (0.5,) * 3, (0.5,) * 3)
CROPPED = Preprocessing(None, 36, (32, 32), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


def pipeline_pixels(upload: bytes, folder: Path) -> npt.NDArray[np.uint8]:
    """Return the pixels that transformers' pipeline passes to its processor's rescaling."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with Image.open(io.BytesIO(upload)) as opened:
        image = load_image(opened)
    pixels = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
    assert pixels.dtype == np.uint8
    return np.transpose(pixels, (1, 2, 0))


@pytest.fixture
def processor_folder(tmp_path: Path) -> Any:
    """Return a function that writes a processor's files, and returns their folder and our settings read from them."""

    def write(kind: str, processor: dict[str, Any]) -> tuple[Path, Preprocessing]:
        (tmp_path / "config.json").write_text(AutoConfig.for_model(kind).to_json_string())
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        return tmp_path, read_preprocessing(processor, {"model_type": kind})

    return write


@pytest.mark.parametrize("name", sorted(samples.photos()))
@pytest.mark.parametrize("kind", samples.PROCESSORS)
def test_a_photo_gives_the_pixels_of_the_pipeline(kind: str, name: str, processor_folder: Any) -> None:
    """Resize, rounding and crop agree with each real model's processor."""
    folder, preprocessing = processor_folder(kind, samples.PROCESSORS[kind])
    upload = samples.encode(samples.photos()[name], "JPEG")
    pixels = decode(upload, preprocessing, max_side=MAX_SIDE, exact=True)
    assert pixels.shape == preprocessing.pixel_shape
    np.testing.assert_array_equal(pixels, pipeline_pixels(upload, folder))


@pytest.mark.parametrize("kind", samples.PROCESSORS)
def test_the_model_gets_the_inputs_of_the_pipeline(kind: str, processor_folder: Any) -> None:
    """With scale, mean and std applied, the pixels equal the processor's output."""
    folder, preprocessing = processor_folder(kind, samples.PROCESSORS[kind])
    upload = samples.encode(samples.photo())
    pixels = decode(upload, preprocessing, max_side=MAX_SIDE, exact=True)
    ours = (pixels * preprocessing.scale - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")(load_image(Image.open(io.BytesIO(upload))))
    np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs["pixel_values"][0], atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
@pytest.mark.parametrize("name", sorted(samples.image_files()))
def test_every_format_and_mode_gives_the_pixels_of_the_pipeline(name: str, kind: str, processor_folder: Any) -> None:
    """Palettes, alpha, CMYK, 16 bits, floats and first frames are treated as transformers treats them."""
    folder, preprocessing = processor_folder(kind, samples.small(samples.PROCESSORS[kind]))
    upload = samples.image_files()[name]
    pixels = decode(upload, preprocessing, max_side=MAX_SIDE, exact=True)
    with pytest.warns() if name == "png palette with alpha" else contextlib.nullcontext():
        expected = pipeline_pixels(upload, folder)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(orientation: int, image_format: str, processor_folder: Any) -> None:
    """All eight EXIF orientations are applied, in each format that has EXIF."""
    folder, preprocessing = processor_folder("dinov2", samples.small(samples.PROCESSORS["dinov2"]))
    upload = samples.encode(samples.photo(), image_format, exif=samples.orientation_exif(orientation))
    pixels = decode(upload, preprocessing, max_side=MAX_SIDE, exact=True)
    np.testing.assert_array_equal(pixels, pipeline_pixels(upload, folder))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (31, 33), (36, 36), (37, 200), (333, 36), (300, 7)])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="crop"),
        pytest.param({"crop_size": 51}, id="odd crop with a border"),
        pytest.param(
            {"size": {"shortest_edge": 33}, "crop_size": {"height": 40, "width": 31}}, id="border on one axis"
        ),
        pytest.param({"size": {"height": 30, "width": 45}, "crop_size": [33, 35]}, id="exact size, then crop"),
        pytest.param({"resample": 0}, id="nearest"),
        pytest.param({"resample": 1}, id="lanczos"),
    ],
)
def test_any_size_gives_the_pixels_of_the_pipeline(
    size: tuple[int, int], changes: dict[str, Any], processor_folder: Any
) -> None:
    """Rounding, odd remainders and black borders agree with the pipeline."""
    folder, preprocessing = processor_folder("dinov2", {**samples.small(samples.PROCESSORS["dinov2"]), **changes})
    upload = samples.encode(samples.photo(size))
    pixels = decode(upload, preprocessing, max_side=MAX_SIDE, exact=True)
    np.testing.assert_array_equal(pixels, pipeline_pixels(upload, folder))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("change", [{}, {"resample": 0}, {"crop": (48, 48)}], ids=["resize", "nearest", "same crop"])
def test_a_picture_of_the_model_s_size_is_taken_as_it_is(change: dict[str, Any], mode: str, image_format: str) -> None:
    preprocessing = replace(SQUARE, **change)
    upload = samples.encode(samples.photo((48, 48)).convert(mode), image_format)
    pixels = decode(upload, preprocessing, exact=False)
    with Image.open(io.BytesIO(upload)) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("change", [{"crop": (32, 32)}, {"first_crop": (0.75, 0.75)}], ids=["crop", "first crop"])
def test_a_picture_of_the_size_of_the_resize_is_still_cropped(change: dict[str, Any]) -> None:
    preprocessing = replace(SQUARE, **change)
    upload = samples.encode(samples.photo((48, 48)))
    fast, exact = (decode(upload, preprocessing, exact=exact).astype(int) for exact in (False, True))
    assert fast.shape == preprocessing.pixel_shape
    assert np.abs(fast - exact).mean() <= 4


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_a_picture_of_the_model_s_size_is_turned_by_its_exif_data(image_format: str) -> None:
    photo = samples.photo((48, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = (samples.encode(photo, image_format, **options) for options in ({"exif": exif}, {}))
    expected = np.rot90(decode(plain, SQUARE, exact=False), k=-1)
    np.testing.assert_array_equal(decode(turned, SQUARE, exact=False), expected)


@pytest.mark.parametrize("size", [(600, 2), (2, 600), (301, 1), (1, 301)])
@pytest.mark.parametrize("crop", [(32, 32), (41, 20)])
def test_only_the_cropped_part_of_a_strip_is_resized(
    size: tuple[int, int], crop: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the maximum resized side, pixels differ from those of a whole resize by at most 1."""
    preprocessing = Preprocessing(None, 36, crop, 3, 1.0, (0.0,) * 3, (1.0,) * 3)
    upload = samples.encode(samples.photo(size))
    whole = decode(upload, preprocessing, max_side=MAX_SIDE, exact=True).astype(int)
    monkeypatch.setattr(images, "_MAX_RESIZED_SIDE", 600)
    bounded = decode(upload, preprocessing, max_side=MAX_SIDE, exact=True).astype(int)
    assert bounded.shape == preprocessing.pixel_shape
    assert np.abs(bounded - whole).max() <= 1


def test_a_thin_strip_takes_little_memory() -> None:
    """An image of 1 x 8192 pixels would be 300,000 pixels long after a whole resize."""
    upload = samples.encode(Image.new("RGB", (8192, 1), "red"))
    pixels = decode(upload, CROPPED, max_side=8192, exact=False)
    assert (pixels == [255, 0, 0]).all()


def test_a_reduced_jpeg_stays_close_to_the_exact_one() -> None:
    """The differences that DRAFT_MARGIN was chosen by, on photos of 4 to 20 times the target size."""
    differences = []
    for image in samples.photos().values():
        upload = samples.encode(image, "JPEG", quality=92)
        for side in range(28, 110, 9):
            target = Preprocessing((side, side), None, None, 2, 1.0, (0.0,) * 3, (1.0,) * 3)
            exact = decode(upload, target, max_side=MAX_SIDE, exact=True).astype(int)
            reduced = decode(upload, target, max_side=MAX_SIDE, exact=False).astype(int)
            if (exact != reduced).any():
                differences.append(np.abs(exact - reduced))
    assert len(differences) > 20
    assert np.mean([difference.mean() for difference in differences]) < 0.4
    assert np.mean([np.percentile(difference, 99) for difference in differences]) < 2.5


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(333, 251), (251, 333)], ids=["wide", "tall"])
def test_a_reduced_jpeg_keeps_its_mode_and_its_orientation(size: Any, orientation: int, mode: str) -> None:
    """Sides not divisible by 8, in every orientation; a shift by one pixel would fail."""
    image = samples.photo(size).convert(mode)
    upload = samples.encode(image, "JPEG", quality=95, exif=samples.orientation_exif(orientation))
    preprocessing = Preprocessing(None, 36, (32, 32), 2, 1.0, (0.0,) * 3, (1.0,) * 3)
    exact = decode(upload, preprocessing, max_side=MAX_SIDE, exact=True).astype(int)
    reduced = decode(upload, preprocessing, max_side=MAX_SIDE, exact=False).astype(int)
    assert (exact != reduced).any()
    assert np.abs(exact - reduced).mean() < 1.0


@pytest.mark.parametrize("name", sorted(name for name in samples.image_files() if "16-bit" not in name))
def test_the_default_decoding_stays_close_to_the_exact_one(name: str) -> None:
    """Small images are decoded in full; only the rounding of the resize differs."""
    upload = samples.image_files()[name]
    fast = decode(upload, SQUARE, max_side=MAX_SIDE, exact=False).astype(int)
    exact = decode(upload, SQUARE, max_side=MAX_SIDE, exact=True).astype(int)
    assert np.abs(fast - exact).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", [(32, 32), (33, 31), (50, 20), (20, 51), (60, 61)])
@pytest.mark.parametrize("size", [(90, 61), (61, 90)], ids=["wide", "tall"])
def test_the_default_decoding_resizes_the_right_part(size: Any, crop: tuple[int, int], orientation: int) -> None:
    """It resizes the cropped part of the stored image, then rotates it; a shift by one pixel would fail."""
    preprocessing = Preprocessing(None, 37, crop, 2, 1.0, (0.0,) * 3, (1.0,) * 3)
    upload = samples.encode(samples.photo(size), exif=samples.orientation_exif(orientation))
    fast = decode(upload, preprocessing, max_side=MAX_SIDE, exact=False).astype(int)
    exact = decode(upload, preprocessing, max_side=MAX_SIDE, exact=True).astype(int)
    assert fast.shape == preprocessing.pixel_shape
    assert np.abs(fast - exact).max() <= 1


def test_an_mpo_is_decoded_like_a_jpeg() -> None:
    """Phones write JPEGs with several images, of which the first is used."""
    photo = samples.photos()["coffee"]
    upload = samples.encode(photo, "MPO", save_all=True, append_images=[samples.photo()])
    assert Image.open(io.BytesIO(upload)).format == "MPO"
    jpeg = samples.encode(photo, "JPEG")
    ours, plain = (decode(file, SQUARE, max_side=MAX_SIDE, exact=False).astype(int) for file in (upload, jpeg))
    assert np.abs(ours - plain).mean() < 1.0


def test_an_empty_upload_is_rejected() -> None:
    """An upload without bytes has its own error."""
    with pytest.raises(EmptyUpload):
        decode(b"", SQUARE, max_side=MAX_SIDE, exact=True)


@pytest.mark.parametrize(
    "upload",
    [
        pytest.param(b"\x00", id="one byte"),
        pytest.param(b"not an image at all, but a text of some length", id="text"),
        pytest.param(b"<!DOCTYPE html><html><body>404</body></html>", id="html"),
        pytest.param(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", id="pdf"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", id="eps"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(samples.encode(samples.photo((8, 8)), "PPM"), id="ppm"),
        pytest.param(samples.encode(samples.photo((8, 8)), "TGA"), id="tga"),
        pytest.param(samples.encode(samples.photo((32, 32)), "ICO"), id="ico"),
        pytest.param(samples.encode(samples.photo((8, 8)), "JPEG2000"), id="jpeg 2000"),
    ],
)
def test_other_formats_are_rejected(upload: bytes) -> None:
    """The message says what to send instead."""
    with pytest.raises(UnsupportedImage, match=r"AVIF|PNG|Send the (image|bytes)"):
        decode(upload, SQUARE, max_side=MAX_SIDE, exact=True)


@pytest.mark.parametrize("name", sorted(samples.image_files()))
def test_a_file_cut_to_its_signature_is_a_bad_image(name: str) -> None:
    """The message reveals no internals."""
    with pytest.raises(BadImage) as caught:
        decode(samples.image_files()[name][:24], SQUARE, max_side=MAX_SIDE, exact=True)
    assert "image is corrupt or truncated." in caught.value.message


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "png", "webp", "bmp", "tiff", "tiff lzw", "gif", "avif"])
def test_a_truncated_file_is_a_bad_image(name: str, exact: bool) -> None:
    """An image cut in half is rejected, not filled up."""
    upload = samples.image_files()[name]
    with pytest.raises(BadImage):
        decode(upload[: len(upload) // 2], SQUARE, max_side=MAX_SIDE, exact=exact)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"])
def test_an_image_too_large_is_rejected_with_its_size(name: str) -> None:
    """Sides up to the limit are accepted."""
    upload = samples.image_files()[name]
    assert decode(upload, SQUARE, max_side=120, exact=True).shape == (48, 48, 3)
    with pytest.raises(ImageTooLarge, match=r"120 x 90 pixels.* 119"):
        decode(upload, SQUARE, max_side=119, exact=True)


def test_size_is_checked_before_decoding() -> None:
    """A header that declares 4 gigapixels is rejected without any pixel data."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0))
    with pytest.raises(ImageTooLarge, match="65000 x 65000"):
        decode(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b""), SQUARE, max_side=MAX_SIDE, exact=True)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(b"zTXt", b"Comment\0\0", id="text"),
        pytest.param(b"iCCP", b"profile\0\0", id="colour profile"),
    ],
)
def test_a_bomb_in_the_metadata_is_skipped(kind: bytes, name: bytes) -> None:
    """Metadata that expands to 16 MiB is not decompressed."""
    chunk = png_chunk(kind, name + zlib.compress(bytes(1 << 24)))
    plain = samples.image_files()["png"]
    upload = plain[:33] + chunk + plain[33:]
    pixels = decode(upload, SQUARE, max_side=MAX_SIDE, exact=True)
    np.testing.assert_array_equal(pixels, decode(plain, SQUARE, max_side=MAX_SIDE, exact=True))


def test_unreadable_exif_is_ignored() -> None:
    """PIL's warning about EXIF with an invalid tag table is suppressed, and the image is served."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + struct.pack(">HHII", 0x010F, 2, 5000, 9000) + b"\0\x9a\0"
    upload = samples.encode(samples.photo(), "JPEG", exif=exif)
    plain = samples.encode(samples.photo(), "JPEG")
    with pytest.warns(UserWarning):
        Image.open(io.BytesIO(upload)).getexif()
    pixels = decode(upload, SQUARE, max_side=MAX_SIDE, exact=True)
    np.testing.assert_array_equal(pixels, decode(plain, SQUARE, max_side=MAX_SIDE, exact=True))


def test_running_out_of_memory_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MemoryError of PIL becomes a ViTError."""

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "_decode_exactly", fail)
    with pytest.raises(BadImage):
        decode(samples.image_files()["png"], SQUARE, max_side=MAX_SIDE, exact=True)


def test_threads_get_the_same_pixels() -> None:
    """Eight threads that decode every file at once agree with one thread."""
    expected = {name: decode(file, SQUARE, max_side=120, exact=True) for name, file in samples.image_files().items()}
    wrong: list[object] = []

    def work() -> None:
        for name, file in samples.image_files().items():
            try:
                if (decode(file, SQUARE, max_side=120, exact=True) != expected[name]).any():
                    wrong.append(name)
            except Exception as error:
                wrong.append((name, error))

    run_in_threads(work)
    assert wrong == []


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """Draw a real file with some bytes overwritten, truncated, or with a piece duplicated."""
    upload = bytearray(samples.image_files()[draw(st.sampled_from(sorted(samples.image_files())))])
    for _ in range(draw(st.integers(0, 8))):
        # Changes near the start, in headers and tables, have the most effect.
        end = draw(st.sampled_from([32, 256, len(upload)]))
        position = draw(st.integers(0, min(end, len(upload)) - 1))
        upload[position] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del upload[draw(st.integers(1, len(upload))) :]
    if draw(st.booleans()):
        start = draw(st.integers(0, len(upload)))
        upload[start:start] = upload[start : start + draw(st.integers(0, 64))]
    return bytes(upload)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(upload=mutated_files(), exact=st.booleans(), preprocessing=st.sampled_from([SQUARE, CROPPED]))
def test_corrupt_files_give_pixels_or_our_errors(upload: bytes, exact: bool, preprocessing: Any) -> None:
    """No other exception and no warning is raised."""
    try:
        pixels = decode(upload, preprocessing, max_side=512, exact=exact)
    except ViTError:
        return
    assert pixels.shape == preprocessing.pixel_shape
    assert pixels.dtype == np.uint8
