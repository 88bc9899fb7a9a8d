"""No server: decode uploads with Pillow and run them in full batches, the limit of a server with Pillow's decoder.

One process per core. Reads lines `SECONDS BYTES` from standard input, each followed by an upload of that many bytes,
and prints the images/s of that many seconds. Argument: model.
"""

from __future__ import annotations

import sys
import time

from benchmarks.baselines.command_line import arguments, lit_api
from vit_api.lit_api import ViTAPI

_BATCH_SIZE = 32


def images_per_s(api: ViTAPI, upload: bytes, seconds: float) -> float:
    """Return the number of images decoded, classified and encoded per second."""
    images = 0
    start = time.monotonic()
    while (elapsed_s := time.monotonic() - start) < seconds:
        pixels = [api.decode_request(upload) for _ in range(_BATCH_SIZE)]
        for prediction in api.unbatch(api.predict(api.batch(pixels))):
            api.encode_response(prediction)
        images += _BATCH_SIZE
    return images / elapsed_s


if __name__ == "__main__":
    lit = lit_api(arguments(needs_port=False), max_batch_size=_BATCH_SIZE)
    lit.setup("cpu")
    print("ready", flush=True)
    while line := sys.stdin.buffer.readline():
        duration_s, size = line.split()
        print(images_per_s(lit, sys.stdin.buffer.read(int(size)), float(duration_s)), flush=True)
