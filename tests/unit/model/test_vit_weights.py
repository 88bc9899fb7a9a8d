"""Which ViT checkpoints our own network runs, with transformers' logits, and which are left to transformers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling

from tests.support import forked_servers
from tests.support.classifiers import make_classifier
from vit_api.checkpoints.checkpoint import EMBEDDED
from vit_api.checkpoints.weights import INDEX, SINGLE
from vit_api.model.loading import load_network, read_width
from vit_api.model.vit_network import ViTNetwork
from vit_api.model.vit_weights import load_vit, read_vit_config

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
SCALE, SHIFT = torch.full((3, 1, 1), 1 / 127.5), torch.full((3, 1, 1), -1.0)


def save(folder: Path, **config: Any) -> Path:
    """Save a small seeded ViT."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 96}
    sizes |= {"image_size": 32, "patch_size": 8, "num_labels": 7, "initializer_range": 0.3}
    ViTForImageClassification(ViTConfig(**(sizes | config))).save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Write the weights again, changed."""
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE, {"format": "pt"})


@torch.inference_mode()
def check_logits(folder: Path) -> None:
    """Compare the network's logits with transformers'."""
    network = load_vit(folder, torch.float32, CPU)
    assert network is not None
    model = ViTForImageClassification.from_pretrained(folder).eval()
    inputs = torch.randn(3, 3, *network.config.image_size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(pixel_values=inputs).logits, model(inputs).logits, rtol=1e-4, atol=1e-4)
    assert read_width(folder) == network.config.hidden_size == model.config.hidden_size


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="plain"),
        pytest.param({"qkv_bias": False, "hidden_act": "relu"}, id="no biases"),
        pytest.param({"image_size": (32, 48), "patch_size": (8, 16)}, id="sides in pairs"),
        pytest.param({"dtype": "bfloat16"}, id="bfloat16"),
    ],
)
def test_logits_equal_those_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    """For what `save_pretrained` writes."""
    check_logits(save(tmp_path, **config))


def test_names_from_before_transformers_5() -> None:
    """The embedded checkpoint has them, as most on the hub."""
    folder = EMBEDDED["digits"]
    assert any(".attention.attention.query." in name for name in load_file(folder / SINGLE))
    check_logits(folder)


def test_defaults_of_the_configuration(tmp_path: Path) -> None:
    """A short config.json, as of ViT-B/16, means the sizes that it means to transformers."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    found, expected = read_vit_config(tmp_path), ViTConfig()
    assert found is not None
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_labels"):
        assert getattr(found, name) == getattr(expected, name), name
    assert (found.hidden_act, found.layer_norm_eps) == (expected.hidden_act, expected.layer_norm_eps)
    assert (found.qkv_bias, found.image_size, found.patch_size) == (True, (224, 224), (16, 16))


def test_shards(tmp_path: Path) -> None:
    """Weights in several files."""
    folder = save(tmp_path)
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    shards = {"a.safetensors": sorted(weights)[::2], "b.safetensors": sorted(weights)[1::2]}
    for shard, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / shard, {"format": "pt"})
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    check_logits(folder)


def test_tensors_that_a_classifier_does_not_use(tmp_path: Path) -> None:
    """A pooler, as in Google's checkpoints, and a mask token, as of masked image modelling, change nothing."""
    folder = save(tmp_path)
    unused = {
        "vit.pooler.dense.weight": torch.ones(48, 48),
        "vit.pooler.dense.bias": torch.ones(48),
        "vit.embeddings.mask_token": torch.ones(1, 1, 48),
    }
    assert "vit.embeddings.mask_token" in ViTForMaskedImageModeling(ViTConfig(num_hidden_layers=1)).state_dict()
    change_weights(folder, lambda weights: weights | unused)
    check_logits(folder)


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("config", "change"),
    [
        pytest.param({"hidden_act": "mish"}, None, id="an activation of transformers'"),
        pytest.param({"head_dim": 16}, None, id="head_dim"),
        pytest.param({"hidden_size": "48"}, None, id="a size that is a string"),
        pytest.param({"qkv_bias": "no"}, None, id="a flag that is a string"),
        pytest.param({"layer_norm_eps": "1e-6"}, None, id="an epsilon that is a string"),
        pytest.param({"num_channels": 1}, None, id="grey"),
        pytest.param({"quantization_config": {"quant_method": "fp8"}}, None, id="quantised"),
        pytest.param({"num_hidden_layers": 1}, None, id="more layers than configured"),
        pytest.param({"num_hidden_layers": 3}, None, id="fewer layers than configured"),
        pytest.param({"num_labels": 9}, None, id="more labels than names"),
        pytest.param({"id2label": {"0": "a", "1": "b"}}, None, id="fewer names than classes"),
        pytest.param({"model_type": "deit"}, None, id="another architecture"),
        pytest.param({}, _without("classifier.bias"), id="a tensor is missing"),
        pytest.param({}, lambda weights: weights | {"head.weight": torch.ones(2)}, id="an unknown tensor"),
        pytest.param({}, lambda weights: weights | {"classifier.bias": torch.ones(7, dtype=torch.int8)}, id="integers"),
        pytest.param({}, lambda weights: weights | {"classifier.bias": torch.ones(8)}, id="another shape"),
    ],
)
def test_anything_unknown_is_left_to_transformers(
    config: dict[str, Any], change: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None, tmp_path: Path
) -> None:
    """So that it is loaded as before, or transformers says what is wrong."""
    folder = save(tmp_path)
    change_config(folder, **config)
    if change is not None:
        change_weights(folder, change)
    assert load_vit(folder, torch.float32, CPU) is None


def test_adapters_are_left_to_transformers(tmp_path: Path) -> None:
    """It applies them to the weights if the package for it is installed."""
    folder = save(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    assert load_vit(folder, torch.float32, CPU) is None


def test_what_is_left_to_transformers_is_loaded(tmp_path: Path) -> None:
    """An activation that our network does not have."""
    folder = save(tmp_path, hidden_act="mish")
    network = load_network(folder, [torch.float32], (32, 32, 3), SCALE, SHIFT)
    assert isinstance(network, ViTForImageClassification)
    assert read_width(folder) == 48


def test_weights_do_not_change_with_their_file(tmp_path: Path) -> None:
    """A checkpoint may be replaced in place while a server runs."""
    folder = save(tmp_path)
    network = load_vit(folder, torch.float32, CPU)
    assert network is not None
    before = network.classifier.weight.clone()
    size = (folder / SINGLE).stat().st_size
    with (folder / SINGLE).open("r+b") as file:
        file.write(b"\0" * size)
    assert torch.equal(network.classifier.weight, before)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    """The positions are for one size."""
    network = load_vit(save(tmp_path), torch.float32, CPU)
    assert isinstance(network, ViTNetwork)
    with pytest.raises(ValueError, match=r"\(32, 32\)"):
        network(pixel_values=torch.zeros(1, 3, 32, 40))


@pytest.mark.parametrize(
    ("family", "is_needed"), [pytest.param("vit", False, id="vit"), pytest.param("resnet", True, id="resnet")]
)
def test_a_vit_needs_no_transformers(family: str, is_needed: bool, tmp_path: Path) -> None:
    """Its import takes longer than that of torch, in every worker."""
    folder = make_classifier(tmp_path / family, family)
    command = [sys.executable, "-m", "tests.support.prepared_model", str(folder)]
    result = forked_servers.run(command, cwd=ROOT, env=os.environ, timeout_s=120)
    assert result.stdout.strip() == str(is_needed), result.stderr
