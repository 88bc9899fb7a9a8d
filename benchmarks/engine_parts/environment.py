"""What the benchmarks that need OpenVINO share: the environment that has it, and images to calibrate with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import machine

Pixels = NDArray[np.uint8]

_PYTHON = machine.ROOT / ".venv-openvino" / "bin" / "python"


def crops(count: int) -> list[Pixels]:
    """Return crops of photos, uint8 [224, 224, 3]; the same ones each time."""
    from benchmarks.resizing import sample_photos

    random, photos = np.random.default_rng(0), sample_photos()
    found = []
    for _ in range(count):
        photo = photos[random.integers(len(photos))]
        side = int(random.integers(64, min(photo.size)))
        left, top = (int(random.integers(extent - side + 1)) for extent in photo.size)
        found.append(np.asarray(photo.crop((left, top, left + side, top + side)).resize((224, 224))))
    return found


def require_packages(benchmark: str, arguments: Sequence[str] | None) -> None:
    """Go on in the environment that has the engines, unless this one has; exit with an error if there is none.

    Args:
        benchmark: The name of the benchmark that runs.
        arguments: Its command line; None for that of the process.
    """
    if find_spec("openvino") is not None:
        return
    if not _PYTHON.exists():
        sys.exit("OpenVINO is not installed in .venv-openvino: run `make openvino`.")
    given = sys.argv[1:] if arguments is None else arguments
    command = [str(_PYTHON), "-m", f"benchmarks.{benchmark}", *given]
    sys.exit(subprocess.run(command, cwd=machine.ROOT, check=False).returncode)
