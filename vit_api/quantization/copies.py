"""Writes the copy of a checkpoint that a verdict is about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_api.checkpoints.checkpoint import PROCESSOR_FILES, Checkpoint
from vit_api.checkpoints.weights import INDEX, weight_files


def copy_checkpoint(checkpoint: Checkpoint, out: Path, added: Mapping[str, Any]) -> None:
    """Copy a checkpoint's files to a folder, with these keys added to config.json."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (*PROCESSOR_FILES, INDEX, *weight_files(checkpoint.path)):
        source = checkpoint.path / name
        if source.is_file():
            shutil.copyfile(source, out / name)
    config = json.loads((checkpoint.path / "config.json").read_bytes())
    (out / "config.json").write_text(json.dumps(config | dict(added), indent=2) + "\n")
