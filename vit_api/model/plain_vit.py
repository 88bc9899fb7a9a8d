"""Reads a plain ViT in timm's format as a `ViTNetwork`.

Must not know devices, batching or HTTP.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vit_api.checkpoints.hub import is_timm
from vit_api.checkpoints.timm_format import plain_heads
from vit_api.checkpoints.weights import SINGLE
from vit_api.model.vit_network import ViTConfig, ViTNetwork

_EPS = 1e-6  # of every norm in timm's vision_transformer.py; transformers' default is another
_PARTS = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SCALED = {"ls1": "attention.o_proj", "ls2": "mlp.fc2"}


def find_heads(folder: Path) -> int | None:
    """Return the number of heads if the folder has a plain ViT in timm's format; None for any other checkpoint."""
    config = json.loads((folder / "config.json").read_bytes())
    if not is_timm(config):
        return None
    with safe_open(folder / SINGLE, "pt") as file:
        return plain_heads(config, file.keys())


def read_config(folder: Path, heads: int) -> ViTConfig:
    """Return the configuration that the shapes of the weights, and the input size, amount to."""
    with safe_open(folder / SINGLE, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict
    config = json.loads((folder / "config.json").read_bytes())
    width, _, patch_height, patch_width = shapes["patch_embed.proj.weight"]
    _, height, image_width = config.get("pretrained_cfg", config).get("input_size") or (3, 224, 224)
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        num_attention_heads=heads,
        intermediate_size=shapes["blocks.0.mlp.fc1.weight"][0],
        image_size=(height, image_width),
        patch_size=(patch_height, patch_width),
        num_labels=shapes["head.weight"][0],
        layer_norm_eps=_EPS,
    )


def load_plain_vit(folder: Path, heads: int, dtype: torch.dtype, device: torch.device) -> ViTNetwork:
    """Load a plain ViT.

    Raises:
        RuntimeError: A tensor does not have the shape that the others imply.
    """
    config = read_config(folder, heads)
    weights = _converted(load_file(folder / SINGLE), config.num_patches)
    return ViTNetwork.of_weights(
        config, {name: tensor.to(device, dtype, copy=True) for name, tensor in weights.items()}
    )


def _converted(weights: dict[str, Tensor], patches: int) -> dict[str, Tensor]:
    """Return the weights in float32 by the names of `ViTNetwork`, layer scales folded into the matrices before them."""
    weights = {name: tensor.float() for name, tensor in weights.items()}
    positions = weights["pos_embed"]
    if positions.shape[1] == patches:  # DeiT III: the class token has no position
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    found = {
        "vit.embeddings.cls_token": weights["cls_token"],
        "vit.embeddings.position_embeddings": positions,
    }
    whole = {"patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm"}
    for old, new in (whole | {"head": "classifier"}).items():
        for kind in ("weight", "bias"):
            found[f"{new}.{kind}"] = weights[f"{old}.{kind}"]
    for block in range(1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))):
        found |= _block(weights, f"blocks.{block}.", f"vit.layers.{block}.")
    return found


def _block(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    found = {}
    for kind in ("weight", "bias"):
        for part, name in _PARTS.items():
            found[f"{new}{name}.{kind}"] = weights[f"{old}{part}.{kind}"]
        stacked = weights.get(f"{old}attn.qkv.{kind}")
        if stacked is None:  # without qkv_bias
            stacked = torch.zeros(len(weights[f"{old}attn.qkv.weight"]))
        for letter, rows in zip("qkv", stacked.chunk(3), strict=True):
            found[f"{new}attention.{letter}_proj.{kind}"] = rows
    for scale, name in _SCALED.items():
        gamma = weights.get(f"{old}{scale}.gamma")
        if gamma is not None:
            found[f"{new}{name}.weight"] = gamma[:, None] * found[f"{new}{name}.weight"]
            found[f"{new}{name}.bias"] = gamma * found[f"{new}{name}.bias"]
    return found
