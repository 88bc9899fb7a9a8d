"""Files built to burn memory or CPU time: small or within the upload's limit, and decoded within stated bounds.

Each is decoded in a process of its own, forked from one that has imported the decoder and nothing else, so that the
kernel's figures of its peak memory and CPU time are those of this file. Run as a module, this file is the process that
forks.
"""

from __future__ import annotations

import functools
import io
import json
import os
import resource
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from PIL import Image

from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding import image_limits, images
from vit_api.decoding.images import decode
from vit_api.errors import BadImage, ViTError

MAX_SIDE = 4096
MAX_UPLOAD_BYTES = 10 * 2**20
MAX_LARGE_UPLOAD_BYTES = 32 * 2**20
# What one image may take by default, and what the allocator adds.
MAX_GROWTH_MB = 360
# The slowest file here takes 1.4 s of CPU time, or what BURN_CPU_S lets it have.
MAX_CPU_S = 8
# Files that would burn any CPU time that there is get this much instead of image_limits.MAX_CPU_S.
BURN_CPU_S = 0.5
MODEL = Preprocessing(None, 256, (224, 224), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)

BAD, LARGE, UNSUPPORTED, EMPTY, PIXELS = "bad_image", "image_too_large", "unsupported_image", "empty_upload", "pixels"


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


@functools.cache
def small(image_format: str, **options: Any) -> bytes:
    return encode(Image.radial_gradient("L").resize((64, 64)).convert("RGB"), image_format, **options)


def huge(image_format: str, mode: str = "RGB", **options: Any) -> bytes:
    return encode(Image.new(mode, (MAX_SIDE, MAX_SIDE), 100), image_format, **options)


def lying_avif(side: int) -> bytes:
    """An AVIF whose container says 64 x 64 pixels."""
    true_size, told = (b"ispe" + struct.pack(">III", 0, length, length) for length in (side, 64))
    upload = encode(Image.new("L", (side, side), 100), "AVIF", speed=10)
    assert true_size in upload
    return upload.replace(true_size, told)


def heic(width: int, height: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new(mode, (width, height), (90, 100, 110))).save(file, quality=90)
    return file.getvalue()


def lying_heic(side: int) -> bytes:
    """A HEIC whose container says 64 x 64 pixels."""
    true_size, told = (b"ispe" + struct.pack(">III", 0, length, length) for length in (side, 64))
    upload = heic(side, side)
    assert true_size in upload
    return upload.replace(true_size, told)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(chunks: bytes) -> bytes:
    plain = small("PNG")
    return plain[:33] + chunks + plain[33:]


def filled(unit: bytes, limit: int = MAX_UPLOAD_BYTES - 10_000) -> bytes:
    """As many units as an upload may have."""
    return unit * (limit // len(unit))


def announced_png(width: int, height: int, pixels: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(segments: bytes) -> bytes:
    plain = small("JPEG")
    return plain[:2] + segments + plain[2:]


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    plain = huge("JPEG", "L", progressive=True)
    return plain[:-2] + plain[plain.rfind(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def directory(tags: list[tuple[int, int, int, int]], rest: bytes = b"") -> bytes:
    """A TIFF file of (tag, kind, count, value) and what follows them."""
    packed = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + packed + bytes(4) + rest


def tiff(tags: list[tuple[int, int, int, int]], rest: bytes, width: int = 64, height: int = 64) -> bytes:
    """A greyscale TIFF with more tags than it needs."""
    needed = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    return directory(sorted([*needed, *tags]), rest)


def sharing(kind: int, tags: int, size: int, first: int = 40_000) -> list[tuple[int, int, int, int]]:
    """Tags that all have the same bytes of the file, from 100,000 on."""
    return [(first + tag, kind, size // (8 if kind == 5 else 1), 100_000) for tag in range(tags)]


def tiled(side: int) -> bytes:
    data = zeros(2**28)
    offset = 14 + 12 * 10
    tags = [(259, 3, 1, 8), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, offset), (325, 4, 1, len(data))]
    return tiff(tags, data)


def nested_tiff() -> bytes:
    """A directory that is its own EXIF, GPS and interoperability directory, and the next page."""
    strip = [(259, 3, 1, 1), (273, 4, 1, 8), (278, 4, 1, 64), (279, 4, 1, 4096)]
    upload = tiff([*strip, (330, 4, 1, 8), (34665, 4, 1, 8), (34853, 4, 1, 8), (40965, 4, 1, 8)], bytes(8192))
    end = 10 + 12 * 13
    return upload[:end] + struct.pack("<L", 8) + upload[end + 4 :]


def gif(before: bytes = b"", width: int = 64, height: int = 64) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0, 0, 0) + before + frame


def webp(width: int, height: int) -> bytes:
    """An animation whose canvas is larger than its frame."""

    def three_bytes(value: int) -> bytes:
        return value.to_bytes(3, "little")

    picture = small("WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<LL", 10, 2) + three_bytes(width - 1) + three_bytes(height - 1)
    frame = bytes(6) + three_bytes(63) * 2 + b"\x64\0\0\0" + picture
    body = (
        b"WEBP" + canvas + b"ANIM" + struct.pack("<L", 6) + bytes(6) + b"ANMF" + struct.pack("<L", len(frame)) + frame
    )
    return b"RIFF" + struct.pack("<L", len(body)) + body


def bmp_runs(runs: bytes) -> bytes:
    header = struct.pack("<LllHHLLllLL", 40, MAX_SIDE, MAX_SIDE, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<LHHL", 0, 0, 0, 54 + 1024) + header + bytes(range(256)) * 4 + runs


def animation(image_format: str, frames: int = 2_000) -> bytes:
    pictures = [Image.new("L", (16, 16), index % 251) for index in range(frames)]
    return encode(pictures[0].convert("RGB"), image_format, save_all=True, append_images=pictures[1:], duration=20)


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("cat.jpg", small("JPEG"))
    return file.getvalue()


def exif_png(content: bytes) -> bytes:
    return png_with(png_chunk(b"eXIf", content))


LOADED = bytes(9_000_000)
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # Pictures that are large when decoded.
    "png of 60000 x 60000": (lambda: announced_png(60_000, 60_000, zeros(2**24)), LARGE),
    "png whose data goes on": (lambda: announced_png(64, 64, zeros(2**28)), PIXELS),
    "gif of 65535 x 65535": (lambda: b"GIF89a\xff\xff\xff\xff" + small("GIF")[10:], LARGE),
    "gif with a frame of 60000 x 60000": (lambda: gif(b"!\xf9\x04\x08\0\0\0\0", 60_000, 60_000), LARGE),
    "webp with a canvas of 16000 x 16000": (lambda: webp(16_000, 16_000), LARGE),
    "tiff of 60000 x 60000": (lambda: tiff([(259, 3, 1, 8), (273, 4, 1, 8)], zeros(2**24), 60_000, 60_000), LARGE),
    "tiff with a tile of 32768 x 32768": (lambda: tiled(32_768), BAD),
    "avif of the longest sides": (lambda: huge("AVIF", speed=10), PIXELS),
    "webp of the longest sides": (lambda: huge("WEBP", "RGBA", lossless=True, quality=0, method=0), PIXELS),
    "png of the longest sides": (lambda: huge("PNG", "RGBA", compress_level=1), PIXELS),
    "jpeg of the longest sides": (lambda: huge("JPEG", "CMYK", progressive=True), PIXELS),
    # Odd sizes.
    "1 x 1": (lambda: encode(Image.new("RGB", (1, 1)), "PNG"), PIXELS),
    "1 x 4096": (lambda: encode(Image.new("RGB", (1, 4096)), "WEBP"), PIXELS),
    "1 x 60000": (lambda: encode(Image.new("RGB", (1, 60_000)), "PNG"), LARGE),
    "60000 x 1": (lambda: encode(Image.new("RGB", (60_000, 1)), "JPEG"), LARGE),
    "0 x 64": (lambda: announced_png(0, 64), BAD),
    # Many frames, scans, chunks and segments.
    "gif of thousands of frames": (lambda: animation("GIF"), PIXELS),
    "png of thousands of frames": (lambda: animation("PNG"), PIXELS),
    "webp of thousands of frames": (lambda: animation("WEBP"), PIXELS),
    "tiff of thousands of pages": (lambda: animation("TIFF", 1_000), PIXELS),
    "avif of more pixels than it says": (lambda: lying_avif(6000), PIXELS),
    "avif of many frames": (lambda: animation("AVIF", 50), PIXELS),
    "jpeg of 80 more scans": (lambda: jpeg_of_scans(80), PIXELS),
    "heic of more pixels than it says": (lambda: lying_heic(6000), BAD),
    "jpeg of 80 scans without its end": (lambda: jpeg_of_scans(80)[:-2], BAD),
    "jpeg of 1000 more scans": (lambda: jpeg_of_scans(1_000), BAD),
    "jpeg of empty segments": (lambda: jpeg_with(filled(jpeg_segment(0xE0, b""))), BAD),
    "jpeg of EXIF in pieces": (lambda: jpeg_with(filled(jpeg_segment(0xE1, b"Exif\0\0a"))), BAD),
    # Metadata.
    "jpeg with a colour profile of 6 MB": (
        lambda: jpeg_with(
            b"".join(
                jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([part, 100]) + bytes(60_000)) for part in range(1, 101)
            )
        ),
        PIXELS,
    ),
    "jpeg with an index of fractions": (
        lambda: jpeg_with(
            jpeg_segment(0xE2, b"MPF\0" + directory([(t, 5, 7_000, 9_000) for t in range(500)], bytes(56_000)))
        ),
        PIXELS,
    ),
    "png with EXIF that repeats itself": (lambda: exif_png(filled(b"Exif\0\0")), PIXELS),
    "png with EXIF whose tags share": (lambda: exif_png(directory(sharing(7, 300, 8_000_000), LOADED)), PIXELS),
    "png turned by a million fractions": (lambda: exif_png(directory(sharing(5, 1, 8_000_000, 274), LOADED)), PIXELS),
    "png with a text of 8 MB": (lambda: png_with(png_chunk(b"tEXt", b"Comment\0" + LOADED)), PIXELS),
    "png with texts of 100 MB": (lambda: png_with(png_chunk(b"zTXt", b"a\0\0" + zeros(2**20)) * 100), PIXELS),
    "png of colour profiles": (lambda: png_with(filled(png_chunk(b"iCCP", b"p\0\0" + zeros(2**20)))), PIXELS),
    "png of empty chunks": (lambda: png_with(filled(png_chunk(b"teST", b""))), BAD),
    "png of empty data": (lambda: png_with(filled(png_chunk(b"IDAT", b""))), BAD),
    "png of texts that break off": (
        lambda: png_with(filled(png_chunk(b"zTXt", b"a\0\0" + zeros(2**20)[:-6] + b"broken"))),
        PIXELS,
    ),
    "png of EXIF in texts": (
        lambda: png_with(filled(png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros(2**19)))),
        PIXELS,
    ),
    "png of EXIF again and again": (
        lambda: png_with(filled(png_chunk(b"eXIf", directory([(274, 3, 1, 3)], bytes(400))))),
        PIXELS,
    ),
    "png with an international text of 16 MB": (
        lambda: png_with(png_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(2**24))),
        PIXELS,
    ),
    "tiff whose tags share": (lambda: tiff(sharing(7, 300, 8_000_000), LOADED), BAD),
    "tiff of 60000 tags": (lambda: directory([(tag, 3, 1, 0) for tag in range(60_000)]), BAD),
    "tiff of a million strips": (
        lambda: tiff([(259, 3, 1, 1), (273, 4, 1_000_000, 100_000), (278, 4, 1, 1)], LOADED),
        BAD,
    ),
    "tiff that contains itself": (nested_tiff, PIXELS),
    # Not what they are called.
    "zip": (archive, UNSUPPORTED),
    "html": (lambda: b"<html><img src='cat.jpg'></html>", UNSUPPORTED),
    "nothing": (lambda: b"", EMPTY),
    "png behind a jpeg's first bytes": (lambda: b"\xff\xd8\xff\xe0" + small("PNG"), BAD),
    "zip behind a png's first bytes": (lambda: b"\x89PNG\r\n\x1a\n" + archive(), BAD),
    "html behind a gif's first bytes": (lambda: b"GIF89a<script>alert(1)</script>", BAD),
    "zeros behind a tiff's first bytes": (lambda: b"II*\0" + LOADED, BAD),
}
BURNING: dict[str, Callable[[], bytes]] = {
    "gif with a comment in bytes": lambda: gif(b"!\xfe" + filled(b"\1a") + b"\0"),
    "gif with a comment in blocks": lambda: gif(b"!\xfe" + filled(b"\xff" + b"a" * 255) + b"\0"),
    "jpeg with 10 MB between segments": lambda: jpeg_with(jpeg_segment(0xE0, b"") + filled(b"\0")),
    "bmp of runs of no pixels": lambda: bmp_runs(filled(b"\0\0")),
}


# What the default limits allow that exact decoding within MAX_SIDE does not.
BY_DEFAULT = {"1 x 60000": PIXELS, "60000 x 1": PIXELS}

# The largest picture of each kind that is accepted by default, and a larger one.
LARGEST: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg of 108 megapixels": (lambda: encode(Image.new("RGB", (12_000, 9000), 100), "JPEG"), PIXELS),
    "progressive jpeg of 108 megapixels": (
        lambda: encode(Image.new("RGB", (12_000, 9000), 100), "JPEG", progressive=True),
        PIXELS,
    ),
    "progressive jpeg of 108 megapixels with full chroma": (
        lambda: encode(Image.new("RGB", (12_000, 9000), 100), "JPEG", progressive=True, subsampling=0),
        LARGE,
    ),
    "jpeg of 85 megapixels without its end": (
        lambda: encode(Image.new("RGB", (9200, 9200), 100), "JPEG")[:-2],
        PIXELS,
    ),
    "png of 64 megapixels": (lambda: encode(Image.new("RGB", (8000, 8000), 100), "PNG"), PIXELS),
    "png of 64 megapixels with alpha": (lambda: encode(Image.new("RGBA", (8000, 8000), 100), "PNG"), PIXELS),
    "png of 64 megapixels with a palette": (lambda: encode(Image.new("P", (8000, 8000), 100), "PNG"), PIXELS),
    "png of 57 megapixels of 16 bits": (lambda: encode(Image.new("I;16", (7550, 7550), 100), "PNG"), PIXELS),
    "png of 43 megapixels of grey and alpha": (lambda: encode(Image.new("LA", (6550, 6550), 100), "PNG"), PIXELS),
    "png of 100 megapixels": (lambda: encode(Image.new("RGB", (10_000, 10_000), 100), "PNG"), LARGE),
    "gif of 64 megapixels": (lambda: encode(Image.new("P", (8000, 8000), 100), "GIF"), PIXELS),
    "tiff of 64 megapixels": (
        lambda: encode(Image.new("RGB", (8000, 8000), 100), "TIFF", compression="tiff_lzw"),
        PIXELS,
    ),
    "tiff of 28 megapixels of floats": (
        lambda: encode(Image.new("F", (5300, 5300), 0.5), "TIFF", compression="tiff_lzw"),
        PIXELS,
    ),
    "bmp of 10 megapixels": (lambda: encode(Image.new("RGB", (3300, 3300), 100), "BMP"), PIXELS),
    "webp of 21 megapixels": (
        lambda: encode(Image.new("RGBA", (4640, 4640), 100), "WEBP", lossless=True, quality=0, method=0),
        PIXELS,
    ),
    "webp of 25 megapixels": (lambda: encode(Image.new("RGB", (5000, 5000), 100), "WEBP", method=0), LARGE),
    "avif of 20 megapixels": (lambda: encode(Image.new("RGBA", (4500, 4500), 100), "AVIF", speed=10), PIXELS),
    "avif of 20 megapixels, 4:4:4": (
        lambda: encode(Image.new("RGBA", (4500, 4500), 100), "AVIF", speed=10, subsampling="4:4:4"),
        PIXELS,
    ),
    "heic of 48 megapixels": (lambda: heic(8064, 6048), PIXELS),
    "heic of 60 megapixels": (lambda: heic(10_000, 6000), LARGE),
}


class Decoder:
    """The process that forks one for each file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "upload"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.decoding.test_hostile_images"],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def decode(self, upload: bytes, cpu_s: float = image_limits.MAX_CPU_S, *, exact: bool = True) -> str:
        """Return how the decoding ended, `pixels` or an error's code, once its memory and CPU time are checked."""
        assert len(upload) <= MAX_LARGE_UPLOAD_BYTES
        self._file.write_bytes(upload)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(self._file), cpu_s, exact]), file=self._process.stdin, flush=True)
        result = json.loads(self._process.stdout.readline())
        assert result["status"] == 0, result
        assert result["growth_mb"] < MAX_GROWTH_MB, result
        assert result["cpu_s"] < MAX_CPU_S, result
        outcome: str = result["outcome"]
        return outcome

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    running = Decoder(tmp_path_factory.mktemp("hostile"))
    yield running
    running.close()


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_costs_little(name: str, decoder: Decoder) -> None:
    """It gives pixels or the right error, within MAX_GROWTH_MB and MAX_CPU_S, by exact and by default decoding."""
    build, expected = FILES[name]
    upload = build()
    assert len(upload) <= MAX_UPLOAD_BYTES
    assert decoder.decode(upload) == expected
    assert decoder.decode(upload, exact=False) == BY_DEFAULT.get(name, expected)


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_picture_takes_no_more_memory_than_stated(name: str, decoder: Decoder) -> None:
    """Of each kind, by default; a larger one is refused."""
    build, expected = LARGEST[name]
    assert decoder.decode(build(), exact=False) == expected


@pytest.mark.parametrize("name", BURNING)
def test_a_file_that_burns_cpu_time_is_stopped(name: str, decoder: Decoder) -> None:
    """It is a bad image once the CPU time that a file may take is spent."""
    assert decoder.decode(BURNING[name](), BURN_CPU_S) == BAD


@pytest.mark.parametrize("name", ["tiff of 60000 tags", "tiff whose tags share", "tiff with a tile of 32768 x 32768"])
def test_a_file_that_is_too_complex_is_not_called_corrupt(name: str) -> None:
    """Its bytes may be just as the format has them."""
    build, _ = FILES[name]
    with pytest.raises(BadImage, match=r"The TIFF image is too complex: .*\.") as caught:
        decode(build(), MODEL, max_side=MAX_SIDE, exact=True)
    assert "corrupt" not in caught.value.message


def test_tags_that_share_a_little_are_read() -> None:
    """Real files' tags share their resolution; such EXIF still turns the picture."""
    plain = encode(Image.linear_gradient("L"), "PNG")
    exif = directory([(274, 3, 1, 3), (282, 5, 1, 50), (283, 5, 1, 50)], struct.pack("<LL", 72, 1))
    turned = plain[:33] + png_chunk(b"eXIf", exif) + plain[33:]
    pixels = [decode(upload, MODEL, max_side=MAX_SIDE, exact=True) for upload in (plain, turned)]
    assert (pixels[0] == pixels[1][::-1, ::-1]).all()
    assert (pixels[0] != pixels[1]).any()


def _decode_in_fork(path: str, cpu_s: float, exact: bool, results: int) -> None:
    upload = Path(path).read_bytes()
    resource.setrlimit(resource.RLIMIT_CPU, (4 * MAX_CPU_S, 4 * MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
    image_limits.MAX_CPU_S = cpu_s
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        max_side = MAX_SIDE if exact else 65_535
        pixels = decode(upload, MODEL, max_side=max_side, exact=exact)
        outcome = PIXELS if pixels.shape == MODEL.pixel_shape else str(pixels.shape)
    except ViTError as error:
        outcome = error.code
    os.write(results, json.dumps({"outcome": outcome, "before_kb": before_kb}).encode())


def _serve() -> None:
    """Decode the files that standard input names, each in a fork, and print what the kernel says of it."""
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _decode_in_fork(*json.loads(line), writing)
            finally:
                os._exit(0)
        os.close(writing)
        _, status, usage = os.wait4(child, 0)
        with os.fdopen(reading, "rb") as results:
            result = json.loads(results.read() or b'{"outcome": "no result", "before_kb": 0}')
        growth_mb = (usage.ru_maxrss - result.pop("before_kb")) / 1024
        print(
            json.dumps({**result, "status": status, "growth_mb": growth_mb, "cpu_s": usage.ru_utime + usage.ru_stime})
        )
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()


def small_png(size: tuple[int, int] = (28, 28), mode: str = "L", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("upload", "is_quick"),
    [
        pytest.param(small_png(), True, id="small"),
        pytest.param(small_png(mode="P"), True, id="palette"),
        pytest.param(small_png((128, 128), "RGBA"), True, id="the largest"),
        pytest.param(small_png((129, 128)), False, id="larger"),
        pytest.param(small_png((4000, 4000)), False, id="bomb"),
        pytest.param(small_png(icc_profile=b"profile"), False, id="colour profile"),
        pytest.param(small_png() + bytes(20_000), False, id="long"),
        pytest.param(small_png()[:-12], False, id="truncated"),
        pytest.param(small_png()[:20], False, id="no header"),
        pytest.param(b"GIF89a" + small_png(), False, id="another format"),
        pytest.param(b"", False, id="empty"),
    ],
)
def test_only_small_plain_pngs_are_quick(upload: bytes, is_quick: bool) -> None:
    """The event loop decodes what can't take long, whatever a hostile client puts into it."""
    assert image_limits.is_quick(upload) is is_quick


def test_a_png_with_compressed_text_is_not_quick() -> None:
    """A kilobyte of it becomes a megabyte."""
    start, end = small_png()[:33], small_png()[33:]
    data = b"key\0\0" + zlib.compress(bytes(1 << 20))
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    assert not image_limits.is_quick(start + chunk + end)


@pytest.mark.parametrize("upload", [pytest.param(small("AVIF"), id="avif"), pytest.param(heic(64, 64), id="heic")])
def test_files_that_may_lie_are_decoded_one_at_a_time(upload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the memory of several that lie about their size does not add up."""
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
