"""A process that decodes each file in a new fork and measures its peak memory and CPU time.

The parent has imported only the decoder, so that the kernel's figures are those of the file. Run as a module, this file
is the process that forks.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding import image_limits
from vit_api.decoding.images import decode
from vit_api.errors import ViTError

MAX_SIDE = 4096
PIXELS = "pixels"


MAX_LARGE_UPLOAD_BYTES = 32 * 2**20

# What one image may take by default, plus the allocator's overhead.
MAX_GROWTH_MB = 360

# Well above the slowest file's 1.4 s.
MAX_CPU_S = 8

MODEL = Preprocessing(None, 256, (224, 224), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


class Decoder:
    """The process that forks, as its parent sees it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "upload"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.decoding_process"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def decode(self, upload: bytes, cpu_s: float = image_limits.MAX_CPU_S, *, exact: bool = True) -> str:
        """Return `pixels` or the error's code, and check the memory and CPU time that the decoding took."""
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
    """Decode each file named on standard input in a fork, and print the kernel's figures of it."""
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
