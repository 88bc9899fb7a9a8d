"""Loads any image classifier that transformers has. Must not know engines, dtypes to choose from, or batches.

The import of this module takes seconds, so `loading` imports it only for a checkpoint that needs it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of the network in a checkpoint's folder."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    arguments = getattr(config, "model_args", None)
    if isinstance(arguments, dict):  # transformers' wrapper of timm passes the number of classes, too
        arguments.pop("num_classes", None)
    return config


def load_classifier(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load the classifier in a folder from safetensors, with code from transformers only."""
    transformers_logging.disable_progress_bar()
    network: PreTrainedModel = AutoModelForImageClassification.from_pretrained(
        folder,
        config=read_config(folder),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=dtype,
    )
    return network.to(device).requires_grad_(requires_grad=False).eval()
