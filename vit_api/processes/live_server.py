"""The composition of live loading in the main process: what connects the supervisor, LitServe and `LiveModels`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import litserve as ls

from vit_api.deployments.saved import ModelState
from vit_api.processes.channels import Channels
from vit_api.processes.lit_server import ViTServer
from vit_api.processes.live_models import LiveModels, Workers
from vit_api.processes.supervisor import StartProcess, Supervisor, WorkerGroup
from vit_api.shared.deployment import SharedDeployment
from vit_api.shared.server import Shared


class LiveServer:
    """Loads and unloads models in a running server.

    Args:
        shared: What its processes share.
        state: Where the models are kept for the next start; None: they are not.
        lit_api_of: Returns the LitAPI of a deployment.
        forget_lit_api: Forgets that of the deployment with this number.

    Attributes:
        channels: To the HTTP processes.
    """

    def __init__(
        self,
        shared: Shared,
        state: ModelState | None,
        lit_api_of: Callable[[SharedDeployment], ls.LitAPI],
        forget_lit_api: Callable[[int], Any],
    ) -> None:
        self.channels = Channels()
        self._lit_api_of = lit_api_of
        self._forget_lit_api = forget_lit_api
        self._groups: dict[int, WorkerGroup] = {}
        workers = Workers(self._start, self._end, self._problem, self._accept, self._give_up)
        save = (lambda _: None) if state is None else state.save
        self.models = LiveModels(shared, self.channels, workers, shared.settings.written_deployments, save)

    def connect(
        self, server: ViTServer, groups: dict[int, WorkerGroup], group_of: Callable[[SharedDeployment], WorkerGroup]
    ) -> None:
        """Use a server.

        Args:
            server: Starts workers.
            groups: Those that it has, by the number of their deployment.
            group_of: Makes that of a deployment.
        """
        self._server = server
        self._groups = groups
        self._group_of = group_of

    def supervise(self, supervisor: Supervisor) -> None:
        """Use a supervisor."""
        self._supervisor = supervisor

    def forking(self, start_http: StartProcess) -> StartProcess:
        """Return what starts an HTTP process with a channel to this one."""

        def start(number: int) -> Any:
            self.channels.open(number)
            self.models.forking(number)
            process = start_http(number)
            self.channels.forked(number)
            return process

        return start

    def _start(self, deployment: SharedDeployment) -> WorkerGroup:
        lit_api = self._lit_api_of(deployment)
        self._server.add(deployment.number, lit_api, deployment.spec.workers_per_device or 1)
        group = self._groups[deployment.number] = self._group_of(deployment)
        group.is_on_trial = True
        self._supervisor.add(group)
        return group

    def _end(self, number: int) -> None:
        self._supervisor.remove(self._groups.pop(number))
        self._server.remove(number)
        self._forget_lit_api(number)

    def _problem(self, deployment: SharedDeployment) -> str:
        group = self._groups[deployment.number]
        if not group.has_failed:
            return ""
        reason = deployment.worker_board.problem()
        if not reason:  # the process left none: it was killed, as the system does when memory runs out
            reason = (
                f"{group.problem.partition(';')[0]}, perhaps for lack of memory; the server's log says how it ended"
            )
        return f"The model can't be loaded: {reason.removesuffix('.')}."

    def _accept(self, number: int) -> None:
        self._groups[number].is_on_trial = False

    def _give_up(self, number: int) -> None:
        self._groups[number].recovery.give_up()
