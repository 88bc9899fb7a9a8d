"""What timm itself says of its plain ViTs: a table of them, and logits of small seeded ones.

With requirements-timm.txt installed, `python -m tests.support.timm_references` writes timm_references.json, so that
tests compare with timm without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

PATH = Path(__file__).with_suffix(".json")
CLASSES = 12
_HEAD_SIZE, _DEPTH, _IMAGES = 8, 2, 2

# One of each kind, and the grid (rows, columns) of its patches.
_KINDS = {
    "vit_tiny_patch16_224": (3, 3),
    "vit_base_patch16_224_miil": (3, 3),
    "deit3_small_patch16_224": (2, 4),
    "vit_base_patch16_clip_224": (3, 3),
    "vit_base_patch16_clip_quickgelu_224": (3, 3),
    "vit_medium_patch16_reg4_gap_256": (3, 2),
    "vit_base_patch16_gap_224": (3, 3),
    "vit_so400m_patch16_siglip_gap_256": (3, 3),
    "vit_small_patch14_reg4_dinov2": (3, 3),
    "vit_giant_patch14_dinov2": (3, 3),
    "eva_large_patch14_196": (3, 3),
    "eva_giant_patch14_224": (3, 3),
    "eva_giant_patch14_clip_224": (3, 3),
    "eva02_tiny_patch14_224": (3, 4),
    "eva02_base_patch14_448": (4, 4),
    "eva02_base_patch16_clip_224": (3, 3),
    "vit_base_patch16_rope_reg1_gap_256": (3, 4),
    "vit_small_patch16_rope_224": (3, 4),
    "vit_small_patch16_rope_ape_224": (3, 3),
    "vit_small_patch16_dinov3": (3, 4),
    "vit_small_plus_patch16_dinov3_qkvb": (3, 3),
    "vit_base_patch16_lingbot": (3, 3),
    "beit_base_patch16_224": (3, 4),
    "beitv2_base_patch16_224": (3, 3),
    "beit3_base_patch16_224": (3, 3),
}


def fill(shapes: Mapping[str, list[int]]) -> dict[str, NDArray[np.float32]]:
    """Return seeded weights of these shapes, under which different images have clearly different logits."""
    generator = np.random.default_rng(0)
    weights = {}
    for name in sorted(shapes):
        values = generator.standard_normal(shapes[name])
        if values.ndim >= 2 and name.endswith(".weight"):
            values *= 1.5 / np.sqrt(values[0].size)
        else:
            values = 0.3 * values + ("norm" in name and name.endswith(".weight"))
        weights[name] = values.astype(np.float32)
    return weights


def images(height: int, width: int) -> NDArray[np.uint8]:
    """Return seeded images [images, height, width, 3]."""
    return np.random.default_rng(1).integers(0, 256, (_IMAGES, height, width, 3), dtype=np.uint8)


def save_checkpoint(folder: Path, architecture: str, reference: Mapping[str, Any]) -> Path:
    """Save the model of a reference in timm's hub format."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: torch.from_numpy(values) for name, values in fill(reference["shapes"]).items()}
    save_file(weights, folder / "model.safetensors")
    is_square = reference["input_size"][1] == reference["input_size"][2]
    config = {
        "architecture": architecture,
        "num_classes": CLASSES,
        "global_pool": reference["global_pool"],
        "model_args": reference["model_args"],
        "pretrained_cfg": {
            "input_size": reference["input_size"],
            "crop_mode": "center" if is_square else "squash",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _reference(architecture: str, grid: tuple[int, int]) -> dict[str, Any]:
    import timm
    import torch

    with torch.device("meta"):
        whole = timm.create_model(architecture, num_classes=CLASSES)
    patch = whole.patch_embed.patch_size[0]
    heads = whole.blocks[0].attn.num_heads
    size = [patch * grid[0], patch * grid[1]]
    arguments = {"depth": _DEPTH, "embed_dim": heads * _HEAD_SIZE, "img_size": size}
    model: Any = timm.create_model(architecture, num_classes=CLASSES, **arguments).eval()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(values) for name, values in fill(shapes).items()})
    inputs = (torch.from_numpy(images(*size)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        logits: Tensor = model(inputs)
    return {
        "input_size": [3, *size],
        "global_pool": model.global_pool,
        "model_args": arguments,
        "shapes": shapes,
        "logits": [[round(logit, 5) for logit in row] for row in logits.tolist()],
    }


def _facts(architecture: str) -> list[Any] | None:
    """Return [heads, epsilon, activation, pooling, rotary temperature]; None for an architecture with other parts."""
    import timm
    import torch

    with torch.device("meta"):
        model: Any = timm.create_model(architecture, num_classes=CLASSES)
    block = model.blocks[0]
    heads = getattr(getattr(block, "attn", None), "num_heads", None)
    norm = getattr(block, "norm1", None)
    if heads is None or not isinstance(norm, torch.nn.LayerNorm):
        return None
    rope = getattr(model, "rope", None)
    temperature = None if rope is None else rope.temperature
    return [heads, norm.eps, type(block.mlp.act).__name__, model.global_pool, temperature]


def _write() -> None:
    import timm

    modules = ("vision_transformer", "deit", "beit", "eva")
    names = [name for module in modules for name in timm.list_models(module=module)]
    facts = {name: _facts(name) for name in sorted(names)}
    content = {
        "timm": timm.__version__,
        "architectures": {name: found for name, found in facts.items() if found is not None},
        "models": {name: _reference(name, grid) for name, grid in _KINDS.items()},
    }
    members = ",\n".join(
        f'"{key}": {{\n' + ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in value.items()) + "\n}"
        for key, value in content.items()
        if isinstance(value, dict)
    )
    PATH.write_text(f'{{\n"timm": {json.dumps(content["timm"])},\n{members}\n}}\n')


if __name__ == "__main__":
    _write()
