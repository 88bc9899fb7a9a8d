"""Owns where torch.compile keeps what it compiled; knows nothing of models, and imports no torch."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from pathlib import Path

logger = logging.getLogger(__name__)

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have torch keep compiled code in the user's cache directory, so that later starts find it.

    torch's own choice is the system's folder for temporary files, which a restart of the machine or container empties.
    It has to be called before torch and transformers are imported, since they write their choice into the environment.

    Args:
        environment: Where torch looks. A folder that it names already stays as it is.
    """
    environment.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    if _FOLDER in environment:
        return
    base = environment.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "vit-api" / "inductor"
    try:
        # It holds code that will be run: nobody else may write there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        logger.info("compiled code is kept where torch chooses: %s", error)
    else:
        environment[_FOLDER] = str(folder)
