"""What all processes of one server share: shared memory, pipes, the checkpoints. Created before the first fork."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vit_api import metrics
from vit_api.access.rate_limiter import Budgets
from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.deployments.listing import Deployment, mirrors_of
from vit_api.ipc.flight_board import FlightBoard
from vit_api.ipc.http_board import HttpBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.readiness import Readiness
from vit_api.ipc.records import max_packed_size
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.settings import ENV_PREFIX, LIVE_INPUT_SIDE, Settings
from vit_api.shared.deployment import SettingError, SharedDeployment, only_deployment
from vit_api.shared.messages import CatalogueEntry, DeploymentPlan

_LIVE_LABELS = 2**15
"""Slots have memory for the answers of models with so many labels that are loaded while the server runs."""


class Shared:
    """The parts that several processes use.

    Args:
        settings: The server's settings.
        checkpoints: The models to serve: one, or one for each entry of `settings.deployments`.
        devices: The devices that they run on, as torch names them.
        is_reachable: Returns whether every connection is accepted by an HTTP process.

    Attributes:
        table: The slots of the images in flight.
        http_board: The heartbeats of the HTTP processes.
        worker_board: The status of all workers.
        flight_board: What the HTTP processes compute now.
        budgets: What each client has used; None without rate limits.
        metrics_board: The values of the metrics that belong to no deployment; of all metrics if there is only one.
        mirrors: The number of the mirror of each deployment that has one, by number; changes with the deployments.
        deployments: What belongs to each version of a model, the default one first among those of its model.
        default: The deployment that describes the server where only one can.
        readiness: Whether images are accepted.

    Raises:
        SettingError: A model lacks a label that has a threshold or a category, or its mirror takes other pixels.
    """

    def __init__(
        self,
        settings: Settings,
        checkpoints: Sequence[Checkpoint],
        devices: list[str],
        is_reachable: Callable[[], bool] = lambda: True,
    ) -> None:
        self.settings = settings
        self._is_reachable = is_reachable
        self.devices = devices
        specs = settings.deployments or (only_deployment(settings, checkpoints[0]),)
        check_mirrors(list(zip(specs, checkpoints, strict=True)))
        is_only = not settings.deployments
        processes = settings.api_servers
        shapes = [checkpoint.preprocessing.pixel_shape for checkpoint in checkpoints]
        long_bytes = max(max_packed_size(len(checkpoint.labels)) for checkpoint in checkpoints)
        places = len(specs)
        if settings.max_models is not None:
            places = settings.max_models
            side = settings.max_input_side or LIVE_INPUT_SIDE
            slot_shape = max([*shapes, (side, side, 3)], key=math.prod)
            long_bytes = max(long_bytes, max_packed_size(_LIVE_LABELS))
        else:
            slot_shape = max(shapes, key=math.prod)
        self.table = SlotTable(processes, settings.slots_per_process, slot_shape, long_bytes, deployments=places)
        self.http_board = HttpBoard(processes)
        workers = [len(devices) * (spec.workers_per_device or 1) for spec in specs]
        self.worker_board = WorkerBoard(sum(workers))
        self.deployments: list[SharedDeployment] = []
        for number, (spec, checkpoint, count) in enumerate(zip(specs, checkpoints, workers, strict=True)):
            first = sum(workers[:number])
            self.deployments.append(
                SharedDeployment(
                    number,
                    spec,
                    settings,
                    checkpoint,
                    table=self.table if is_only else self.table.of_deployment(number, shapes[number]),
                    worker_board=self.worker_board.part(first, count),
                    first_worker=first,
                    is_only=is_only,
                )
            )
        self.set_deployments(self.deployments)
        self.flight_board = FlightBoard(processes)
        self.budgets = Budgets(settings.rates, processes) if settings.rates else None
        self.metrics_board = self.default.metrics_board if is_only else _server_metrics(processes)

    def set_deployments(self, deployments: Sequence[SharedDeployment]) -> None:
        """Serve these deployments from now on, in this process; the first one's model is the default."""
        self.deployments = list(deployments)
        served = self.served
        mirrors = mirrors_of([one.spec for one in served])
        self.mirrors = {served[answering].number: served[mirror].number for answering, mirror in mirrors.items()}
        of_default = [one for one in served if one.spec.name == served[0].spec.name]
        self.default = max(of_default, key=lambda one: one.spec.traffic or 0)
        self.readiness = Readiness(
            {one.spec.title: one.worker_board for one in self.deployments},
            frozenset(one.spec.title for one in of_default if one.spec.traffic),
            self._is_reachable,
        )

    def make_deployment(self, plan: DeploymentPlan) -> SharedDeployment:
        """Make what the processes share of a deployment that is loaded while the server runs.

        Every process makes it in the same way, so that it can take over the descriptors of another, see
        `ipc.descriptors`.

        Raises:
            SettingError: The model lacks a label that has a threshold or a category.
        """
        checkpoint = Checkpoint(**plan.checkpoint)
        return SharedDeployment(
            plan.place,
            plan.spec,
            self.settings,
            checkpoint,
            table=self.table.of_deployment(plan.place, checkpoint.preprocessing.pixel_shape),
            worker_board=WorkerBoard(plan.workers),
            first_worker=plan.first_worker,
            is_only=False,
            identity=plan.identity,
        )

    def entries(self) -> tuple[CatalogueEntry, ...]:
        """Return the catalogue's entries of the deployments that there are."""
        return tuple(CatalogueEntry(one.number, one.spec, one.is_unloading) for one in self.deployments)

    def is_draining(self) -> bool:
        """Return whether the server is shutting down, whatever it serves by now."""
        return self.readiness.is_draining()

    @property
    def served(self) -> list[SharedDeployment]:
        """The deployments that requests may be for."""
        return [one for one in self.deployments if not one.is_unloading]

    @property
    def has_several(self) -> bool:
        """Whether the settings list models, be it only one: then answers and metrics name model and version."""
        return bool(self.settings.models)


def check_mirrors(deployments: Sequence[tuple[Deployment, Checkpoint]]) -> None:
    """Check that each mirror takes the pixels of what it mirrors: to decode an image twice would delay others.

    Raises:
        SettingError: One does not.
    """
    for answering, mirror in mirrors_of([spec for spec, _ in deployments]).items():
        (mirrored, checkpoint), (spec, own) = deployments[answering], deployments[mirror]
        mine, other = checkpoint.preprocessing, own.preprocessing
        if not mine.has_pixels_of(other):
            sizes = ["{1} x {0}".format(*one.pixel_shape) for one in (other, mine)]
            how = f"{sizes[0]} and {sizes[1]} pixels" if sizes[0] != sizes[1] else "another resize or crop"
            raise SettingError(
                f"{ENV_PREFIX}MODELS: {spec.title}, 'mirror_traffic': A mirror gets the decoded pixels of what it "
                f"mirrors, and its images are not decoded like those of {mirrored.title} ({how}). Give it 'traffic' "
                "instead, or run it in a server of its own."
            )


def _server_metrics(processes: int) -> MetricsBoard:
    """Return the values of what belongs to no deployment."""
    names = ["main", *(f"http-{number}" for number in range(processes))]
    return MetricsBoard(names, (*metrics.SERVER_WIDE, *metrics.OF_REQUESTS))
