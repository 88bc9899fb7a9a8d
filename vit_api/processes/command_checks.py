"""What operators may do with the models of a running server: each request is checked before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.deployments.listing import Deployment, DeploymentsError, read_deployment, serving_versions
from vit_api.deployments.traffic import changed, traffic_of_new
from vit_api.ipc.records import max_packed_size
from vit_api.processes.commands import CommandRefused
from vit_api.settings import ENV_PREFIX
from vit_api.shared.deployment import SettingError, SharedDeployment
from vit_api.shared.messages import DeploymentPlan
from vit_api.shared.server import Shared, check_mirrors

_SHARES = {"traffic", "mirror_traffic"}
"""What may be changed of a version without loading it again."""


class CommandChecks:
    """Check commands. All methods raise CommandRefused, which says why.

    Args:
        shared: What the processes share, and so the deployments.
        listed: The deployments at the start, as the operator wrote them.

    Attributes:
        written: Every deployment that there was since the start, as the operator wrote it, by its title.
    """

    def __init__(self, shared: Shared, listed: Sequence[Deployment]) -> None:
        self._shared = shared
        self.written = {one.title: one for one in listed}

    def spec_of(self, name: str, arguments: dict[str, Any]) -> Deployment:
        """Return what is to be loaded."""
        versions = self.versions_of(name)
        entry = {"name": name, **arguments}
        if isinstance(entry.get("version"), int):
            entry["version"] = str(entry["version"])
        if "model" not in entry:
            known = [one for one in self.written.values() if one.name == name]
            known = [one for one in known if entry.get("version", one.version) == one.version]
            if not known:
                raise CommandRefused(
                    f"It is not known where the model {name!r} is: say so in the parameter 'config', such as "
                    '{"model": "/models/nsfw-2", "version": "2"}.',
                    "bad_request",
                )
            entry = known[-1].model_dump(exclude_none=True, exclude=_SHARES) | entry
        if "version" not in entry:
            numbers = [int(one.spec.version) for one in versions if one.spec.version.isdecimal()]
            entry["version"] = str(max(numbers, default=0) + 1)
        try:
            return read_deployment(f"The model {name!r}", entry)
        except DeploymentsError as error:
            raise CommandRefused(f"{error}.", "bad_request") from None

    def is_loaded(self, written: Deployment) -> bool:
        """Return whether exactly this is loaded.

        Raises:
            CommandRefused: Another model is loaded as this version.
        """
        for one in self.versions_of(written.name):
            if one.spec.version == written.version:
                if self._same(self.written[one.spec.title], written) and not one.worker_board.is_gone():
                    return True
                raise CommandRefused(
                    f"Version {written.version!r} of {written.name!r} is loaded already. Unload it first, or give this "
                    "one another 'version'.",
                    "bad_request",
                )
        return False

    @staticmethod
    def _same(one: Deployment, other: Deployment) -> bool:
        return one.model_dump(exclude=_SHARES) == other.model_dump(exclude=_SHARES)

    def versions_of(self, name: str) -> list[SharedDeployment]:
        """Return the versions of a model, those that are being unloaded included; none if there is no such model."""
        return [one for one in self._shared.deployments if one.spec.name == name]

    def free_place(self) -> int:
        """Return the number of a deployment that there is not."""
        taken = {one.number for one in self._shared.deployments}
        free = [place for place in range(self._shared.table.deployments) if place not in taken]
        if not free:
            raise CommandRefused(
                f"The server has {len(taken)} versions of models, as many as {ENV_PREFIX}MAX_MODELS allows. Unload one "
                "first, or raise that and restart the server.",
                "bad_request",
            )
        return free[0]

    def check_joining(self, spec: Deployment) -> None:
        """Refuse a version whose traffic or mirror traffic does not go with the other versions of its model."""
        others = [one.spec for one in self.versions_of(spec.name)]
        try:
            serving_versions(spec.name, [*others, spec])
            traffic_of_new(others, spec.traffic)
        except DeploymentsError as error:
            raise CommandRefused(f"{error}.", "bad_request") from None

    @staticmethod
    def check_pixels(described: Sequence[tuple[Deployment, Checkpoint]]) -> None:
        """Refuse versions of a model of which one is to mirror others whose images are decoded in another way."""
        try:
            check_mirrors(described)
        except SettingError as error:
            raise CommandRefused(plain(error), "bad_request") from None

    def check_size(self, checkpoint: Checkpoint) -> None:
        """Refuse a model whose images or answers do not fit in the slots."""
        shape, table = checkpoint.preprocessing.pixel_shape, self._shared.table
        if math.prod(shape) > table.pixel_bytes:
            side = math.isqrt(table.pixel_bytes // 3)
            raise CommandRefused(
                f"The model takes images of {shape[1]}x{shape[0]} pixels, and the server's slots hold {side}x{side}. "
                f"Set {ENV_PREFIX}MAX_INPUT_SIDE to at least {max(shape[:2])}, and restart the server."
            )
        if max_packed_size(len(checkpoint.labels)) > table.long_bytes:
            raise CommandRefused(
                f"The model has {len(checkpoint.labels)} labels, more than fit in the server's slots. Put it in "
                f"{ENV_PREFIX}MODELS, and restart the server."
            )

    def plan(self, place: int, spec: Deployment, checkpoint: Checkpoint, identity: str) -> DeploymentPlan:
        """Return what a new deployment will be.

        Args:
            place: Its number.
            spec: How it is to be run.
            checkpoint: The model.
            identity: Distinguishes the checkpoint from others.
        """
        versions = self.versions_of(spec.name)
        spec = spec.model_copy(update={"traffic": traffic_of_new([one.spec for one in versions], spec.traffic)})
        with_new = [(one.spec, one.checkpoint) for one in versions]
        self.check_pixels([*with_new, (spec, checkpoint)])
        workers = len(self._shared.devices) * (spec.workers_per_device or 1)
        first = max((one.first_worker + one.worker_board.workers for one in self._shared.deployments), default=0)
        return DeploymentPlan(place, spec, DeploymentPlan.fields_of(checkpoint), identity, workers, first)

    def targets(self, name: str, version: str | None) -> list[SharedDeployment]:
        """Return what is to be unloaded."""
        versions = self.versions_of(name)
        targets = [one for one in versions if version in (None, one.spec.version)]
        if not targets:
            what = f"no model {name!r}" if not versions else f"no version {version!r} of the model {name!r}"
            raise CommandRefused(f"There is {what}.", "not_found")
        left = [one for one in versions if one not in targets]
        if any(one.spec.traffic for one in targets) and left:
            raise CommandRefused(
                f"Version {version!r} of {name!r} has traffic. Give it to other versions first.", "bad_request"
            )
        if not left and name == self._shared.deployments[0].spec.name:
            raise CommandRefused(
                f"{name!r} is the default model, which requests without a name are for; it can't be unloaded.",
                "bad_request",
            )
        return targets

    def changed_traffic(self, name: str, arguments: dict[str, Any]) -> list[Deployment]:
        """Return the versions of a model with their new traffic and mirror traffic, in their order."""
        versions = self.versions_of(name)
        if not versions:
            raise CommandRefused(f"There is no model {name!r}.", "not_found")
        try:
            specs = changed([one.spec for one in versions], arguments["traffic"], arguments["mirror_traffic"])
        except DeploymentsError as error:
            raise CommandRefused(f"{error}.", "bad_request") from None
        for one, spec in zip(versions, specs, strict=True):
            gains = (spec.traffic and not one.spec.traffic) or (spec.mirror_traffic and not one.spec.mirror_traffic)
            if gains and one.worker_board.is_gone():
                raise CommandRefused(
                    f"Version {spec.version!r} of {name!r}: {one.worker_board.state_text()}.", "bad_request"
                )
        self.check_pixels([(spec, one.checkpoint) for one, spec in zip(versions, specs, strict=True)])
        return list(specs)


def plain(error: SettingError) -> str:
    """Return why a setting is refused, for one that is no variable."""
    return str(error).removeprefix(f"{ENV_PREFIX}MODELS: ")
