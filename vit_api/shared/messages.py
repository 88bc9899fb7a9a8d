"""What the main process and the HTTP processes tell each other while models are loaded and unloaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.deployments.listing import Deployment


@dataclass(frozen=True)
class DeploymentPlan:
    """What a process needs to make the shared parts of a deployment as another process has made them.

    Attributes:
        place: Its number in the slot table.
        spec: How it is run.
        checkpoint: The fields of its checkpoint, labels included.
        identity: Distinguishes the checkpoint; empty if nothing needs that.
        workers: Number of its workers.
        first_worker: The number of the first of them.
    """

    place: int
    spec: Deployment
    checkpoint: dict[str, Any]
    identity: str
    workers: int
    first_worker: int

    @staticmethod
    def fields_of(checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the fields of a checkpoint; pickled, it would be read again, from files that may have changed."""
        return {one.name: getattr(checkpoint, one.name) for one in fields(checkpoint)}


@dataclass(frozen=True)
class CatalogueEntry:
    """A deployment in the catalogue.

    Attributes:
        place: Its number in the slot table.
        spec: How it is run, and its traffic.
        is_unloading: Whether no further requests are for it.
    """

    place: int
    spec: Deployment
    is_unloading: bool = False


@dataclass(frozen=True)
class Catalogue:
    """What the server serves from now on; from the main process to every HTTP process.

    Attributes:
        generation: Its number.
        entries: All deployments, in their order.
        loading: Names and versions of those that are being loaded.
        added: A deployment that was not there before; its descriptors come with the message.
    """

    generation: int
    entries: tuple[CatalogueEntry, ...]
    loading: tuple[tuple[str, str], ...] = ()
    added: DeploymentPlan | None = None


@dataclass(frozen=True)
class Applied:
    """An HTTP process serves by the catalogue with this generation."""

    generation: int


@dataclass(frozen=True)
class Drained:
    """An HTTP process has answered every request for the deployment that is unloading."""

    place: int


@dataclass(frozen=True)
class Command:
    """What an operator asks for; from an HTTP process to the main process.

    Attributes:
        number: Its number in the HTTP process.
        kind: load, unload or traffic.
        name: The model's name.
        arguments: What its kind takes.
    """

    number: int
    kind: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CommandReply:
    """How a command ended.

    Attributes:
        number: That of the command.
        problem: Why nothing was changed; None if it was done.
        code: The kind of the problem: bad_request, not_found or load_failed.
        version: The version that was loaded or unloaded.
        warning: What did not succeed beside the command itself; None if all did.
    """

    number: int
    problem: str | None = None
    code: str = ""
    version: str | None = None
    warning: str | None = None
