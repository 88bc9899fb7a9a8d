"""Loads and unloads models while the server runs, and changes their traffic. For the main process.

Theory of operation
-------------------
HTTP processes send commands, which are run one after the other; see `commands`.

To load, the model is fetched and checked in a process of its own; then its shared memory is made and its workers are
started. Until they are ready, no HTTP process knows of it, so a load that fails changes nothing. Then the catalogue is
published: every HTTP process gets it with the descriptors of the shared memory, and acknowledges that it serves by it.
An HTTP process that is started later is forked from this one, which has all of that. To unload, the catalogue says
that no further request is for the deployment; once every HTTP process has answered those that it had, and no slot holds
an image of it, its workers are ended and its place in the slot table is free.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.deployments.listing import Deployment
from vit_api.deployments.traffic import with_new
from vit_api.ipc import descriptors
from vit_api.ipc.channel import ChannelClosed
from vit_api.processes.channels import Channels
from vit_api.processes.command_checks import CommandChecks, plain
from vit_api.processes.commands import CommandQueue, CommandRefused, CommandResult, Running
from vit_api.processes.fetching import Fetch, FetchError
from vit_api.processes.publishing import Publisher
from vit_api.processes.supervisor import WorkerGroup
from vit_api.shared.deployment import SettingError, SharedDeployment
from vit_api.shared.messages import Command, DeploymentPlan
from vit_api.shared.server import Shared

logger = logging.getLogger(__name__)

_SLACK_S = 30.0
"""Unloading waits so much longer than a request may take, before it gives up what is left."""

Save = Callable[[Sequence[Deployment]], None]


class Workers(NamedTuple):
    """Starts and ends the workers of deployments.

    Attributes:
        start: Starts those of a deployment, which is on trial until `accept`.
        end: Ends those of the deployment with this number.
        problem: Returns why the workers of a deployment can't be started; empty if they are starting.
        accept: Treats a deployment's workers as those of any other from now on.
        give_up: Fails the images that wait for the workers of the deployment with this number.
    """

    start: Callable[[SharedDeployment], WorkerGroup]
    end: Callable[[int], None]
    problem: Callable[[SharedDeployment], str]
    accept: Callable[[int], None]
    give_up: Callable[[int], None]


class LiveModels:
    """The models of a server, as operators change them.

    Args:
        shared: What the processes share; changed here for those that are forked later.
        channels: To the HTTP processes.
        workers: Starts and ends workers.
        listed: The deployments at the start, as the operator wrote them.
        save: Keeps the deployments for the next start.
    """

    def __init__(
        self, shared: Shared, channels: Channels, workers: Workers, listed: Sequence[Deployment], save: Save
    ) -> None:
        self._shared = shared
        self._channels = channels
        self._workers = workers
        self._save = save
        self._checks = CommandChecks(shared, listed)
        self._publisher = Publisher(shared, channels)
        self._commands = CommandQueue(channels, self._run)
        self._fetch: Fetch | None = None

    def forking(self, number: int) -> None:
        """Note that an HTTP process is about to be forked, which begins with what there is now."""
        self._publisher.forking(number)

    def waits_for(self) -> list[Any]:
        """Return what `step` should be called for at once when it can be read."""
        return [*self._channels.ends.values(), *([] if self._fetch is None else [self._fetch])]

    def step(self) -> None:
        """Read what the HTTP processes say, and go on with the command that is run."""
        for number in list(self._channels.ends):
            self._read(number)
        if self._shared.readiness.is_draining():
            self._commands.refuse_all()
        else:
            self._commands.step()

    def _read(self, number: int) -> None:
        channel = self._channels.ends[number]
        try:
            while (received := channel.receive()) is not None:
                message = received[0]
                if isinstance(message, Command):
                    self._commands.add(number, message)
                else:
                    self._publisher.note(number, message)
        except ChannelClosed:
            self._channels.close(number)

    def _run(self, command: Command) -> Running:
        commands = {"load": self._load, "unload": self._unload, "traffic": self._traffic}
        return (yield from commands[command.kind](command.name, command.arguments))

    def _load(self, name: str, arguments: dict[str, Any]) -> Running:
        written = self._checks.spec_of(name, arguments)
        spec = self._shared.settings.complete(written)
        if self._checks.is_loaded(written):
            return CommandResult(spec.version)
        self._checks.check_joining(spec)
        place = self._checks.free_place()
        self._publisher.loading = ((spec.name, spec.version),)
        self._publisher.publish()
        try:
            checkpoint, identity = yield from self._fetched(spec)
            self._checks.check_size(checkpoint)
            yield from self._start(self._checks.plan(place, spec, checkpoint, identity))
            self._checks.written[spec.title] = written
        finally:
            if self._publisher.loading:
                self._publisher.loading = ()
                self._publisher.publish()
        yield from self._publisher.until_applied()
        return CommandResult(spec.version, self._keep())

    def _fetched(self, spec: Deployment) -> Generator[None, None, tuple[Checkpoint, str]]:
        self._fetch = Fetch(spec, self._shared.settings, self._shared.devices)
        try:
            while (result := self._fetch.result()) is None:
                yield
        except FetchError as error:
            raise CommandRefused(str(error)) from None
        finally:
            self._fetch.end()
            self._fetch = None
        return result

    def _start(self, plan: DeploymentPlan) -> Generator[None, None, None]:
        """Start a deployment, and serve it once its workers are ready."""
        made: list[int] = []
        try:
            deployment = self._make(plan, made)
            self._workers.start(deployment)
            try:
                yield from self._until_ready(deployment)
            except BaseException:
                self._workers.end(plan.place)
                raise
            self._publisher.loading = ()
            self._workers.accept(plan.place)
            self._add(deployment)
            self._publisher.publish(plan, made)
        finally:
            for descriptor in made:
                os.close(descriptor)

    def _make(self, plan: DeploymentPlan, made: list[int]) -> SharedDeployment:
        """Make what the processes share of a deployment; add its descriptors to a list, even if this fails."""
        try:
            with descriptors.recording(made):
                return self._shared.make_deployment(plan)
        except SettingError as error:
            raise CommandRefused(plain(error).removesuffix(".") + ".", "bad_request") from None
        except OSError as error:
            raise CommandRefused(f"The system refuses its queue and cache: {error.strerror}.") from None

    def _until_ready(self, deployment: SharedDeployment) -> Generator[None, None, None]:
        board = deployment.worker_board
        while board.ready_count() < board.workers:
            if problem := self._workers.problem(deployment):
                raise CommandRefused(problem)
            yield

    def _add(self, deployment: SharedDeployment) -> None:
        """Add a deployment behind the other versions of its model; its traffic is taken from them."""
        versions = self._checks.versions_of(deployment.spec.name)
        specs = with_new([one.spec for one in versions], deployment.spec.traffic or 0.0)
        for one, spec in zip(versions, specs, strict=True):
            one.spec = spec
        deployments = self._shared.deployments
        last = max((deployments.index(one) for one in versions), default=len(deployments) - 1)
        self._shared.set_deployments([*deployments[: last + 1], deployment, *deployments[last + 1 :]])

    def _unload(self, name: str, arguments: dict[str, Any]) -> Running:
        version = arguments.get("version")
        targets = self._checks.targets(name, version)
        for one in targets:
            self._publisher.unloading(one.number)
            one.is_unloading = True
        self._shared.set_deployments(self._shared.deployments)
        self._publisher.publish()
        yield from self._publisher.until_applied()
        limit_s = self._shared.settings.request_timeout_s + self._shared.settings.body_timeout_s + _SLACK_S
        end = time.monotonic() + limit_s
        while not all(self._publisher.is_drained(one.number) for one in targets):
            if time.monotonic() > end:
                logger.warning("requests for %r were still in flight after %g s", name, limit_s)
                break
            yield
        for one in targets:
            yield from self._empty_slots(one)
            self._workers.end(one.number)
            one.worker_board.mark_gone()
        self._shared.set_deployments([one for one in self._shared.deployments if one not in targets])
        self._publisher.publish()
        yield from self._publisher.until_applied()
        return CommandResult(version, self._keep())

    def _empty_slots(self, deployment: SharedDeployment) -> Generator[None, None, None]:
        """Wait until no slot holds an image of a deployment; images that are not answered in time are failed."""
        end = time.monotonic() + self._shared.settings.worker_stall_s + _SLACK_S
        while not deployment.table.is_empty():
            if time.monotonic() > end:
                self._workers.give_up(deployment.number)
            yield

    def _traffic(self, name: str, arguments: dict[str, Any]) -> Running:
        specs = self._checks.changed_traffic(name, arguments)
        for one, spec in zip(self._checks.versions_of(name), specs, strict=True):
            one.spec = spec
        self._shared.set_deployments(self._shared.deployments)
        self._publisher.publish()
        yield from self._publisher.until_applied()
        return CommandResult(warning=self._keep())

    def _keep(self) -> str | None:
        """Keep what there is for the next start; if that fails, return a warning."""
        specs = [
            self._checks.written[one.spec.title].model_copy(
                update={"traffic": one.spec.traffic, "mirror_traffic": one.spec.mirror_traffic or None}
            )
            for one in self._shared.served
        ]
        try:
            self._save(specs)
        except OSError as error:
            logger.error("the models could not be saved, so that a restart won't know of this: %s", error)
            return f"A restart won't know of this, which could not be saved: {error.strerror or error}."
        return None
