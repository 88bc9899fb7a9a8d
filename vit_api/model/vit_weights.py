"""Reads a ViT in transformers' format, config.json and safetensors, as a `ViTNetwork`, without importing transformers.

Reads only what it knows in full. Any other key, tensor or shape makes it return None, so that transformers loads the
checkpoint or says what is wrong with it. Must not know devices' names or batching.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vit_api.checkpoints.int8 import QUANTIZATION_CONFIG
from vit_api.checkpoints.weights import weight_files
from vit_api.model.vit_config import ViTConfig
from vit_api.model.vit_network import ACTIVATIONS, ViTNetwork

_TYPE = "vit"
_DEFAULT_CLASSES = 2
_CHANNELS = 3
_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_CHANGES_THE_NETWORK = ("quantization_config", "head_dim", "pruned_heads")
"""Keys of config.json that are not read here, and with which a checkpoint is left to transformers."""
_ADAPTER = "adapter_config.json"
_UNUSED = re.compile(r"vit\.(pooler\.dense\.(weight|bias)|embeddings\.mask_token)")
"""Tensors of a checkpoint that a classifier does not use."""

# Names before transformers 5, as its conversion_mapping.py has them.
_OLD_LAYER = re.compile(r"vit\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_OLD_PARTS = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}


class _Other(Exception):
    """The checkpoint has something that is not known here."""


def read_vit_config(folder: Path) -> ViTConfig | None:
    """Return the shape of the ViT in a folder; None if transformers has to load it."""
    try:
        return _read_config(folder)
    except _Other:
        return None


def load_vit(folder: Path, dtype: torch.dtype, device: torch.device) -> ViTNetwork | None:
    """Load the ViT in a folder; None if transformers has to load it.

    Args:
        folder: The checkpoint's.
        dtype: The dtype to load it in.
        device: The device to load it on.
    """
    try:
        config = _read_config(folder)
        files = _find_tensors(folder, config)
    except _Other:
        return None
    weights: dict[str, Tensor] = {}
    for path, names in files.items():
        with safe_open(path, "pt") as file:
            for stored, name in names.items():
                # A copy: the tensors of a file are mapped, and would change or vanish with it.
                weights[name] = file.get_tensor(stored).to(device, dtype, copy=True)
    return ViTNetwork.of_weights(config, weights)


def _read_config(folder: Path) -> ViTConfig:
    config = json.loads((folder / "config.json").read_bytes())
    if config.get("model_type") != _TYPE or (folder / _ADAPTER).exists():
        raise _Other
    # An int8 checkpoint's weights are the original ones.
    changes = any(config.get(key) and config[key] != QUANTIZATION_CONFIG for key in _CHANGES_THE_NETWORK)
    if changes or config.get("num_channels", _CHANNELS) != _CHANNELS:
        raise _Other
    read = ViTConfig(
        hidden_size=_integer(config, "hidden_size", 768),
        num_hidden_layers=_integer(config, "num_hidden_layers", 12),
        num_attention_heads=_integer(config, "num_attention_heads", 12),
        intermediate_size=_integer(config, "intermediate_size", 3072),
        image_size=_sides(config, "image_size", 224),
        patch_size=_sides(config, "patch_size", 16),
        num_labels=_classes(config),
        hidden_act=config.get("hidden_act", "gelu"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        qkv_bias=config.get("qkv_bias", True),
    )
    is_known = type(read.qkv_bias) is bool and type(read.layer_norm_eps) is float
    if not is_known or read.hidden_act not in ACTIVATIONS or read.hidden_size % read.num_attention_heads:
        raise _Other
    return read


def _integer(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise _Other
    return value


def _sides(config: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    """Return a (height, width) that is given as such, or as one number for both."""
    value = config.get(key, default)
    height, width = value if isinstance(value, list) and len(value) == 2 else (value, value)
    return _integer({key: height}, key, default), _integer({key: width}, key, default)


def _classes(config: Mapping[str, Any]) -> int:
    names = config.get("id2label")
    classes = len(names) if isinstance(names, dict) else _integer(config, "num_labels", _DEFAULT_CLASSES)
    if not classes or config.get("num_labels", classes) != classes:
        raise _Other
    return classes


def _find_tensors(folder: Path, config: ViTConfig) -> dict[Path, dict[str, str]]:
    """Return for each file the names of its tensors and of the network's parameters that they are.

    Raises:
        _Other: They are not exactly the parameters of the network.
    """
    with torch.device("meta"):
        missing = {name: list(tensor.shape) for name, tensor in ViTNetwork(config).state_dict().items()}
    files: dict[Path, dict[str, str]] = {}
    for path in (folder / name for name in weight_files(folder)):
        names = files[path] = {}
        with safe_open(path, "pt") as file:
            for stored in file.keys():  # noqa: SIM118 - not a dict
                if _UNUSED.fullmatch(stored):
                    continue
                tensor, name = file.get_slice(stored), _current_name(stored)
                if tensor.get_dtype() not in _DTYPES or missing.pop(name, None) != tensor.get_shape():
                    raise _Other
                names[stored] = name
    if missing:
        raise _Other
    return files


def _current_name(name: str) -> str:
    match = _OLD_LAYER.fullmatch(name)
    if match is None or match[2] not in _OLD_PARTS:
        return name
    return f"vit.layers.{match[1]}.{_OLD_PARTS[match[2]]}.{match[3]}"
