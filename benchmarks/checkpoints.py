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
    torch.manual_seed(0)
    config = ViTConfig(num_labels=1000)
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
