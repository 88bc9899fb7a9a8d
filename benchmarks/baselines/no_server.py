"""No server at all: decode uploads and run them in full batches, as the limit of what any server can do here.

A process for each core. For each line `SECONDS BYTES` on standard input, and the bytes after it, the images of so many
seconds are printed. Argument: model.
"""

from __future__ import annotations

import sys
import time

from benchmarks.baselines.command_line import arguments, lit_api
from vit_api.lit_api import ViTAPI

_BATCH_SIZE = 32


def images_per_s(api: ViTAPI, upload: bytes, seconds: float) -> float:
    """Return how many images were decoded, run and worded each second."""
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
