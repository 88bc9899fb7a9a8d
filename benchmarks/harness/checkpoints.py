"""Checkpoints for benchmarks: models of a real size, with random weights from a seed, since no hub may be reachable."""

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


def save_vit_base(folder: Path) -> None:
    """Save a ViT-B/16 for 224 x 224 pixels and 1,000 classes, as google/vit-base-patch16-224 is, to a folder."""
    _save(ViTConfig(num_labels=1000), folder)


def save_small_vit(folder: Path) -> None:
    """Save a ViT for 224 x 224 pixels that takes some 10 ms an image on one core, to a folder."""
    config = ViTConfig(
        hidden_size=192, num_attention_heads=3, num_hidden_layers=4, intermediate_size=768, num_labels=1000
    )
    _save(config, folder)


def _save(config: ViTConfig, folder: Path) -> None:
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
