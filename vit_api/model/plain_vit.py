"""Reads a plain ViT in timm's format as a `ViTNetwork`.

Must not know devices, batching or HTTP.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vit_api.checkpoints.hub import is_timm
from vit_api.checkpoints.timm_architectures import NotPlain, PlainViT, Shapes
from vit_api.checkpoints.timm_format import find_plain_vit, read_image_size
from vit_api.checkpoints.weights import SINGLE, tensor_shapes
from vit_api.model.rotary import make_rotation, split_pairs
from vit_api.model.vit_config import ViTConfig
from vit_api.model.vit_network import ViTNetwork

_PARTS = {
    "norm1": "layernorm_before",
    "attn.norm": "attention.norm",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.norm": "mlp.norm",
    "mlp.fc2": "mlp.fc2",
}
_WHOLE = {
    "norm_pre": "vit.embeddings.norm",
    "norm": "vit.layernorm",
    "fc_norm": "vit.layernorm",
    "head": "classifier",
}
_SCALED = {"ls1": "attention.o_proj", "ls2": "mlp.fc2", "gamma_1": "attention.o_proj", "gamma_2": "mlp.fc2"}


def read_plain_vit(folder: Path) -> PlainViT | None:
    """Return what the tensors of a plain ViT in timm's format do not show; None for any other checkpoint."""
    config = json.loads((folder / "config.json").read_bytes())
    if not is_timm(config):
        return None
    try:
        return find_plain_vit(config, tensor_shapes(folder / SINGLE))
    except NotPlain:
        return None


def read_config(folder: Path, plain: PlainViT) -> ViTConfig:
    """Return the configuration that the shapes of the weights, and the input size, amount to."""
    shapes = tensor_shapes(folder / SINGLE)
    width, _, patch_height, patch_width = shapes["patch_embed.proj.weight"]
    size = shapes["blocks.0.mlp.fc2.weight"][1]
    is_gated = "blocks.0.mlp.fc1_g.weight" in shapes or shapes["blocks.0.mlp.fc1.weight"][0] == 2 * size
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=_layers(shapes),
        num_attention_heads=plain.heads,
        intermediate_size=size,
        image_size=read_image_size(json.loads((folder / "config.json").read_bytes())),
        patch_size=(patch_height, patch_width),
        num_labels=shapes["head.weight"][0],
        hidden_act="silu" if is_gated else plain.activation,
        layer_norm_eps=plain.eps,
        prefix_tokens=sum(shapes[name][1] for name in ("cls_token", "reg_token") if name in shapes),
        pools_patches=plain.pools_patches,
        pools_first="fc_norm.weight" in shapes,
        has_pre_norm="norm_pre.weight" in shapes,
        has_gated_mlp=is_gated,
        has_attention_norm="blocks.0.attn.norm.weight" in shapes,
        has_mlp_norm="blocks.0.mlp.norm.weight" in shapes,
        has_rotary=plain.rotary is not None,
        has_position_bias="blocks.0.attn.relative_position_bias_table" in shapes,
    )


def load_plain_vit(folder: Path, plain: PlainViT, dtype: torch.dtype, device: torch.device) -> ViTNetwork:
    """Load a plain ViT.

    Raises:
        RuntimeError: A tensor does not have the shape that the others imply.
    """
    config = read_config(folder, plain)
    weights = _Conversion(load_file(folder / SINGLE), config, plain).run()
    return ViTNetwork.of_weights(
        config, {name: tensor.to(device, dtype, copy=True) for name, tensor in weights.items()}
    )


def _layers(shapes: Shapes) -> int:
    return 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))


class _Conversion:
    """Turn timm's weights into those of a `ViTNetwork`, in float32.

    What timm computes between the layers is folded in: layer scales into the matrices before them, and biases that a
    model does without are zeros.
    """

    def __init__(self, weights: dict[str, Tensor], config: ViTConfig, plain: PlainViT) -> None:
        self._old = {name: tensor.float() for name, tensor in weights.items()}
        self._config = config
        self._rotary = plain.rotary
        self._new: dict[str, Tensor] = {}

    def run(self) -> dict[str, Tensor]:
        """Return the weights by the names of `ViTNetwork`."""
        self._embeddings()
        for old, new in _WHOLE.items():
            if f"{old}.weight" in self._old:
                self._copy(old, new)
        if self._rotary is not None:
            head_size = self._config.hidden_size // self._config.num_attention_heads
            rotation = make_rotation(self._rotary, head_size, *self._config.grid, self._config.prefix_tokens)
            self._new |= {"vit.rotary.cosine": rotation.cosine, "vit.rotary.sine": rotation.sine}
        for block in range(self._config.num_hidden_layers):
            self._block(f"blocks.{block}.", f"vit.layers.{block}.")
        return self._new

    def _copy(self, old: str, new: str) -> None:
        weight = self._old[f"{old}.weight"]
        bias = self._old.get(f"{old}.bias")
        self._new |= {f"{new}.weight": weight, f"{new}.bias": torch.zeros(len(weight)) if bias is None else bias}

    def _embeddings(self) -> None:
        width, tokens = self._config.hidden_size, self._config.num_tokens
        prefix = [self._old[name] for name in ("cls_token", "reg_token") if name in self._old]
        positions = self._old.get("pos_embed", torch.zeros(1, 0, width))
        # Without positions of their own (DeiT III, registers), the tokens before the patches have zeros.
        positions = torch.cat([torch.zeros(1, tokens - positions.shape[1], width), positions], dim=1)
        self._new |= {
            "vit.embeddings.cls_token": torch.cat([torch.zeros(1, 0, width), *prefix], dim=1),
            "vit.embeddings.position_embeddings": positions,
        }
        self._copy("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")

    def _block(self, old: str, new: str) -> None:
        if f"{old}mlp.fc1_g.weight" in self._old:
            for kind in ("weight", "bias"):
                gate, value = (self._old[f"{old}mlp.fc1_{part}.{kind}"] for part in "gx")
                self._old[f"{old}mlp.fc1.{kind}"] = torch.cat([gate, value])
        for part, name in _PARTS.items():
            if f"{old}{part}.weight" in self._old:
                self._copy(old + part, new + name)
        for letter, rows in zip("qkv", self._queries_keys_values(f"{old}attn."), strict=True):
            for kind, tensor in zip(("weight", "bias"), rows, strict=True):
                self._new[f"{new}attention.{letter}_proj.{kind}"] = tensor
        for scale, name in _SCALED.items():
            gamma = self._old.get(f"{old}{scale}.gamma", self._old.get(f"{old}{scale}"))
            if gamma is not None:
                self._new[f"{new}{name}.weight"] = gamma[:, None] * self._new[f"{new}{name}.weight"]
                self._new[f"{new}{name}.bias"] = gamma * self._new[f"{new}{name}.bias"]
        table = self._old.get(f"{old}attn.relative_position_bias_table")
        if table is not None:
            self._new[f"{new}attention.position_bias"] = _position_bias(table, *self._config.grid)

    def _queries_keys_values(self, old: str) -> list[tuple[Tensor, Tensor]]:
        """Return the matrix and the bias of a layer's queries, keys and values, which may be stacked."""
        stacked = self._old.get(f"{old}qkv.weight")
        if stacked is None:
            weights = tuple(self._old[f"{old}{letter}_proj.weight"] for letter in "qkv")
        else:
            weights = stacked.chunk(3)
        names = [(f"{old}{letter}_bias", f"{old}{letter}_proj.bias") for letter in "qkv"]
        none = torch.zeros(len(weights[0]))
        biases = [self._old.get(first, self._old.get(second, none)) for first, second in names]
        if f"{old}qkv.bias" in self._old:
            biases = list(self._old[f"{old}qkv.bias"].chunk(3))
        queries, keys, values = zip(weights, biases, strict=True)
        if self._rotary is not None and self._rotary.is_interleaved:
            heads = self._config.num_attention_heads
            queries, keys = ((split_pairs(weight, heads), split_pairs(bias, heads)) for weight, bias in (queries, keys))
        return [queries, keys, values]


def _position_bias(table: Tensor, rows: int, columns: int) -> Tensor:
    """Return the bias of each pair of tokens, [1, heads, tokens, tokens], from BEiT's table of offsets.

    The table [offsets, heads] has the offsets of patches, then those from the class token to patches, from patches to
    it, and to itself.
    """
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    rows_apart = row.flatten()[:, None] - row.flatten() + rows - 1
    columns_apart = column.flatten()[:, None] - column.flatten() + columns - 1
    offsets = (2 * rows - 1) * (2 * columns - 1)
    index = torch.empty(rows * columns + 1, rows * columns + 1, dtype=torch.long)
    index[1:, 1:] = rows_apart * (2 * columns - 1) + columns_apart
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return table[index].permute(2, 0, 1)[None]
