"""Checkpoints in timm's hub format, made without timm, and a plain ViT's forward pass by timm's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k
PRETRAINED_CFG: dict[str, Any] = {
    "input_size": [3, 224, 224],
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "num_classes": 12,
    "pool_size": None,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
_WIDTH, _HEADS, _DEPTH, _PATCH = 24, 3, 2, 16


def write_config(folder: Path, architecture: str, **changes: Any) -> None:
    """Write config.json as timm's `save_config_for_hf` does; `changes` are to its pretrained_cfg."""
    config = {
        "architecture": architecture,
        "num_classes": 12,
        "num_features": _WIDTH,
        "global_pool": "token",
        "label_names": [f"class {index}" for index in range(12)],
        "model_args": {"num_classes": 12, "in_chans": 3, "global_pool": "token", "img_size": [224, 224]},
        "pretrained_cfg": PRETRAINED_CFG | changes,
    }
    (folder / "config.json").write_text(json.dumps(config))


def make_plain_vit(folder: Path, architecture: str = "vit_tiny_patch16_224", **changes: Any) -> Path:
    """Save a small seeded plain ViT; with `deit3` in its name, one of DeiT III."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, architecture, **changes)
    is_deit3 = architecture.startswith("deit3")
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    _, height, width = (PRETRAINED_CFG | changes)["input_size"]
    patches = (height // _PATCH) * (width // _PATCH)
    weights = {
        "cls_token": random(1, 1, _WIDTH),
        "pos_embed": random(1, patches if is_deit3 else patches + 1, _WIDTH),
        "patch_embed.proj.weight": random(_WIDTH, 3, _PATCH, _PATCH),
        "patch_embed.proj.bias": random(_WIDTH),
        "norm.weight": 1 + random(_WIDTH),
        "norm.bias": random(_WIDTH),
        "head.weight": random(12, _WIDTH) * 2,
        "head.bias": random(12),
    }
    shapes = {"attn.qkv": (72, 24), "attn.proj": (24, 24), "mlp.fc1": (96, 24), "mlp.fc2": (24, 96)}
    for block in range(_DEPTH):
        for name, (rows, columns) in shapes.items():
            weights[f"blocks.{block}.{name}.weight"] = random(rows, columns)
            if not (name == "attn.qkv" and architecture.endswith("_miil")):
                weights[f"blocks.{block}.{name}.bias"] = random(rows)
        for name in ("norm1", "norm2"):
            weights[f"blocks.{block}.{name}.weight"] = 1 + random(_WIDTH)
            weights[f"blocks.{block}.{name}.bias"] = random(_WIDTH)
        if is_deit3:
            for name in ("ls1", "ls2"):
                weights[f"blocks.{block}.{name}.gamma"] = random(_WIDTH)
    save_file(weights, folder / "model.safetensors")
    return folder


def forward(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """The logits [batch, classes] of normalised [batch, 3, height, width], step by step as timm's module does it."""
    import torch
    import torch.nn.functional as F

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (_WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    x = F.conv2d(inputs, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=_PATCH)
    x = x.flatten(2).transpose(1, 2)
    token = weights["cls_token"].expand(len(x), -1, -1)
    has_position = weights["pos_embed"].shape[1] > x.shape[1]
    x = (
        torch.cat([token, x], 1) + weights["pos_embed"]
        if has_position
        else torch.cat([token, x + weights["pos_embed"]], 1)
    )
    for block in range(_DEPTH):
        name = f"blocks.{block}."
        qkv = linear(f"{name}attn.qkv", norm(f"{name}norm1", x))
        query, key, value = qkv.reshape(len(x), -1, 3, _HEADS, _WIDTH // _HEADS).permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-2, -1) * (_WIDTH // _HEADS) ** -0.5).softmax(dim=-1)
        attended = (attention @ value).transpose(1, 2).reshape(x.shape)
        x = x + weights.get(f"{name}ls1.gamma", 1) * linear(f"{name}attn.proj", attended)
        hidden = F.gelu(linear(f"{name}mlp.fc1", norm(f"{name}norm2", x)))
        x = x + weights.get(f"{name}ls2.gamma", 1) * linear(f"{name}mlp.fc2", hidden)
    return linear("head", norm("norm", x)[:, 0])
