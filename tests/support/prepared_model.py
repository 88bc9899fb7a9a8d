"""Prepares a checkpoint's model as a worker does, and prints whether that took transformers."""

from __future__ import annotations

import sys

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.model.model import VisionModel

if __name__ == "__main__":
    VisionModel(load_checkpoint(sys.argv[1]), "cpu", "auto", 1).prepare("auto")
    print("transformers" in sys.modules)
