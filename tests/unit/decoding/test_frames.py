"""Several frames of a file: which are chosen, that each is what a viewer shows, and what bounds them together."""

from __future__ import annotations

import io
import itertools
import re
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.support.animations import FORMATS, animate, colourful
from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding import frames, image_limits
from vit_api.decoding.frame_times import FrameTimes
from vit_api.decoding.frames import FramePlan, choose, decode_frames, plan_frames
from vit_api.decoding.images import MAX_DECODE_BYTES, Decoding, decode
from vit_api.errors import BadImage, ImageTooLarge, UnsupportedImage, ViTError

_SQUARE = Preprocessing((48, 48), None, None, 2, 1 / 255, (0.5,) * 3, (0.5,) * 3)
_FAST = Decoding(exact=False, max_side=65_535, max_bytes=MAX_DECODE_BYTES, background=None)
_EXACT = Decoding(exact=True, max_side=65_535, max_bytes=MAX_DECODE_BYTES, background=None)


def planned(upload: bytes, count: int = 32, decoding: Decoding = _FAST) -> FramePlan:
    """Return the plan for a file that has several frames."""
    plan = plan_frames(upload, count, decoding)
    assert plan is not None
    return plan


def pixels_of(upload: bytes, count: int = 32, decoding: Decoding = _FAST) -> dict[int, NDArray[np.uint8]]:
    """Return the pixels of the chosen frames by their index."""
    plan = planned(upload, count, decoding)
    decoded = decode_frames(upload, plan, range(len(plan.frames)), _SQUARE, decoding)
    return {plan.frames[position].index: pixels for position, pixels in decoded}


def alone(picture: Image.Image, decoding: Decoding = _FAST) -> NDArray[np.uint8]:
    """Return the pixels of a picture in a file of its own."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return decode(file.getvalue(), _SQUARE, exact=decoding.exact)


def times_ms(upload: bytes, count: int = 32) -> list[float | None]:
    return [frame.time_ms for frame in planned(upload, count).frames]


@pytest.mark.parametrize("decoding", [pytest.param(_FAST, id="fast"), pytest.param(_EXACT, id="exact")])
@pytest.mark.parametrize("image_format", [*FORMATS, "HEIC"])
def test_each_frame_is_the_picture_that_was_saved(image_format: str, decoding: Decoding) -> None:
    """Whichever way the format composes its frames."""
    pictures = colourful(7)
    found = pixels_of(animate(pictures, image_format), decoding=decoding)
    assert list(found) == list(range(7))
    most = {"AVIF": 2, "HEIC": 8}.get(image_format, 0)  # these store the colours at half the resolution, or as YCbCr
    for index, pixels in found.items():
        difference = np.abs(pixels.astype(int) - alone(pictures[index], decoding))
        assert difference.mean() <= most


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        *[pytest.param("GIF", {"disposal": disposal}, id=f"gif-{disposal}") for disposal in range(4)],
        *[
            pytest.param("PNG", {"disposal": disposal, "blend": blend}, id=f"apng-{disposal}-{blend}")
            for disposal, blend in itertools.product(range(3), range(2))
        ],
        pytest.param("WEBP", {"kmin": 3, "kmax": 5}, id="webp-keyframes"),
        pytest.param("WEBP", {"minimize_size": True}, id="webp-small"),
    ],
)
def test_composition_does_not_depend_on_what_is_decoded(image_format: str, options: dict[str, Any]) -> None:
    """A frame has the same pixels whether those before it are wanted or not, as Pillow composes them."""
    pictures = colourful(9, mode="RGBA")
    for number, picture in enumerate(pictures):
        picture.paste((0, 0, 0, 0), (number * 5, 20, number * 5 + 12, 50))
    upload = animate(pictures, image_format, **options)
    plan = planned(upload)
    every = dict(decode_frames(upload, plan, range(9), _SQUARE, _EXACT))
    for position in range(9):
        (one,) = decode_frames(upload, plan, [position], _SQUARE, _EXACT)
        with Image.open(io.BytesIO(upload)) as image:
            image.seek(position)
            shown = image.convert("RGBA").convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
        assert np.array_equal(one[1], np.asarray(shown))
        assert np.array_equal(every[position], np.asarray(shown))


def test_frame_37_of_40_is_found_when_it_is_asked_for() -> None:
    """Of 32 frames evenly over 40, with the first and the last."""
    plan = planned(animate(colourful(40), "GIF"))
    chosen = [frame.index for frame in plan.frames]
    assert len(chosen) == 32
    assert (chosen[0], chosen[-1]) == (0, 39)
    assert 37 in chosen


@pytest.mark.parametrize("image_format", [*FORMATS, "HEIC"])
def test_a_short_animation_has_all_its_frames(image_format: str) -> None:
    """32 of a 5-frame animation are 5; pages have no time."""
    plan = planned(animate(colourful(5), image_format))
    is_document = image_format in ("TIFF", "HEIC")
    expected = [None] * 5 if is_document else [0.0, 50.0, 100.0, 150.0, 200.0]
    assert [frame.index for frame in plan.frames] == list(range(5))
    assert [frame.time_ms for frame in plan.frames] == expected


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_still_picture_has_no_plan(image_format: str) -> None:
    """It is classified as without `frames`."""
    file = io.BytesIO()
    colourful(1)[0].save(file, image_format)
    assert plan_frames(file.getvalue(), 32, _FAST) is None


def test_frames_are_even_over_the_duration_not_the_numbers() -> None:
    """A frame that is shown for long gets no more than its share of numbers, and those around it their moments."""
    upload = animate(colourful(20), "GIF", duration=[100] * 10 + [1000] * 10)
    chosen = [frame.index for frame in planned(upload, 5).frames]
    # The last frame begins at 10,000 ms; at 2,500 ms frame 11 is shown, at 5,000 ms frame 14, at 7,500 ms frame 16.
    assert chosen == [0, 11, 14, 16, 19]


@given(
    delays=st.lists(st.integers(11, 5_000), min_size=1, max_size=60),
    count=st.integers(2, 32),
    is_document=st.booleans(),
)
def test_the_choice_is_as_many_as_asked_for_in_order(delays: list[int], count: int, is_document: bool) -> None:
    """Distinct, with the first and the last."""
    starts = [float(start) for start in itertools.accumulate(delays[:-1], initial=0)]
    chosen = choose(FrameTimes((1, 1), range(len(delays)), None if is_document else starts), count)
    assert len(chosen) == min(count, len(delays))
    assert (chosen[0], chosen[-1]) == (0, len(delays) - 1)
    assert chosen == sorted(set(chosen))


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_a_delay_that_no_browser_keeps_counts_as_what_it_shows(image_format: str) -> None:
    """0 and 10 ms are shown for 100 ms."""
    assert times_ms(animate(colourful(4), image_format, duration=[0, 10, 20, 50])) == [0.0, 100.0, 200.0, 220.0]


def test_a_hidden_picture_of_an_apng_is_no_frame() -> None:
    """The picture for viewers that know no animations is what is classified without `frames`."""
    pictures = colourful(4)
    upload = animate(pictures, "PNG", default_image=True)
    found = pixels_of(upload)
    assert list(found) == [0, 1, 2]
    assert np.array_equal(found[0], alone(pictures[1]))
    assert np.array_equal(decode(upload, _SQUARE, exact=False), alone(pictures[0]))


def test_an_apng_that_declares_fewer_frames_than_it_has_hides_none() -> None:
    """The frames are counted, not believed."""
    upload = animate(colourful(6), "PNG")
    at = upload.index(b"acTL")
    control = b"acTL" + struct.pack(">II", 2, 0)
    lying = upload[:at] + control + zlib.crc32(control).to_bytes(4, "big") + upload[at + len(control) + 4 :]
    assert list(pixels_of(lying)) == list(range(6))


def test_thumbnails_and_masks_are_no_pages() -> None:
    """A TIFF's smaller copies of a page are not classified."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    pictures = colourful(3)
    for number, picture in enumerate(pictures):
        tags = ImageFileDirectory_v2()
        tags[254] = 1 if number == 1 else 0
        picture.encoderinfo = {"tiffinfo": tags}
    found = pixels_of(animate(pictures, "TIFF"))
    assert list(found) == [0, 1]
    assert np.array_equal(found[1], alone(pictures[2]))


def test_a_gif_without_trailer_is_read_to_its_last_frame() -> None:
    """As browsers do."""
    pictures = colourful(5)
    found = pixels_of(animate(pictures, "GIF").removesuffix(b";"))
    assert np.array_equal(found[4], alone(pictures[4]))


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_an_animation_that_is_cut_is_not_classified_in_part(
    image_format: str, share: float, noise: np.random.Generator
) -> None:
    """Its frames up to there would hide that the rest is missing."""
    pictures = [Image.fromarray(noise.integers(0, 256, (60, 80, 3), np.uint8)) for _ in range(7)]
    upload = animate(pictures, image_format)
    with pytest.raises(BadImage, match="corrupt or truncated"):
        pixels_of(upload[: int(len(upload) * share)])


def test_pages_may_differ_in_size_and_mode() -> None:
    """Each is decoded as a picture of its own."""
    pictures = [colourful(1)[0], colourful(1, (200, 30))[0].convert("L"), colourful(1, (31, 77))[0].convert("CMYK")]
    found = pixels_of(animate(pictures, "TIFF"))
    for index in (0, 1):
        assert np.array_equal(found[index], alone(pictures[index]))
    assert found[2].shape == (48, 48, 3)


def test_a_page_of_another_kind_is_named() -> None:
    """As in a file of its own."""
    pictures = [colourful(1)[0], Image.new("I", (40, 40), 7)]
    upload = animate(pictures, "TIFF")
    with pytest.raises(UnsupportedImage, match="TIFF"):
        pixels_of(upload)


def test_a_background_shows_through_each_frame() -> None:
    """As for a still picture."""
    pictures = [Image.new("RGBA", (40, 40), (0, 0, number * 50, 0)) for number in range(4)]
    white = Decoding(exact=False, max_side=100, max_bytes=MAX_DECODE_BYTES, background=(255, 255, 255))
    for pixels in pixels_of(animate(pictures, "PNG"), decoding=white).values():
        assert (pixels == 255).all()


def test_a_canvas_that_is_too_large_is_refused_before_any_frame() -> None:
    """Composing takes the canvas several times over."""
    upload = animate(colourful(3, (400, 300)), "GIF")
    with pytest.raises(ImageTooLarge, match="400 x 300"):
        plan_frames(upload, 3, Decoding(exact=False, max_side=65_535, max_bytes=2**20, background=None))
    with pytest.raises(ImageTooLarge, match="no side may be longer"):
        plan_frames(upload, 3, Decoding(exact=False, max_side=399, max_bytes=MAX_DECODE_BYTES, background=None))


def test_a_frame_that_extends_the_canvas_counts() -> None:
    """A later frame of a GIF may be far larger than the first."""
    upload = gif_of([(0, 0, 8, 8), (0, 0, 60_000, 60_000)])
    with pytest.raises(ImageTooLarge, match="60000 x 60000"):
        plan_frames(upload, 2, _FAST)


def gif_of(boxes: list[tuple[int, int, int, int]], *, disposal: int = 0, canvas: tuple[int, int] = (8, 8)) -> bytes:
    """Return a GIF of frames of one colour, by left, top, width and height."""
    control = b"!\xf9\x04" + bytes([disposal << 2]) + b"\x05\0\0\0"
    pixel = b"\x02\x02\x44\x01\0"  # LZW of one pixel; a larger frame is cut
    parts = [control + b"," + struct.pack("<HHHH", *box) + b"\0" + pixel for box in boxes]
    start = b"GIF89a" + struct.pack("<HH", *canvas) + b"\x80\0\0" + bytes([0, 0, 0, 255, 255, 255])
    return start + b"".join(parts) + b";"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        pytest.param(lambda: gif_of([(0, 0, 1, 1)] * 1_000_000), BadImage, id="gif of 1e6 tiny frames"),
        pytest.param(lambda: gif_of([(0, 0, 1, 1)] * 15_000, canvas=(4_000, 4_000)), ImageTooLarge, id="huge canvas"),
        pytest.param(lambda: gif_of([(0, 0, 1, 1)] * 300, canvas=(65_535, 65_535)), ImageTooLarge, id="largest canvas"),
        pytest.param(
            lambda: b"GIF89a" + bytes(7) + b"!\xfe" + b"\1 " * 2_000_000 + b"\0;", BadImage, id="gif of blocks"
        ),
    ],
)
def test_too_many_frames_are_refused_by_their_structure(make: Callable[[], bytes], error: type[ViTError]) -> None:
    """Within a fraction of the CPU time that decoding may take, and before any frame is decoded."""
    upload = make()
    began_s = time.thread_time()
    with pytest.raises(error):
        plan_frames(upload, 32, _FAST)
    assert time.thread_time() - began_s < image_limits.MAX_CPU_S


def test_ten_thousand_frames_are_read_within_the_bounds() -> None:
    """Small ones are classified; the plan's cost counts those in between."""
    upload = gif_of([(0, 0, 1, 1)] * 10_000)
    plan = planned(upload)
    assert [plan.frames[0].index, plan.frames[-1].index] == [0, 9_999]
    assert 1 < plan.cost.cpu_s <= image_limits.MAX_CPU_S
    assert len(pixels_of(upload)) == 32


def test_tiff_directories_in_a_circle_end() -> None:
    """A page is read once."""
    upload = bytearray(animate(colourful(2), "TIFF"))
    (first,) = struct.unpack_from("<L", upload, 4)
    (count,) = struct.unpack_from("<H", upload, first)
    (second,) = struct.unpack_from("<L", upload, first + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", upload, second)
    struct.pack_into("<L", upload, second + 2 + 12 * count, first)
    assert [frame.index for frame in planned(bytes(upload)).frames] == [0, 1]


def test_frames_that_take_too_much_cpu_time_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together have the time of one picture."""
    upload = animate(colourful(12), "GIF")
    plan = planned(upload)
    monkeypatch.setattr(frames, "MAX_CPU_S", -1.0)
    with pytest.raises(BadImage, match="too complex"):
        list(decode_frames(upload, plan, range(12), _SQUARE, _FAST))


def test_the_cost_counts_all_frames() -> None:
    """Also those that are only composed; of pages, those that are asked for."""
    ten, forty = (planned(animate(colourful(count), "GIF"), 4).cost for count in (10, 40))
    assert forty.cpu_s == pytest.approx(4 * ten.cpu_s)
    two, four = (planned(animate(colourful(40), "TIFF"), count).cost for count in (2, 4))
    assert four.cpu_s == pytest.approx(2 * two.cpu_s)


def test_a_decoder_that_is_closed_early_lets_the_next_one_in() -> None:
    """An AVIF holds the lock of its kind while it is decoded."""
    upload = animate(colourful(4), "AVIF")
    decoded = decode_frames(upload, planned(upload), range(4), _SQUARE, _FAST)
    next(decoded)
    decoded.close()
    assert len(pixels_of(upload)) == 4


_MUTATED = {name: animate(colourful(5, (24, 20)), name) for name in (*FORMATS, "HEIC")}


@given(st.data())
def test_a_mutated_animation_gives_frames_or_an_error_of_ours(data: st.DataObject) -> None:
    """Whatever is wrong with the file; its pixels have the model's size."""
    upload = bytearray(data.draw(st.sampled_from(sorted(_MUTATED)).map(_MUTATED.__getitem__)))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(upload) - 1))
        upload[at] = data.draw(st.sampled_from([0, 1, 127, 255, upload[at] ^ 1 << data.draw(st.integers(0, 7))]))
    mutated = bytes(upload[: data.draw(st.one_of(st.just(len(upload)), st.integers(1, len(upload))))])
    decoding = Decoding(exact=False, max_side=512, max_bytes=MAX_DECODE_BYTES, background=None)
    try:
        plan = plan_frames(mutated, 4, decoding)
        if plan is not None:
            for _, pixels in decode_frames(mutated, plan, range(len(plan.frames)), _SQUARE, decoding):
                assert pixels.shape == (48, 48, 3)
    except ViTError as error:
        assert re.search(r"\.$", error.message)


@pytest.mark.parametrize(
    "upload",
    [
        pytest.param(b"GIF89a", id="gif"),
        pytest.param(b"II*\0\xff\xff\xff\xff", id="tiff"),
        pytest.param(b"MM\0+\0\x08\0\0" + b"\xff" * 8, id="bigtiff"),
        pytest.param(b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0", id="webp"),
        pytest.param(b"\x89PNG\r\n\x1a\n\0\0\0\x08acTL", id="png"),
    ],
)
def test_a_file_of_a_few_bytes_is_corrupt(upload: bytes) -> None:
    """Whatever it begins to announce."""
    with pytest.raises(BadImage, match="corrupt or truncated"):
        plan_frames(upload, 32, _FAST)


def test_a_bigtiff_whose_offset_is_beyond_any_file_is_corrupt() -> None:
    """Also without frames: an offset of 64 bits is more than Python's buffers take."""
    with pytest.raises(BadImage, match="corrupt or truncated"):
        decode(b"MM\0+\0\x08\0\0" + b"\xff" * 8, _SQUARE, exact=False)
