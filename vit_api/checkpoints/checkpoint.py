"""Finds a Hugging Face image-classification checkpoint and reads what the HTTP side must know of it.

Imports neither torch nor transformers: it runs in the main process, which is forked into the HTTP processes.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_api.checkpoints import hub, weights
from vit_api.checkpoints.preprocessing import Preprocessing, UnsupportedProcessor, read_preprocessing

__all__ = ["Checkpoint", "CheckpointError", "Preprocessing", "load_checkpoint"]

EMBEDDED = {"digits": Path(__file__).parent / "digits"}

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_CHUNK_BYTES = 2**20

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

# transformers 5.20, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, as far as the processor may be one of ours.
_BUILT_IN_MODELS = frozenset(
    {
        *("beit", "bit", "clip", "data2vec-vision", "deit", "dinat", "dinov2", "dinov2_with_registers", "focalnet"),
        *("hiera", "ijepa", "metaclip_2", "pvt", "pvt_v2", "resnet", "siglip", "swiftformer", "swin", "swinv2"),
        *("vit", "vit_msn"),
    }
)


class CheckpointError(Exception):
    """A checkpoint can't be served; the message is for the person who starts the server."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the local disk.

    Attributes:
        name: What clients see: `digits`, the hub id, or the last part of a directory's path.
        path: The folder with config.json, the processor's configuration and the safetensors files.
        revision: The commit, for models from the hub; None for others.
        labels: The class names, by index.
        preprocessing: What happens to an image before the model.
    """

    name: str
    path: Path
    revision: str | None
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the labels, which are read again: 20,000 of them would not fit into the pipe to a new process."""
        return {name: value for name, value in vars(self).items() if name != "labels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, labels=_labels(_read_json(state["path"] / "config.json")))

    def identity(self) -> str:
        """Return what no other checkpoint has: its commit on the hub or, for a directory, its files' SHA-256.

        Reads the whole weights of a directory.
        """
        if self.revision is not None:
            return self.revision
        digest = hashlib.sha256()
        for name in sorted(["config.json", *PROCESSOR_FILES, *weights.weight_files(self.path)]):
            file = self.path / name
            if file.is_file():
                digest.update(f"{name} {file.stat().st_size}\n".encode())
                with file.open("rb") as content:
                    while chunk := content.read(_CHUNK_BYTES):
                        digest.update(chunk)
        return digest.hexdigest()


def load_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint, download it if need be, and read its labels and its preprocessing.

    Args:
        name: `digits` (embedded), a directory in Hugging Face format, or a model's id on the hub.
        revision: A branch, a tag or a commit of a hub model; None is the main branch.

    Raises:
        CheckpointError: There is no such checkpoint, it can't be had, or it isn't one that the server can run. Where
            the hub doesn't answer, that is known within 15 seconds.
    """
    try:
        path, commit = _find(name, revision)
        config = _read_json(path / "config.json")
        _check_model(config)
        labels = _labels(config)
        preprocessing = read_preprocessing(_read_processor(path), config)
        _check_weights(path)
    except (CheckpointError, UnsupportedProcessor, hub.HubError) as error:
        raise CheckpointError(f"The model {name!r} can't be used: {error}.") from error
    # Clients see the name, and must not see where on this machine a directory lies.
    public_name = name if name in EMBEDDED or commit is not None else path.name
    return Checkpoint(name=public_name, path=path, revision=commit, labels=labels, preprocessing=preprocessing)


def _find(name: str, revision: str | None) -> tuple[Path, str | None]:
    """Return the checkpoint's folder, and the commit where it comes from the hub."""
    try:
        path = EMBEDDED.get(name) or Path(name).expanduser()
        is_folder = bool(name) and path.is_dir()
    except (OSError, RuntimeError) as error:  # no permission, a name too long, `~` of a user who isn't there
        raise CheckpointError(f"it can't be looked up as a directory: {error}") from error
    if is_folder:
        if revision is not None:
            raise CheckpointError("a revision can be chosen for models from the hub only, and this is a directory")
        return path.resolve(), None
    if name in EMBEDDED or not _HUB_ID.fullmatch(name):
        raise CheckpointError("there is no such directory, and it isn't a model id of the hub")
    return hub.fetch(name, revision)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"it has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"its {path.name} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"its {path.name} is not a JSON object")
    return content


def _read_processor(path: Path) -> dict[str, Any]:
    """Read the image processor's configuration, from where transformers 5 reads it.

    A processor that is more than an image processor (CLIP's) is saved as processor_config.json, with the image
    processor in it, and that wins; a lone image processor is saved as preprocessor_config.json.
    """
    whole, lone = PROCESSOR_FILES
    if (path / whole).is_file():
        nested = _read_json(path / whole).get("image_processor")
        if isinstance(nested, dict):
            return nested
    return _read_json(path / lone)


def _check_model(config: dict[str, Any]) -> None:
    """Refuse models that aren't built into transformers, aren't image classifiers, or answer with no softmax."""
    if config.get("auto_map") and str(config.get("model_type")) not in _BUILT_IN_MODELS:
        raise CheckpointError("its model is code from its repository, and remote code is never run")
    architectures = config.get("architectures") or []
    known = isinstance(architectures, list) and any("ForImageClassification" in str(name) for name in architectures)
    if not known:
        raise CheckpointError(f"it is no image classifier (its architectures: {architectures})")
    if config.get("num_channels", 3) != 3:
        raise CheckpointError(f"its images have {config['num_channels']} channels; the server's have 3")
    if config.get("problem_type") == "multi_label_classification":
        raise CheckpointError("it gives an image several labels at once; the server serves models that give one")


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names by index.

    transformers doesn't save id2label where it is its default: LABEL_0 and LABEL_1, or as many as num_labels says.
    """
    names = config.get("id2label")
    if names is None:
        count = config.get("num_labels", 2)
        names = {index: f"LABEL_{index}" for index in range(count if isinstance(count, int) else 0)}
    try:
        by_index = {int(index): str(name) for index, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise CheckpointError("the id2label in its config.json doesn't map class numbers to names") from error
    if sorted(by_index) != list(range(len(by_index))):
        raise CheckpointError("the id2label in its config.json leaves class numbers out")
    if len(by_index) < 2:
        raise CheckpointError("it has fewer than two classes")
    return tuple(by_index[index] for index in range(len(by_index)))


def _check_weights(path: Path) -> None:
    """Refuse a folder whose weights are missing, incomplete or not safetensors."""
    try:
        files = weights.weight_files(path)
    except ValueError as error:
        raise CheckpointError(f"its {error}") from error
    except OSError as error:
        raise CheckpointError(f"its {weights.INDEX} can't be read: {error}") from error
    if not files:
        raise CheckpointError("it has no safetensors weights (model.safetensors); pickled ones are never loaded")
    for file in files:
        try:
            is_safetensors = weights.is_safetensors(path / file)
        except FileNotFoundError:
            raise CheckpointError(f"its {file} is missing") from None
        except OSError as error:
            raise CheckpointError(f"its {file} can't be read: {error}") from error
        if not is_safetensors:
            raise CheckpointError(f"its {file} is not a safetensors file (a Git LFS pointer? Then run `git lfs pull`)")
