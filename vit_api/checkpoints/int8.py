"""Int8 checkpoints: a checkpoint's folder with a quantized network, and the verdict on it.

`python -m vit_api quantize` writes them. The verdict names the SHA-256 of every file that it holds for: what was judged
is what is served. Must not know how a network is quantized or run, and never imports torch or OpenVINO.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vit_api.checkpoints.checkpoint import PROCESSOR_FILES, Checkpoint, CheckpointError
from vit_api.checkpoints.weights import weight_files
from vit_api.environment.cpu_flags import has_vnni

INT8 = "int8"
"""The dtype, as in VIT_API_DTYPE."""
FP8 = "fp8"
SCALED_DTYPES = (INT8, FP8)
"""Those that run on CUDA, where the weights are rounded when they are loaded."""
VERDICT = "quantization.json"
CPU, CUDA = "cpu", "cuda"
"""What a verdict is for: OpenVINO on the CPU, or torch's kernels on CUDA."""
PASSED, FAILED = "passed", "failed"
QUANTIZATION_CONFIG = {"quant_method": "openvino", "bits": 8, "verdict": VERDICT}
"""In the config.json of an int8 checkpoint, where transformers looks for it. transformers knows no such method, warns,
and loads model.safetensors, whose weights are the original ones."""

_NETWORK = ("openvino_model.xml", "openvino_model.bin")
_PACKAGE = "openvino"


def model_file(folder: Path) -> Path:
    """Return the file of the quantized network in a folder; its weights are in a second file beside it."""
    return folder / _NETWORK[0]


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a verdict is about, by name.

    The configuration and the processor's are among them: the labels' number and the normalisation are in the network.
    """
    names = [*_NETWORK, "config.json", *PROCESSOR_FILES, *weight_files(folder)]
    found = {}
    for name in names:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_verdict(folder: Path, failures: Sequence[str], described: Mapping[str, Any]) -> None:
    """Write the verdict on a folder's quantized network.

    Args:
        folder: The checkpoint's folder, complete.
        failures: Why the network does not pass the gate; empty if it does.
        described: What else is worth knowing: figures, versions.
    """
    content = {"verdict": FAILED if failures else PASSED, "failures": list(failures), **described}
    part = folder / f"{VERDICT}.part"
    part.write_text(json.dumps(content | {"sha256": digests(folder)}, indent=1) + "\n")
    part.replace(folder / VERDICT)


def check_openvino() -> None:
    """Raise CheckpointError unless OpenVINO is installed."""
    if find_spec(_PACKAGE) is None:
        raise CheckpointError(
            "The package openvino is not installed, which int8 models and the engine openvino run in. "
            "Install the extra: pip install 'vit-api[openvino]', or in a checkout pip install -r "
            "requirements-openvino.txt."
        )


def identity_of(checkpoint: Checkpoint, dtype: str | None) -> str:
    """Return what identifies a checkpoint's answers: `Checkpoint.identity`, or in int8 and fp8 its files' SHA-256."""
    if dtype not in SCALED_DTYPES:
        return checkpoint.identity()
    return hashlib.sha256(json.dumps([dtype, digests(checkpoint.path)], sort_keys=True).encode()).hexdigest()


def check_served(
    checkpoint: Checkpoint, dtype: str | None, engine: str, devices: Sequence[str], *, allow_unverified: bool
) -> str | None:
    """Check that a checkpoint can be served in this dtype by this engine, as far as OpenVINO, int8 and fp8 go.

    Args:
        checkpoint: The checkpoint.
        dtype: As in VIT_API_DTYPE.
        engine: As in VIT_API_ENGINE.
        devices: torch's names of the devices; if there are none, the one that the verdict is for.
        allow_unverified: See `check_quantized`.

    Returns:
        A warning, or None.

    Raises:
        CheckpointError: It can't.
    """
    if dtype not in SCALED_DTYPES and engine != _PACKAGE:
        return None
    on_cuda = any(device != CPU for device in devices) or (not devices and dtype == FP8)
    if engine == _PACKAGE and on_cuda:
        raise CheckpointError(
            "The engine openvino runs on the CPU only. Set VIT_API_DEVICE=cpu, or another dtype or engine."
        )
    if dtype == FP8 and not on_cuda:
        raise CheckpointError("A model in fp8 runs on a GPU only, and there is none here. Set another dtype.")
    if not on_cuda:
        check_openvino()
    if dtype not in SCALED_DTYPES:
        return None
    return check_quantized(checkpoint, str(dtype), CUDA if on_cuda else CPU, allow_unverified=allow_unverified)


def check_quantized(
    checkpoint: Checkpoint, dtype: str = INT8, device: str = CPU, *, allow_unverified: bool = False
) -> str | None:
    """Check that a checkpoint can be served in int8 or fp8, and may be.

    Args:
        checkpoint: The checkpoint.
        dtype: `INT8` or `FP8`.
        device: `CPU` or `CUDA`.
        allow_unverified: Serve it, though the verdict on it is missing, "failed", or on other files.

    Returns:
        A warning, if it is served for `allow_unverified` alone, or is hardly faster in int8; else None.

    Raises:
        CheckpointError: It has no quantized network, or must not be served.
    """
    missing = [name for name in _NETWORK if not (checkpoint.path / name).is_file()]
    verdict = _read_verdict(checkpoint.path)
    if device == CPU and missing:
        raise CheckpointError(
            f"The model {checkpoint.name!r} can't be used in int8: it has no {missing[0]}. Make an int8 copy of it "
            "with python -m vit_api quantize, or set another dtype."
        )
    problem = verdict if isinstance(verdict, str) else _problem(checkpoint.path, verdict, dtype, device)
    if problem is None:
        assert not isinstance(verdict, str)
        return _slowness(checkpoint.name, dtype, verdict)
    if not allow_unverified:
        raise CheckpointError(
            f"The model {checkpoint.name!r} can't be used in {dtype}: {problem} Quantize it again, set another dtype, "
            "or accept it with VIT_API_ALLOW_UNVERIFIED_INT8=1."
        )
    return f"The model {checkpoint.name!r} is served in {dtype} without a valid verdict: {problem}"


def _read_verdict(folder: Path) -> dict[str, Any] | str:
    """Return the verdict on a folder, or what is wrong with its file, as a sentence."""
    try:
        verdict = json.loads((folder / VERDICT).read_bytes())
        return dict(verdict) | {"sha256": dict(verdict["sha256"]), "failures": list(verdict["failures"])}
    except FileNotFoundError:
        return f"it has no verdict ({VERDICT})."
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"its verdict ({VERDICT}) can't be read."


def _problem(folder: Path, verdict: Mapping[str, Any], dtype: str, device: str) -> str | None:
    """Return what is wrong with a verdict, as a sentence; None if it passed, on these files and such a device."""
    if verdict.get("verdict") != PASSED:
        return " ".join(["it failed its gate.", *map(str, verdict["failures"])])
    found, expected = digests(folder), verdict["sha256"]
    changed = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if changed:
        return f"its {changed[0]} is not the file that passed the gate."
    judged = verdict.get("dtype", INT8), verdict.get("device", CPU)
    if judged != (dtype, device):
        return f"it was judged in {judged[0]} on {judged[1]}, not in {dtype} on {device}."
    if verdict.get("has_vnni") is True and not has_vnni():
        return "it passed its gate on a CPU with VNNI, which this one has not, so its sums may be cut off here."
    return None


def _slowness(name: str, dtype: str, verdict: Mapping[str, Any]) -> str | None:
    """Return a warning if a model was not much faster where it was quantized; else None."""
    try:
        speed = verdict["speed"]
        if speed["is_worth_it"] is not False:
            return None
        figures = f"{speed['images_per_s']:.1f} images/s, and in {speed['default_dtype']} "
        figures += f"{speed['default_images_per_s']:.1f}"
    except (KeyError, TypeError, ValueError):  # of an older version
        return None
    return f"The model {name!r} is hardly faster in {dtype}: where it was quantized, it did {figures}."
