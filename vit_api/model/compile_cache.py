"""Owns the location of torch.compile's cache. Must not import torch or know models."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from pathlib import Path

logger = logging.getLogger(__name__)

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make torch cache compiled code in the user's cache directory, so that later starts reuse it.

    By default torch uses the system's temporary folder, which is empty after a restart of the machine or container.
    Call this before torch and transformers are imported, because they write their choice into the environment.

    Args:
        environment: The variables that torch reads. A folder that is already set is kept.
    """
    environment.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    if _FOLDER in environment:
        return
    base = environment.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "vit-api" / "inductor"
    try:
        # It holds code that will be run: no other user may write there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        logger.info("The cache for compiled code can't be created; torch uses its default: %s", error)
    else:
        environment[_FOLDER] = str(folder)
