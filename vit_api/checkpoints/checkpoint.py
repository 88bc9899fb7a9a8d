"""Finds a Hugging Face image-classification checkpoint and reads its labels and its preprocessing.

Never imports torch or transformers: it runs in the main process, which is forked into the HTTP processes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_api.checkpoints import hub, weights
from vit_api.checkpoints.families import BUILT_IN_MODELS, REFUSED_MODELS
from vit_api.checkpoints.preprocessing import Preprocessing, UnsupportedProcessor
from vit_api.checkpoints.processor_file import read_preprocessing
from vit_api.checkpoints.timm_format import (
    UnsupportedTimm,
    check_runnable,
    read_timm_labels,
    read_timm_preprocessing,
)

__all__ = ["Checkpoint", "CheckpointError", "Preprocessing", "load_checkpoint"]

EMBEDDED = {"digits": Path(__file__).parent / "digits"}

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_CHUNK_BYTES = 2**20
_MAX_SHOWN = 64
"""Characters of a name in an error."""

_MULTI_LABEL = "multi_label_classification"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class CheckpointError(Exception):
    """A checkpoint can't be served; the message is for the operator."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the local disk.

    Attributes:
        name: The name that clients see: the one that the operator sets, or `digits`, the hub id,
            or the last part of a directory's path.
        path: The folder with config.json, the image processor's configuration and the safetensors files.
        revision: The commit of a model from the hub; None for other models.
        labels: The class names, by index.
        has_sigmoid: Whether each class has a probability of its own, by a sigmoid, and not one of all by a softmax: as
            in transformers' pipeline, that of a multi-label model and of one with a single logit.
        preprocessing: How an image is preprocessed for the model.
    """

    name: str
    path: Path
    revision: str | None
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    has_sigmoid: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the labels, which are read again: 20,000 of them would fill the pipe to a new process."""
        return {name: value for name, value in vars(self).items() if name != "labels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, labels=_labels(_read_json(state["path"] / "config.json")))

    def identity(self) -> str:
        """Return what identifies the checkpoint: the commit on the hub or, for a directory, a SHA-256 of its files.

        For a directory, this reads all of the weights.
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


def load_checkpoint(name: str, revision: str | None = None, *, served_name: str | None = None) -> Checkpoint:
    """Find a checkpoint, download it if necessary, and read its labels and its preprocessing.

    Args:
        name: `digits` (embedded), a directory in Hugging Face format, or a model id on the hub.
        revision: A branch, tag or commit of a hub model; None for the main branch.
        served_name: The name that clients see; None for that of the checkpoint.

    Raises:
        CheckpointError: The checkpoint does not exist, can't be downloaded, or is not supported. If the hub does not
            respond, this is raised within 15 seconds.
    """
    try:
        path, commit = _find(name, revision)
        config = _read_json(path / "config.json")
        labels = _labels(config)
        _check_labels(labels)
        if hub.is_timm(config):
            preprocessing = read_timm_preprocessing(config)
            _check_weights(path)
            _check_timm(path, config)
        else:
            _check_model(config)
            preprocessing = read_preprocessing(_read_processor(path), config)
            _check_weights(path)
    except (CheckpointError, UnsupportedProcessor, UnsupportedTimm, hub.HubError) as error:
        raise CheckpointError(f"The model {name!r} can't be used: {error}.") from error
    # Clients see the name, which must not reveal where on this machine a directory is.
    public_name = served_name or (name if name in EMBEDDED or commit is not None else path.name)
    has_sigmoid = config.get("problem_type") == _MULTI_LABEL or len(labels) == 1
    return Checkpoint(public_name, path, commit, labels, preprocessing, has_sigmoid)


def _find(name: str, revision: str | None) -> tuple[Path, str | None]:
    """Return the checkpoint's folder, and its commit if it is from the hub."""
    try:
        path = EMBEDDED.get(name) or Path(name).expanduser()
        is_folder = bool(name) and path.is_dir()
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, `~` of an unknown user
        raise CheckpointError(f"it can't be looked up as a directory ({error})") from error
    if is_folder:
        if revision is not None:
            raise CheckpointError("it is a directory, which has no revisions; unset VIT_API_REVISION")
        return path.resolve(), None
    if name in EMBEDDED or not _HUB_ID.fullmatch(name):
        raise CheckpointError("there is no such directory, and the name is not a model id of the hub")
    return hub.fetch(name, revision)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"it has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"its {path.name} can't be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"its {path.name} is not a JSON object")
    return content


def _read_processor(path: Path) -> dict[str, Any]:
    """Read the image processor's configuration from the file that transformers 5 reads.

    A multimodal processor (CLIP's) is saved as processor_config.json, with the image processor nested in it, and takes
    precedence; an image processor on its own is saved as preprocessor_config.json.
    """
    multimodal, image_only = PROCESSOR_FILES
    if (path / multimodal).is_file():
        nested = _read_json(path / multimodal).get("image_processor")
        if isinstance(nested, dict):
            return nested
    return _read_json(path / image_only)


def _check_model(config: dict[str, Any]) -> None:
    """Refuse models that transformers has no code for, or that are not image classifiers with probabilities."""
    model_type = str(config.get("model_type"))
    if config.get("auto_map") and model_type not in BUILT_IN_MODELS:
        raise CheckpointError("its model is code from its repository, and remote code is never run")
    architectures = config.get("architectures") or []
    known = isinstance(architectures, list) and any("ForImageClassification" in str(name) for name in architectures)
    if not known:
        raise CheckpointError(f"it is not an image classifier (its architectures: {architectures})")
    if model_type in REFUSED_MODELS:
        raise CheckpointError(f"its model type is {model_type}, which {REFUSED_MODELS[model_type]}")
    if config.get("num_channels", 3) != 3:
        raise CheckpointError(f"it takes images with {config['num_channels']} channels, and the server provides 3")
    if config.get("problem_type") == "regression":
        raise CheckpointError("it is a regression model (problem_type), whose answers are not probabilities")


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names by index.

    transformers does not save id2label if it is the default: LABEL_0 and LABEL_1, or as many as num_labels says.
    """
    if hub.is_timm(config):
        return read_timm_labels(config)
    names = config.get("id2label")
    if names is None:
        count = config.get("num_labels", 2)
        names = {index: f"LABEL_{index}" for index in range(count if isinstance(count, int) else 0)}
    try:
        by_index = {int(index): _name_of(name) for index, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise CheckpointError("the id2label in its config.json does not map class numbers to names") from error
    if sorted(by_index) != list(range(len(by_index))):
        raise CheckpointError("the id2label in its config.json has gaps in its class numbers")
    if not by_index:
        raise CheckpointError("it has no classes")
    return tuple(by_index[index] for index in range(len(by_index)))


def _check_labels(labels: Sequence[str]) -> None:
    """Refuse names that no response can have: JSON may have half of a character as an escape, and UTF-8 may not."""
    for index, label in enumerate(labels):
        try:
            label.encode()
        except UnicodeEncodeError:
            raise CheckpointError(
                f"the name of its class {index}, {ascii(label)[:_MAX_SHOWN]}, is not valid Unicode"
            ) from None


def _name_of(value: object) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError(value)
    return str(value)


def _check_timm(path: Path, config: dict[str, Any]) -> None:
    """Refuse a checkpoint in timm's format that can't be run."""
    if not (path / weights.SINGLE).is_file():
        raise CheckpointError(f"its weights are not in one file, {weights.SINGLE}")
    try:
        shapes = weights.tensor_shapes(path / weights.SINGLE)
    except ValueError as error:
        raise CheckpointError(f"the header of its {weights.SINGLE} can't be read ({error})") from error
    check_runnable(config, shapes)


def _check_weights(path: Path) -> None:
    """Refuse a folder whose weights are missing, incomplete or not in safetensors format."""
    try:
        files = weights.weight_files(path)
    except ValueError as error:
        raise CheckpointError(f"its {error}") from error
    except OSError as error:
        raise CheckpointError(f"its {weights.INDEX} can't be read ({error})") from error
    if not files:
        pickled = next((name for name in weights.PICKLED if (path / name).is_file()), None)
        raise CheckpointError(
            "it has no safetensors weights (model.safetensors); pickled weights are never loaded"
            + (f". Convert its {pickled} once, see docs/models.md#pickled-weights" if pickled else "")
        )
    for file in files:
        try:
            is_safetensors = weights.is_safetensors(path / file)
        except FileNotFoundError:
            raise CheckpointError(f"its {file} is missing") from None
        except OSError as error:
            raise CheckpointError(f"its {file} can't be read ({error})") from error
        if not is_safetensors:
            raise CheckpointError(f"its {file} is not a safetensors file; for a Git LFS pointer, run `git lfs pull`")
