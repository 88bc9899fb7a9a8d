"""The models of a server as operators have changed them, in a file, for the next start.

The file holds a digest of the list that the server was started with. If the list has changed since, it is what counts:
whoever changes it wants it to be served. A file that can't be read stops the start: the server would serve other models
than its operators have decided, without a sign of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_api.deployments.listing import Deployment, DeploymentsError, load_deployments

_FILE = "models.json"
_FORMAT = 1


class ModelStateError(Exception):
    """The file can't be read or written; the message names it."""


class ModelState:
    """The file of a server.

    Args:
        directory: Where it is; created if it does not exist.
        listed: The list that the server is started with.
    """

    def __init__(self, directory: str, listed: Sequence[Deployment]) -> None:
        self._path = Path(directory).expanduser() / _FILE
        self._digest = _digest_of(listed)

    def read(self) -> str | None:
        """Return the models as JSON, as in the setting that lists them; None if the list is what counts.

        Raises:
            ModelStateError: The file can't be read, or the directory not be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = self._path.read_bytes() if self._path.exists() else None
            if not os.access(self._path.parent, os.W_OK):
                raise ModelStateError(f"The directory {self._path.parent} can't be written.")
        except OSError as error:
            raise ModelStateError(f"{self._path} can't be read: {error.strerror}.") from None
        if content is None:
            return None
        try:
            document = json.loads(content)
            known, digest, models = document["format"], document["listed"], json.dumps(document["models"])
            load_deployments(models)
        except (ValueError, KeyError, TypeError, RecursionError, DeploymentsError) as error:
            raise ModelStateError(
                f"{self._path} is damaged ({error}). Restore it, or remove it to begin with the list of VIT_API_MODELS."
            ) from None
        if known != _FORMAT:
            raise ModelStateError(f"{self._path} has the format {known}, and this version reads {_FORMAT}. Remove it.")
        return models if digest == self._digest else None

    def is_outdated(self) -> bool:
        """Return whether there is a file for another list than this one."""
        return self._path.exists() and self.read() is None

    def save(self, deployments: Sequence[Deployment]) -> None:
        """Write the models; a crash at any moment leaves either the old file or the new one.

        Raises:
            OSError: It can't be written.
        """
        models = [_written(one) for one in deployments]
        document = {"format": _FORMAT, "listed": self._digest, "models": models}
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _written(deployment: Deployment) -> dict[str, Any]:
    return deployment.model_dump(exclude_none=True)


def _digest_of(deployments: Sequence[Deployment]) -> str:
    text = json.dumps([_written(one) for one in deployments], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
