"""The command `python -m vit_api quantize`: its arguments and its exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command's help is there without the packages that it needs
    import numpy as np
    from numpy.typing import NDArray

    from vit_api.checkpoints.checkpoint import Checkpoint
    from vit_api.quantization.quantizer import Result

_FAILED = 1
_MISUSED = 2
_CALIBRATION_IMAGES = 128
_MIN_JUDGED = 10
"""Fewer say nothing, whatever they agree on."""

_EPILOG = """\
The verdict is DIR/quantization.json. Of at least 1,128 images, 128 calibrate and 1,000 or more are judged: with fewer,
the verdict is "failed". Exit status: 0 if the gate is passed, 1 if not, 2 on a usage error. See docs/quantization.md.
"""


class _UsageError(Exception):
    """The command can't run as it was called; the message says why."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments to a parser's subcommands."""
    parser = commands.add_parser(
        "quantize",
        help="make an int8 or fp8 copy of a model",
        description="Make a copy of a model that the server runs with VIT_API_DTYPE=int8 or fp8, and judge it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="hub id, directory or `digits`")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="images like those to be classified")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write it; new, or empty")
    parser.add_argument("--dtype", choices=("int8", "fp8"), default="int8", help="precision (default: %(default)s)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="where it is to be served; without a GPU, what one computes is emulated (default: cpu for int8)",
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=_CALIBRATION_IMAGES,
        metavar="N",
        help="images that the ranges of activations on the CPU are taken from (default: %(default)s)",
    )
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    try:
        return _quantize(arguments)
    except _UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return _MISUSED


def _quantize(arguments: argparse.Namespace) -> int:
    device = arguments.device or ("cpu" if arguments.dtype == "int8" else "cuda")
    if (arguments.dtype, device) == ("fp8", "cpu"):
        raise _UsageError("fp8 is served on a GPU only: leave --device out, or choose --dtype int8.")
    if device == "cpu":
        _require_packages()
    # Not at the top: the other commands need none of this.
    from vit_api.checkpoints.checkpoint import CheckpointError, load_checkpoint
    from vit_api.logs import configure_logging

    out = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise _UsageError(f"The directory {out} is not empty. Name a new one.")
    files = _files(arguments.images)
    count = arguments.calibration_images if device == "cpu" else 0
    _check_number(arguments.images, len(files), count)
    try:
        checkpoint = load_checkpoint(arguments.model, arguments.revision)
    except CheckpointError as error:
        raise _UsageError(str(error)) from error
    configure_logging("info", "text")
    step = len(files) / max(1, count)
    chosen = {files[int(number * step)] for number in range(count)}
    others = [file for file in files if file not in chosen]
    result = _run(checkpoint, arguments.dtype, sorted(chosen), others, out)
    for sentence in _sentences(result):
        print(sentence)
    serve = "" if result.failures else f" Serve it: VIT_API_MODEL={out} VIT_API_DTYPE={arguments.dtype}"
    print(f"Written to {out}.{serve}")
    return _FAILED if result.failures else 0


def _require_packages() -> None:
    for package in ("openvino", "nncf"):
        if find_spec(package) is None:
            raise _UsageError(
                f"The package {package} is not installed. Install the extra: pip install 'vit-api[openvino]', or in a "
                "checkout pip install -r requirements-openvino.txt."
            )


def _check_number(folder: Path, files: int, calibrate: int) -> None:
    """Refuse too few images, which say nothing."""
    from vit_api.quantization.gate import MIN_IMAGES

    if calibrate < 0 or files < calibrate + _MIN_JUDGED:
        raise _UsageError(
            f"The directory {folder} has {files} files, too few to calibrate with {calibrate} and judge others: "
            f"{calibrate + MIN_IMAGES:,} images are needed to pass the gate. Add images, or lower --calibration-images."
        )


def _run(checkpoint: Checkpoint, dtype: str, calibration: Sequence[Path], judged: Sequence[Path], out: Path) -> Result:
    """Quantize for the CPU, with images to calibrate, or for CUDA, which needs none."""
    from vit_api.quantization.gate import MIN_IMAGES
    from vit_api.quantization.quantizer import Quantizer

    images = _Images(checkpoint)
    if calibration:
        decoded = list(images.decode(calibration))
        return Quantizer(checkpoint, decoded, lambda: images.decode(judged), MIN_IMAGES).run(out)
    from vit_api.quantization.scaled import ScaledQuantizer

    try:
        return ScaledQuantizer(checkpoint, dtype, lambda: images.decode(judged), MIN_IMAGES).run(out)
    except ValueError as error:
        raise _UsageError(str(error)) from error


def _sentences(result: Result) -> Iterator[str]:
    """Yield what is worth knowing of a result, a paragraph each."""
    from vit_api.quantization.speed import MIN_RATIO

    compared, speed = result.compared, result.speed
    yield (
        f"Judged on {compared.images} images: the top class is the same for {compared.top_1_agreement:.2%}, and where "
        f"the first two are apart for {compared.clear_top_1_agreement:.2%}; mean difference "
        f"{compared.mean_difference:.4f}, largest {compared.largest_difference:.3f}; {len(result.left_out)} layers "
        "left out."
    )
    yield " ".join(["The gate is failed.", *result.failures]) if result.failures else "The gate is passed."
    if speed is None:
        yield "The speed was not measured: there is no GPU here."
        return
    yield (
        f"In batches of {speed.batch_size}, the model alone does {speed.images_per_s:.1f} images/s here, and in "
        f"{speed.default_dtype} {speed.default_images_per_s:.1f}: {speed.ratio:.2f} times as many."
        + ("" if speed.is_worth_it else f" That is below {MIN_RATIO}: on this machine, it is not worth its rounding.")
    )


def _files(folder: Path) -> list[Path]:
    """Return the files in a folder at any depth, in order."""
    if not folder.is_dir():
        raise _UsageError(f"There is no directory {folder}.")
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


class _Images:
    """Decodes image files as the server does; says once which it can't read, and leaves them out."""

    def __init__(self, checkpoint: object) -> None:
        self._checkpoint = checkpoint
        self._reported: set[Path] = set()

    def decode(self, files: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
        from vit_api.checkpoints.checkpoint import Checkpoint
        from vit_api.decoding import images
        from vit_api.errors import ViTError

        assert isinstance(self._checkpoint, Checkpoint)
        for file in files:
            try:
                yield images.decode(file.read_bytes(), self._checkpoint.preprocessing, exact=False)
            except (OSError, ViTError) as error:
                if file not in self._reported:
                    self._reported.add(file)
                    print(f"{file}: not used: {error}", file=sys.stderr)
