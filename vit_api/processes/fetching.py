"""Finds, downloads and checks a model in a process of its own, so that nothing else waits for that.

Knows nothing of what happens to the model then.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from vit_api.checkpoints.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from vit_api.deployments.listing import Deployment
from vit_api.processes import ending
from vit_api.processes.signals import STOP_SIGNALS, blocked, die_with_parent, leave_signals_to_parent
from vit_api.settings import Settings
from vit_api.shared.deployment import check_deployable, needed_identity
from vit_api.shared.messages import DeploymentPlan


class FetchError(Exception):
    """The model can't be served; the message says why."""


class Fetch:
    """A model that is being fetched.

    Args:
        spec: Which model.
        settings: The server's settings.
        devices: The devices that it will run on, as torch names them.
    """

    def __init__(self, spec: Deployment, settings: Settings, devices: Sequence[str]) -> None:
        self._reader, writer = mp.Pipe(duplex=False)
        self._process = mp.get_context("fork").Process(
            target=_run, args=(writer, spec, settings, devices, os.getpid()), name="fetch", daemon=True
        )
        with blocked(*STOP_SIGNALS, signal.SIGHUP):  # until the process has its own handlers
            self._process.start()
        writer.close()

    def fileno(self) -> int:
        """Return the file descriptor that can be read once it is done."""
        return self._reader.fileno()

    def result(self) -> tuple[Checkpoint, str] | None:
        """Return the checkpoint and its identity; None if it is not there yet.

        Raises:
            FetchError: The model can't be served.
        """
        if not self._reader.poll():
            return None
        try:
            fields, identity, problem = self._reader.recv()
        except EOFError:
            raise FetchError("The process that fetched the model ended. The server's log may say why.") from None
        if problem is not None:
            raise FetchError(problem)
        return Checkpoint(**fields), identity

    def end(self) -> None:
        """End it, whether or not it is done."""
        ending.end([self._process])
        self._reader.close()


def _run(writer: Connection, spec: Deployment, settings: Settings, devices: Sequence[str], parent: int) -> None:
    signal.set_wakeup_fd(-1)  # inherited from the parent, whose socket it would write to
    leave_signals_to_parent()
    die_with_parent(parent)
    result: tuple[dict[str, Any], str, str | None]
    try:
        checkpoint = load_checkpoint(spec.model, spec.revision, served_name=spec.name)
        check_deployable(checkpoint, spec.dtype, settings, devices)
        result = DeploymentPlan.fields_of(checkpoint), needed_identity(checkpoint, spec.dtype, settings), None
    except CheckpointError as error:
        result = {}, "", str(error)
    except OSError as error:
        result = {}, "", f"The model {spec.model!r} can't be read: {error.strerror or error}."
    writer.send(result)
