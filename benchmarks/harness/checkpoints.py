"""Makes checkpoints of realistic size with seeded random weights, since no hub may be reachable."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification

_PROCESSOR = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
}
_SHARPENING = 8


def save_vit_base(folder: Path) -> None:
    """Save a ViT-B/16 for 224 x 224 pixels and 1,000 classes, like google/vit-base-patch16-224."""
    _save(ViTConfig(num_labels=1000), folder)


def save_vit_small(folder: Path) -> None:
    """Save a ViT-S/14 for 224 x 224 pixels and 1,000 classes, of the size of DINOv2-small."""
    config = ViTConfig(patch_size=14, hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
    _save(config, folder)


def save_small_vit(folder: Path, layers: int = 4) -> None:
    """Save a ViT for 224 x 224 pixels that takes about 2.5 ms per layer and image on one core."""
    config = ViTConfig(
        hidden_size=192, num_attention_heads=3, num_hidden_layers=layers, intermediate_size=768, num_labels=1000
    )
    _save(config, folder)


def save_two_layer_vit(folder: Path) -> None:
    """Save a ViT for 224 x 224 pixels that takes less time than the decoding and the resize of a photo.

    With it, what a server does apart from the forward pass shows at the size of a ViT-B/16's pixels.
    """
    config = ViTConfig(
        hidden_size=64, num_attention_heads=2, num_hidden_layers=2, intermediate_size=128, num_labels=100
    )
    _save(config, folder)


def save_tiny_vit(folder: Path) -> None:
    """Save a ViT for 32 x 32 pixels that takes about 1 ms per image on one core."""
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=128,
        num_labels=100,
    )
    _save(config, folder)


def _save(config: ViTConfig, folder: Path) -> None:
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    # Random weights make all classes about equally probable. Sharpening gives the top class a clear lead, so that a
    # wrong one shows.
    with torch.no_grad():
        model.classifier.weight *= _SHARPENING
    model.save_pretrained(folder)
    processor = _PROCESSOR | {"size": {"height": config.image_size, "width": config.image_size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
