"""Files built to exhaust memory or CPU time are decoded or rejected within bounds."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.support.decoding_process import MAX_SIDE, MODEL, Decoder
from tests.support.hostile_files import (
    BAD,
    BURNING,
    BY_DEFAULT,
    FILES,
    LARGEST,
    MAX_UPLOAD_BYTES,
    directory,
    encode,
    heic,
    small,
)
from tests.support.pictures import png_chunk
from vit_api.decoding import images
from vit_api.decoding.images import decode
from vit_api.errors import BadImage

# The limit on CPU time for files that would use any amount, instead of image_limits.MAX_CPU_S.
BURN_CPU_S = 0.5


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    running = Decoder(tmp_path_factory.mktemp("hostile"))
    yield running
    running.close()


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_decoded_within_bounds(name: str, decoder: Decoder) -> None:
    """It gives pixels or the right error within MAX_GROWTH_MB and MAX_CPU_S, in exact and in default decoding."""
    build, expected = FILES[name]
    upload = build()
    assert len(upload) <= MAX_UPLOAD_BYTES
    assert decoder.decode(upload) == expected
    assert decoder.decode(upload, exact=False) == BY_DEFAULT.get(name, expected)


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_image_stays_within_the_memory_limit(name: str, decoder: Decoder) -> None:
    """The largest image of each kind is accepted by default, and a larger one is rejected."""
    build, expected = LARGEST[name]
    assert decoder.decode(build(), exact=False) == expected


@pytest.mark.parametrize("name", BURNING)
def test_decoding_stops_at_the_cpu_limit(name: str, decoder: Decoder) -> None:
    """A file that exceeds the CPU time limit is a bad image."""
    assert decoder.decode(BURNING[name](), BURN_CPU_S) == BAD


@pytest.mark.parametrize(
    "name", ["tiff of 60000 tags", "tiff whose tags share data", "tiff with a tile of 32768 x 32768"]
)
def test_a_file_that_is_too_complex_is_not_called_corrupt(name: str) -> None:
    """It may be valid, so the message says that it is too complex."""
    build, _ = FILES[name]
    with pytest.raises(BadImage, match=r"The TIFF image is too complex: .*\.") as caught:
        decode(build(), MODEL, max_side=MAX_SIDE, exact=True)
    assert "corrupt" not in caught.value.message


def test_tags_that_share_few_bytes_are_read() -> None:
    """In real files, the resolution tags share a value; the orientation of such EXIF is applied."""
    plain = encode(Image.linear_gradient("L"), "PNG")
    exif = directory([(274, 3, 1, 3), (282, 5, 1, 50), (283, 5, 1, 50)], struct.pack("<LL", 72, 1))
    turned = plain[:33] + png_chunk(b"eXIf", exif) + plain[33:]
    pixels = [decode(upload, MODEL, max_side=MAX_SIDE, exact=True) for upload in (plain, turned)]
    assert (pixels[0] == pixels[1][::-1, ::-1]).all()
    assert (pixels[0] != pixels[1]).any()


@pytest.mark.parametrize("upload", [pytest.param(small("AVIF"), id="avif"), pytest.param(heic(64, 64), id="heic")])
def test_avif_and_heic_are_decoded_one_at_a_time(upload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can misstate their size, so that the memory of several must not add up."""
    busy, most = 0, 0
    both_started = threading.Barrier(2)
    check_size = images.check_size

    def slow_check(width: int, height: int, max_side: int) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        check_size(width, height, max_side)
        busy -= 1

    def run(upload: bytes) -> None:
        both_started.wait(30)
        for _ in range(20):
            decode(upload, MODEL, max_side=MAX_SIDE, exact=True)

    monkeypatch.setattr(images, "check_size", slow_check)
    threads = [threading.Thread(target=run, args=(upload,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1
