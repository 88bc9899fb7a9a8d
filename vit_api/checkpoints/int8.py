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

INT8 = "int8"
"""The dtype, as in VIT_API_DTYPE."""
VERDICT = "quantization.json"
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
    """Return what identifies a checkpoint's answers: `Checkpoint.identity`, or for int8 a SHA-256 of all its files."""
    if dtype != INT8:
        return checkpoint.identity()
    return hashlib.sha256(json.dumps(digests(checkpoint.path), sort_keys=True).encode()).hexdigest()


def check_served(
    checkpoint: Checkpoint, dtype: str | None, engine: str, devices: Sequence[str], *, allow_unverified: bool
) -> str | None:
    """Check that a checkpoint can be served in this dtype by this engine, as far as OpenVINO is concerned.

    Args:
        checkpoint: The checkpoint.
        dtype: As in VIT_API_DTYPE.
        engine: As in VIT_API_ENGINE.
        devices: torch's names of the devices.
        allow_unverified: See `check_int8`.

    Returns:
        A warning, or None.

    Raises:
        CheckpointError: It can't.
    """
    if dtype != INT8 and engine != _PACKAGE:
        return None
    what = "A model in int8" if dtype == INT8 else "The engine openvino"
    if any(device != "cpu" for device in devices):
        raise CheckpointError(f"{what} runs on the CPU only. Set VIT_API_DEVICE=cpu, or another dtype or engine.")
    check_openvino()
    return check_int8(checkpoint, allow_unverified=allow_unverified) if dtype == INT8 else None


def check_int8(checkpoint: Checkpoint, *, allow_unverified: bool = False) -> str | None:
    """Check that a checkpoint can be served in int8, and may be.

    Args:
        checkpoint: The checkpoint.
        allow_unverified: Serve it, though the verdict on it is missing, "failed", or on other files.

    Returns:
        A warning, if it is served for `allow_unverified` alone; else None.

    Raises:
        CheckpointError: It has no quantized network, or must not be served.
    """
    missing = [name for name in _NETWORK if not (checkpoint.path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"The model {checkpoint.name!r} can't be used in int8: it has no {missing[0]}. Make an int8 copy of it "
            "with python -m vit_api quantize, or set another dtype."
        )
    problem = _problem(checkpoint.path)
    if problem is None:
        return None
    if not allow_unverified:
        raise CheckpointError(
            f"The model {checkpoint.name!r} can't be used in int8: {problem} Quantize it again, set another dtype, or "
            "accept it with VIT_API_ALLOW_UNVERIFIED_INT8=1."
        )
    return f"The model {checkpoint.name!r} is served in int8 without a valid verdict: {problem}"


def _problem(folder: Path) -> str | None:
    """Return what is wrong with the verdict on a folder, as a sentence; None if it passed, and is on these files."""
    try:
        verdict = json.loads((folder / VERDICT).read_bytes())
        outcome, failures, expected = verdict["verdict"], verdict["failures"], dict(verdict["sha256"])
    except FileNotFoundError:
        return f"it has no verdict ({VERDICT})."
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"its verdict ({VERDICT}) can't be read."
    if outcome != PASSED:
        reasons = " ".join(str(failure) for failure in failures) if isinstance(failures, list) else ""
        return f"it failed its gate. {reasons}".rstrip()
    found = digests(folder)
    changed = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"its {changed[0]} is not the file that passed the gate." if changed else None
