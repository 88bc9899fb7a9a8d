"""Time and memory of the largest picture of each format that the server accepts by default.

    python -m benchmarks.worst_uploads

The pictures are one colour, so that they are small files: what they cost is decoding. Each is posted several times to
a server of its own, since an allocator keeps what it had: one HTTP process, one request after the other, without the
cache. The time is that of the whole request, in the median; the memory is how far the process's resident set is above
that of the idle one at its highest.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pillow_heif
from PIL import Image

from benchmarks.harness import command_line, process_group, results, servers, tables

_COLOUR = (200, 120, 40)
_MIB = 2**20
_KIB = 1024


def _encoded(size: tuple[int, int], image_format: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, _COLOUR).convert(mode).save(file, image_format, **options)
    return file.getvalue()


def _heic(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", size, _COLOUR)).save(file, quality=10, enc_params={"preset": "ultrafast"})
    return file.getvalue()


_WORST: dict[str, tuple[tuple[int, int], Callable[[tuple[int, int]], bytes]]] = {
    "baseline JPEG": ((20_000, 16_000), lambda size: _encoded(size, "JPEG", quality=50)),
    "progressive JPEG": ((12_000, 8_900), lambda size: _encoded(size, "JPEG", progressive=True)),
    "PNG": ((9300, 9300), lambda size: _encoded(size, "PNG", compress_level=1)),
    "GIF": ((8200, 8200), lambda size: _encoded(size, "GIF", "P")),
    "WebP": ((4500, 4700), lambda size: _encoded(size, "WEBP", method=0)),
    "AVIF": ((4500, 4400), lambda size: _encoded(size, "AVIF", speed=10, quality=10)),
    "HEIC": ((6900, 6900), _heic),
    "TIFF, deflate": ((9300, 9300), lambda size: _encoded(size, "TIFF", compression="tiff_adobe_deflate")),
    "BMP": ((3300, 3300), lambda size: _encoded(size, "BMP")),
}
"""By format: sides near the limit of memory, or for BMP that of the upload's size, and an encoder."""


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * _KIB


def _measure(upload: bytes, repeats: int) -> tuple[float, int]:
    """Return the median of the seconds that a request took, and by how much a process grew at most, in bytes."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(servers.vit_api(api_servers=1, cpu_threads=1, cache_size=0, request_timeout_s=300))
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=300, **servers.PLAIN_HTTP))
        client.post("/predict", content=_encoded((64, 64), "PNG")).raise_for_status()
        pids = process_group.living(server.group)
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
        before = {pid: _peak_bytes(pid) for pid in pids}
        seconds = []
        for _ in range(repeats):
            began_at = time.monotonic()
            client.post("/predict", content=upload).raise_for_status()
            seconds.append(time.monotonic() - began_at)
        return statistics.median(seconds), max(_peak_bytes(pid) - before[pid] for pid in pids)


def measure(formats: Sequence[str], repeats: int, share: float) -> dict[str, Any]:
    """Return the figures of each format.

    Args:
        formats: Names of formats.
        repeats: Requests with each upload.
        share: Part of the sides of the worst pictures.
    """
    found = {}
    for name in formats:
        sides, encode = _WORST[name]
        width, height = (int(side * share) for side in sides)
        upload = encode((width, height))
        seconds, grown_bytes = _measure(upload, repeats)
        found[name] = {
            "width": width,
            "height": height,
            "upload_bytes": len(upload),
            "seconds": round(seconds, 2),
            "grown_mib": round(grown_bytes / _MIB),
        }
    return {"repeats": repeats, "by_format": found}


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    rows = [
        (
            name,
            f"{one['width']:,} x {one['height']:,}",
            f"{one['width'] * one['height'] / 1e6:.0f}",
            f"{one['upload_bytes'] / _MIB:.2f}",
            one["seconds"],
            one["grown_mib"],
        )
        for name, one in report["result"]["by_format"].items()
    ]
    return tables.markdown(("format", "pixels", "megapixels", "upload (MiB)", "time (s)", "memory (MiB)"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("worst_uploads", __doc__)
    parser.add_argument("--repeats", type=int, default=3, help="requests with each upload (default: %(default)s)")
    parser.add_argument(
        "--share", type=float, default=1.0, help="part of the sides of the worst pictures (default: %(default)s)"
    )
    parser.add_argument("--only", action="append", choices=tuple(_WORST), help="a format; may be repeated")
    options = command_line.parse(parser, arguments)
    result = measure(options.only or tuple(_WORST), options.repeats, options.share)
    print(table({"result": result}))
    results.write(options.out, {"result": result})


if __name__ == "__main__":
    main()
