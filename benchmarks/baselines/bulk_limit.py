"""The limit of bulk classification: read files, decode them with our decoder, and run full batches. No row is written.

One process per core. Prints `ready`, and then, for each line of standard input, a folder and the process's share of its
files (`FIRST STEP FOLDER`), the seconds and the CPU seconds that they took. Argument: model.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

from benchmarks.baselines.command_line import arguments, lit_api
from vit_api.lit_api import ViTAPI

_BATCH_SIZE = 32


def classify(api: ViTAPI, files: list[Path]) -> None:
    """Decode and classify files, batch by batch."""
    names = iter(files)
    while batch := list(itertools.islice(names, _BATCH_SIZE)):
        pixels = [api.decode_request(file.read_bytes()) for file in batch]
        api.unbatch(api.predict(api.batch(pixels)))


def main() -> None:
    """Answer each line of standard input."""
    api = lit_api(arguments(needs_port=False, decoder="ours"), max_batch_size=_BATCH_SIZE)
    api.setup("cpu")
    print("ready", flush=True)
    while line := sys.stdin.readline().rstrip("\n"):
        first, step, folder = line.split(" ", 2)
        files = [Path(folder, name) for name in sorted(os.listdir(folder))[int(first) :: int(step)]]  # noqa: PTH208
        start, cpu_start = time.monotonic(), time.process_time()
        classify(api, files)
        print(time.monotonic() - start, time.process_time() - cpu_start, flush=True)


if __name__ == "__main__":
    main()
