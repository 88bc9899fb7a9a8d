"""Checkpoints are found and read without torch, or rejected with a message for the operator."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from tests.support import samples
from vit_api.checkpoints import checkpoint, families
from vit_api.checkpoints.checkpoint import CheckpointError, load_checkpoint


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.make_checkpoint(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def copied(vit: Path, tmp_path: Path) -> Path:
    """Return a copy of the small ViT for a test to modify."""
    for file in vit.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_the_embedded_model_is_read() -> None:
    """`digits` is loaded without network access or a revision."""
    digits = load_checkpoint("digits")
    assert digits.labels == tuple("0123456789")
    assert digits.preprocessing.pixel_shape == (32, 32, 3)
    assert (digits.name, digits.revision) == ("digits", None)
    assert (digits.path / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", samples.PROCESSORS)
def test_checkpoints_saved_by_transformers_are_read(kind: str, tmp_path: Path) -> None:
    """The installed version's save_pretrained and legacy processor files give the same settings."""
    folder = samples.make_checkpoint(tmp_path, kind, classes=7)
    legacy = load_checkpoint(str(folder))
    transformers.AutoImageProcessor.from_pretrained(folder).save_pretrained(folder)
    saved = load_checkpoint(str(folder))
    assert saved == legacy
    assert saved.labels == tuple(f"class {index}" for index in range(7))
    assert saved.preprocessing.pixel_shape == (32, 32, 3)


def test_a_clip_processor_is_found_in_its_processor(copied: Path) -> None:
    """Since version 5, transformers nests an image processor in processor_config.json, and prefers it there."""
    image_processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=32)
    (copied / "processor_config.json").write_text(json.dumps({"image_processor": image_processor.to_dict()}))
    assert load_checkpoint(str(copied)).preprocessing.shortest_edge == 40


def test_two_default_labels_are_read(tmp_path: Path) -> None:
    """The library doesn't save id2label when it is LABEL_0 and LABEL_1."""
    config = transformers.ViTConfig(**samples._MODELS["vit"][1])
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert load_checkpoint(str(tmp_path)).labels == ("LABEL_0", "LABEL_1")


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    """All files that the index names must exist."""
    folder = samples.make_checkpoint(tmp_path, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    assert load_checkpoint(str(folder)).path == folder
    next(folder.glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-.* is missing"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"architectures": ["ViTModel"]}, "not an image classifier", id="no classifier"),
        pytest.param({"architectures": None}, "not an image classifier", id="no architecture"),
        pytest.param({"architectures": 5}, "not an image classifier", id="number as architectures"),
        pytest.param({"num_channels": 1}, "1 channels", id="grey"),
        pytest.param({"id2label": {}}, "no classes", id="no class"),
        pytest.param({"id2label": {"0": "only"}, "problem_type": "regression"}, "regression", id="regression"),
        pytest.param({"model_type": "imagegpt"}, "colour clusters", id="refused family"),
        pytest.param({"id2label": {"0": "a", "2": "b"}}, "gaps in its class numbers", id="gap"),
        pytest.param({"id2label": {"a": "0"}}, "class numbers to names", id="no numbers"),
        pytest.param({"id2label": ["a", "b"]}, "class numbers to names", id="list"),
        pytest.param({"id2label": {"0": "a", "1": None}}, "class numbers to names", id="null as a name"),
        pytest.param({"id2label": {"0": "a", "1": ["b"]}}, "class numbers to names", id="list as a name"),
        pytest.param(
            {"id2label": {"0": "a", "1": "b\ud800"}}, "class 1, .* is not valid Unicode", id="half a character"
        ),
        pytest.param({"model_type": "my", "auto_map": {"AutoConfig": "my.My"}}, "never run", id="remote code"),
        pytest.param({"model_type": ["vit"], "auto_map": {"AutoConfig": "my.My"}}, "never run", id="list as type"),
    ],
)
def test_unsupported_models_are_rejected(copied: Path, changes: dict[str, Any], reason: str) -> None:
    """The message names the model and the reason."""
    samples.edit_json(copied / "config.json", **changes)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(str(copied))
    assert str(copied) in str(caught.value)


def test_remote_code_of_a_built_in_model_is_ignored(copied: Path) -> None:
    """A model that transformers has is read even if its config also offers custom code."""
    samples.edit_json(copied / "config.json", auto_map={"AutoConfig": "my.My"})
    assert len(load_checkpoint(str(copied)).labels) == 10


def test_every_family_of_transformers_is_listed() -> None:
    """Each classifier that transformers has is either served, or refused with a reason, and the page lists both."""
    assert set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) == families.BUILT_IN_MODELS | set(families.REFUSED_MODELS)
    assert not families.BUILT_IN_MODELS & families.REFUSED_MODELS.keys()
    page = (Path(checkpoint.__file__).parents[2] / "docs" / "models.md").read_text()
    rows = {line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")}
    assert set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) <= rows


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        pytest.param("config.json", None, "no config.json", id="no config"),
        pytest.param("config.json", b"{", "can't be read as JSON", id="bad json"),
        pytest.param("config.json", b"\xff\xfe", "can't be read as JSON", id="no text"),
        pytest.param("config.json", b"[]", "not a JSON object", id="list"),
        pytest.param("config.json", b"[" * 200_000, "can't be read as JSON", id="deeply nested"),
        pytest.param("preprocessor_config.json", None, "no preprocessor_config.json", id="no processor"),
        pytest.param("preprocessor_config.json", b'{"crop_pct": 0.9}', "crop_pct", id="unknown processor"),
        pytest.param("model.safetensors", None, "no safetensors weights", id="no weights"),
        pytest.param("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "git lfs pull", id="pointer"),
        pytest.param("model.safetensors", b"", "not a safetensors file", id="empty weights"),
    ],
)
def test_broken_checkpoints_are_rejected(copied: Path, file: str, content: bytes | None, reason: str) -> None:
    """Missing files and files with the wrong content are named."""
    (copied / file).unlink() if content is None else (copied / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(str(copied))


def test_the_page_says_how_to_convert_pickled_weights(copied: Path) -> None:
    """A folder with pickled weights only is rejected; what the program of docs/models.md makes of it is read.

    In this process, which has transformers: their import takes longer than the program's work.
    """
    pickled, converted = copied / "pytorch_model.bin", copied / "converted"
    torch.save(load_file(copied / "model.safetensors"), pickled)
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"Convert its pytorch_model\.bin once, see docs/models\.md"):
        load_checkpoint(str(copied))
    page = (Path(checkpoint.__file__).parents[2] / "docs" / "models.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program = program.replace("owner/model", str(copied)).replace('"converted"', repr(str(converted)))
    exec(program, {})
    assert load_checkpoint(str(converted)).labels == tuple(f"class {index}" for index in range(10))


@pytest.mark.parametrize(
    "index",
    [
        pytest.param({"weight_map": {"a": "../../other.safetensors"}}, id="outside"),
        pytest.param({"weight_map": {"a": "pytorch_model.bin"}}, id="pickle"),
        pytest.param({"weight_map": ["a"]}, id="list"),
        pytest.param({"weight_map": {"a": 5}}, id="number"),
        pytest.param({"weight_map": {"a": "a\0.safetensors"}}, id="nul"),
        pytest.param({}, id="empty"),
    ],
)
def test_an_index_may_only_name_safetensors_in_its_folder(copied: Path, index: dict[str, Any]) -> None:
    """Paths outside the folder, pickles and malformed indexes are rejected."""
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"its model\.safetensors\.index\.json"):
        load_checkpoint(str(copied))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "", "-x", "a b"])
def test_invalid_names_are_rejected(name: str) -> None:
    """A name that is neither a directory nor a hub id is rejected without a request to the hub."""
    with pytest.raises(CheckpointError, match="no such directory"):
        load_checkpoint(name)


@pytest.mark.parametrize(
    "name", [pytest.param("~no-such-user/model", id="unknown home"), pytest.param("a" * 5000, id="too long")]
)
def test_names_that_the_os_rejects_are_rejected(name: str) -> None:
    """A path that can't be looked up raises CheckpointError, not OSError."""
    with pytest.raises(CheckpointError, match="can't be looked up"):
        load_checkpoint(name)


def test_a_shard_name_that_the_os_rejects_is_rejected(copied: Path) -> None:
    """A shard whose name is too long for the file system raises CheckpointError."""
    (copied / "model.safetensors").unlink()
    index = {"weight_map": {"a": "a" * 300 + ".safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="can't be read"):
        load_checkpoint(str(copied))


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_a_local_model_is_named_after_its_directory(vit: Path, ending: str) -> None:
    """Clients see the directory's name and not its path."""
    assert load_checkpoint(f"{vit}{ending}").name == vit.name


@pytest.mark.parametrize("name", ["digits", "."])
def test_only_hub_models_have_revisions(name: str) -> None:
    """A revision that would have no effect is an error."""
    with pytest.raises(CheckpointError, match="revision"):
        load_checkpoint(name, "main")


def test_reading_needs_no_heavy_imports() -> None:
    """The main process forks, so it must neither import torch nor start threads."""
    program = (
        "import sys, threading; from vit_api.checkpoints.checkpoint import load_checkpoint; load_checkpoint('digits');"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'PIL', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(checkpoint.__file__).parents[2])


def test_a_pickled_checkpoint_fits_into_a_pipe(tmp_path: Path) -> None:
    """Over a pipe's 64 KiB, the main process would block if the worker died before reading it."""
    folder = samples.make_checkpoint(tmp_path / "model", classes=5000)
    loaded = load_checkpoint(str(folder))
    pickled = pickle.dumps(loaded)
    assert len(pickled) < 4096
    assert pickle.loads(pickled) == loaded
