"""Loads and unloads models while the server runs, and changes their traffic. For the main process.

Theory of operation
-------------------
HTTP processes send commands, which are run one after the other. A command is a generator that is advanced at each tick
of the supervisor and waits by yielding, so that the supervisor keeps all processes alive meanwhile.

To load, the model is fetched and checked in a process of its own; then its shared memory is made and its workers are
started. Until they are ready, no HTTP process knows of it, so a load that fails changes nothing. Then the catalogue is
published: every HTTP process gets it with the descriptors of the shared memory, and acknowledges that it serves by it.
An HTTP process that is started later is forked from this one, which has all of that. To unload, the catalogue says
that no further request is for the deployment; once every HTTP process has answered those that it had, and no slot holds
an image of it, its workers are ended and its place in the slot table is free.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.deployments.listing import Deployment, DeploymentsError, read_deployment
from vit_api.deployments.traffic import changed, traffic_of_new, with_new
from vit_api.ipc import descriptors
from vit_api.ipc.channel import ChannelClosed
from vit_api.ipc.records import max_packed_size
from vit_api.processes.channels import Channels
from vit_api.processes.fetching import Fetch, FetchError
from vit_api.processes.supervisor import WorkerGroup
from vit_api.settings import ENV_PREFIX
from vit_api.shared.deployment import SettingError, SharedDeployment
from vit_api.shared.messages import Applied, Catalogue, CatalogueEntry, Command, CommandReply, DeploymentPlan, Drained
from vit_api.shared.server import Shared

logger = logging.getLogger(__name__)

_MAX_WAITING = 16
"""Commands that wait for their turn."""

_SLACK_S = 30.0
"""Unloading waits so much longer than a request may take, before it gives up what is left."""

Running = Generator[None, None, str | None]
"""A command that runs; returns the version that it was about."""

Save = Callable[[Sequence[Deployment]], None]


class CommandRefused(Exception):
    """A command is not done; nothing has changed.

    Args:
        problem: Why, in sentences.
        code: See `CommandReply`.
    """

    def __init__(self, problem: str, code: str = "load_failed") -> None:
        super().__init__(problem)
        self.code = code


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
        self._written = {one.title: one for one in listed}
        self._generation = 0
        self._loading: tuple[tuple[str, str], ...] = ()
        self._applied: dict[int, int] = {}
        self._drained: dict[int, set[int]] = {}
        self._waiting: deque[tuple[int, Command]] = deque()
        self._running: Running | None = None
        self._caller: tuple[int, Command] | None = None
        self._fetch: Fetch | None = None

    def forking(self, number: int) -> None:
        """Note that an HTTP process is about to be forked, which begins with what there is now."""
        self._applied[number] = self._generation
        for processes in self._drained.values():
            processes.discard(number)

    def waits_for(self) -> list[Any]:
        """Return what `step` should be called for at once when it can be read."""
        return [*self._channels.ends.values(), *([] if self._fetch is None else [self._fetch])]

    def step(self) -> None:
        """Read what the HTTP processes say, and go on with the command that is run."""
        for number in list(self._channels.ends):
            self._read(number)
        if self._shared.readiness.is_draining():
            self._refuse_all()
            return
        while self._running is not None or self._waiting:
            if self._running is None:
                self._caller = self._waiting.popleft()
                self._running = self._run(self._caller[1])
            if not self._advance():
                return

    def _advance(self) -> bool:
        """Go on with the command; return whether it has ended."""
        assert self._running is not None
        try:
            next(self._running)
        except StopIteration as stop:
            self._end(CommandReply(self._number(), version=stop.value))
        except CommandRefused as error:
            self._end(CommandReply(self._number(), str(error), error.code))
        except Exception:
            logger.exception("a command of the operator failed")
            self._end(CommandReply(self._number(), "The server failed. Its log says why.", "load_failed"))
        else:
            return False
        return True

    def _number(self) -> int:
        assert self._caller is not None
        return self._caller[1].number

    def _end(self, reply: CommandReply) -> None:
        assert self._caller is not None
        process, command = self._caller
        outcome = "done" if reply.problem is None else f"failed: {reply.problem}"
        logger.info("%s of model %r: %s", command.kind, command.name, outcome)
        self._running = self._caller = None
        self._reply(process, reply)
        gc.collect()  # objects that refer to each other would keep shared memory for long

    def _reply(self, process: int, reply: CommandReply) -> None:
        channel = self._channels.ends.get(process)
        if channel is not None:
            try:
                channel.send(reply)
            except ChannelClosed:  # a successor never waits for it
                self._channels.close(process)

    def _refuse_all(self) -> None:
        """Stop what is run, since the server shuts down."""
        if self._running is not None:
            self._running.close()
            self._end(CommandReply(self._number(), "The server is shutting down. Nothing has changed.", "not_ready"))
        while self._waiting:
            process, command = self._waiting.popleft()
            self._reply(process, CommandReply(command.number, "The server is shutting down.", "not_ready"))

    def _read(self, number: int) -> None:
        channel = self._channels.ends[number]
        try:
            while (received := channel.receive()) is not None:
                self._take(number, received[0])
        except ChannelClosed:
            self._channels.close(number)

    def _take(self, number: int, message: Any) -> None:
        if isinstance(message, Applied):
            self._applied[number] = message.generation
        elif isinstance(message, Drained):
            self._drained.setdefault(message.place, set()).add(number)
        elif isinstance(message, Command):
            if len(self._waiting) >= _MAX_WAITING:
                self._reply(number, CommandReply(message.number, "Too many commands wait. Retry shortly.", "not_ready"))
            else:
                self._waiting.append((number, message))

    def _publish(self, added: DeploymentPlan | None = None, made: Sequence[int] = ()) -> None:
        """Send the catalogue to every HTTP process."""
        self._generation += 1
        entries = tuple(CatalogueEntry(one.number, one.spec, one.is_unloading) for one in self._shared.deployments)
        catalogue = Catalogue(self._generation, entries, self._loading, added)
        for number, channel in list(self._channels.ends.items()):
            try:
                channel.send(catalogue, made)
            except ChannelClosed:  # it ends, too, and its successor is forked from this process
                self._channels.close(number)

    def _until_applied(self) -> Generator[None, None, None]:
        """Wait until every HTTP process serves by the catalogue."""
        while any(self._applied.get(number, 0) < self._generation for number in self._channels.ends):
            yield

    def _run(self, command: Command) -> Running:
        if any(one.spec.mirror_traffic for one in self._versions_of(command.name)):
            raise CommandRefused(
                f"A version of {command.name!r} has 'mirror_traffic', so its versions stay as {ENV_PREFIX}MODELS lists "
                "them. Change the list, and restart the server.",
                "bad_request",
            )
        commands = {"load": self._load, "unload": self._unload, "traffic": self._traffic}
        return (yield from commands[command.kind](command.name, command.arguments))

    def _load(self, name: str, arguments: dict[str, Any]) -> Running:
        written = self._spec_of(name, arguments)
        spec = self._shared.settings.complete(written)
        if self._is_loaded(written):
            return spec.version
        place = self._free_place()
        self._loading = ((spec.name, spec.version),)
        self._publish()
        try:
            checkpoint, identity = yield from self._fetched(spec)
            self._check_size(checkpoint)
            yield from self._start(self._plan(place, spec, checkpoint, identity))
            self._written[spec.title] = written
        finally:
            if self._loading:
                self._loading = ()
                self._publish()
        yield from self._until_applied()
        self._keep()
        return spec.version

    def _spec_of(self, name: str, arguments: dict[str, Any]) -> Deployment:
        """Return what is to be loaded."""
        versions = self._versions_of(name)
        entry = {"name": name, **arguments}
        if entry.get("mirror_traffic") is not None:
            raise CommandRefused(
                f"A model that is loaded while the server runs can't be a mirror: list it in {ENV_PREFIX}MODELS with "
                "its 'mirror_traffic', and restart the server.",
                "bad_request",
            )
        if isinstance(entry.get("version"), int):
            entry["version"] = str(entry["version"])
        if "model" not in entry:
            known = [one for one in self._written.values() if one.name == name]
            known = [one for one in known if entry.get("version", one.version) == one.version]
            if not known:
                raise CommandRefused(
                    f"It is not known where the model {name!r} is: say so in the parameter 'config', such as "
                    '{"model": "/models/nsfw-2", "version": "2"}.',
                    "bad_request",
                )
            entry = known[-1].model_dump(exclude_none=True, exclude={"traffic"}) | entry
        if "version" not in entry:
            numbers = [int(one.spec.version) for one in versions if one.spec.version.isdecimal()]
            entry["version"] = str(max(numbers, default=0) + 1)
        try:
            return read_deployment(f"The model {name!r}", entry)
        except DeploymentsError as error:
            raise CommandRefused(f"{error}.", "bad_request") from None

    def _is_loaded(self, written: Deployment) -> bool:
        """Return whether exactly this is loaded.

        Raises:
            CommandRefused: Another model is loaded as this version.
        """
        for one in self._versions_of(written.name):
            if one.spec.version == written.version:
                if self._same(self._written[one.spec.title], written) and not one.worker_board.is_gone():
                    return True
                raise CommandRefused(
                    f"Version {written.version!r} of {written.name!r} is loaded already. Unload it first, or give this "
                    "one another 'version'.",
                    "bad_request",
                )
        return False

    @staticmethod
    def _same(one: Deployment, other: Deployment) -> bool:
        return one.model_dump(exclude={"traffic"}) == other.model_dump(exclude={"traffic"})

    def _versions_of(self, name: str) -> list[SharedDeployment]:
        return [one for one in self._shared.deployments if one.spec.name == name]

    def _free_place(self) -> int:
        taken = {one.number for one in self._shared.deployments}
        free = [place for place in range(self._shared.table.deployments) if place not in taken]
        if not free:
            raise CommandRefused(
                f"The server has {len(taken)} versions of models, as many as {ENV_PREFIX}MAX_MODELS allows. Unload one "
                "first, or raise that and restart the server.",
                "bad_request",
            )
        return free[0]

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

    def _check_size(self, checkpoint: Checkpoint) -> None:
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

    def _plan(self, place: int, spec: Deployment, checkpoint: Checkpoint, identity: str) -> DeploymentPlan:
        versions = self._versions_of(spec.name)
        try:
            traffic = traffic_of_new([one.spec for one in versions], spec.traffic)
        except DeploymentsError as error:
            raise CommandRefused(f"{error}.", "bad_request") from None
        spec = spec.model_copy(update={"traffic": traffic})
        workers = len(self._shared.devices) * (spec.workers_per_device or 1)
        first = max((one.first_worker + one.worker_board.workers for one in self._shared.deployments), default=0)
        return DeploymentPlan(place, spec, DeploymentPlan.fields_of(checkpoint), identity, workers, first)

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
            self._loading = ()
            self._workers.accept(plan.place)
            self._add(deployment)
            self._publish(plan, made)
        finally:
            for descriptor in made:
                os.close(descriptor)

    def _make(self, plan: DeploymentPlan, made: list[int]) -> SharedDeployment:
        """Make what the processes share of a deployment; add its descriptors to a list, even if this fails."""
        try:
            with descriptors.recording(made):
                return self._shared.make_deployment(plan)
        except SettingError as error:
            raise CommandRefused(str(error).removeprefix(f"{ENV_PREFIX}MODELS: ") + ".", "bad_request") from None
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
        versions = self._versions_of(deployment.spec.name)
        specs = with_new([one.spec for one in versions], deployment.spec.traffic or 0.0)
        for one, spec in zip(versions, specs, strict=True):
            one.spec = spec
        deployments = self._shared.deployments
        last = max((deployments.index(one) for one in versions), default=len(deployments) - 1)
        self._shared.set_deployments([*deployments[: last + 1], deployment, *deployments[last + 1 :]])

    def _unload(self, name: str, arguments: dict[str, Any]) -> Running:
        version = arguments.get("version")
        targets = self._targets(name, version)
        for one in targets:
            self._drained.pop(one.number, None)
            one.is_unloading = True
        self._shared.set_deployments(self._shared.deployments)
        self._publish()
        yield from self._until_applied()
        limit_s = self._shared.settings.request_timeout_s + self._shared.settings.body_timeout_s + _SLACK_S
        end = time.monotonic() + limit_s
        while not all(self._is_drained(one) for one in targets):
            if time.monotonic() > end:
                logger.warning("requests for %r were still in flight after %g s", name, limit_s)
                break
            yield
        for one in targets:
            yield from self._empty_slots(one)
            self._workers.end(one.number)
            one.worker_board.mark_gone()
        self._shared.set_deployments([one for one in self._shared.deployments if one not in targets])
        self._publish()
        yield from self._until_applied()
        self._keep()
        return version

    def _targets(self, name: str, version: str | None) -> list[SharedDeployment]:
        """Return what is to be unloaded."""
        versions = self._versions_of(name)
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

    def _is_drained(self, deployment: SharedDeployment) -> bool:
        return self._channels.ends.keys() <= self._drained.get(deployment.number, set())

    def _empty_slots(self, deployment: SharedDeployment) -> Generator[None, None, None]:
        """Wait until no slot holds an image of a deployment; images that nobody answers in time are failed."""
        end = time.monotonic() + self._shared.settings.worker_stall_s + _SLACK_S
        while not deployment.table.is_empty():
            if time.monotonic() > end:
                self._workers.give_up(deployment.number)
            yield

    def _traffic(self, name: str, arguments: dict[str, Any]) -> Running:
        versions = self._versions_of(name)
        if not versions:
            raise CommandRefused(f"There is no model {name!r}.", "not_found")
        try:
            specs = changed([one.spec for one in versions], arguments)
        except DeploymentsError as error:
            raise CommandRefused(f"{error}.", "bad_request") from None
        for one, spec in zip(versions, specs, strict=True):
            if spec.traffic and not one.spec.traffic and one.worker_board.is_gone():
                raise CommandRefused(
                    f"Version {spec.version!r} of {name!r}: {one.worker_board.state_text()}.", "bad_request"
                )
        for one, spec in zip(versions, specs, strict=True):
            one.spec = spec
        self._shared.set_deployments(self._shared.deployments)
        self._publish()
        yield from self._until_applied()
        self._keep()
        return None

    def _keep(self) -> None:
        """Keep what there is for the next start."""
        specs = [
            self._written[one.spec.title].model_copy(update={"traffic": one.spec.traffic})
            for one in self._shared.served
        ]
        try:
            self._save(specs)
        except OSError as error:
            logger.error("the models could not be saved, so that a restart won't know of this: %s", error)
