"""What an HTTP process has of each deployment: its core, its slots, and what records its requests.

Deployments are added and removed while the process runs. Knows nothing of why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vit_api.ipc.metrics_board import MetricsWriter
from vit_api.ipc.slots import OwnerSlots
from vit_api.shared.deployment import SharedDeployment
from vit_api.shared.server import Shared
from vit_api.web.deployment import DecoderAndEncoder, DeploymentCore, Handlers, ProcessParts, build_handlers
from vit_api.web.in_flight import InFlight
from vit_api.web.observers.by_deployment import ByDeployment
from vit_api.web.observers.decisions.decision import Answered, DecisionContext, DecisionRenderer
from vit_api.web.observers.exchange import Observer
from vit_api.web.observers.prediction_metrics import FlaggedLabels, PredictionMetrics
from vit_api.web.observers.request_metrics import RequestMetrics

if TYPE_CHECKING:
    from vit_api.web.core.redis_tier import RedisTier

DecoderOf = Callable[[SharedDeployment], DecoderAndEncoder]


class ServedDeployments:
    """The deployments of an HTTP process, by their places.

    Args:
        shared: What the process shares with others.
        decoder_of: Returns what decodes uploads and renders predictions.
        parts: What the deployments have in common.

    Attributes:
        cores: Their parts that run in the background.
        renderers: Render the decisions of each for the log.
        in_flight: Counts their requests; None if none is ever unloaded.
    """

    def __init__(self, shared: Shared, decoder_of: DecoderOf, parts: ProcessParts) -> None:
        self._shared = shared
        self._decoder_of = decoder_of
        self._parts = parts
        self.cores: dict[int, DeploymentCore] = {}
        self.renderers: dict[int, DecisionRenderer] = {}
        self.in_flight = None if shared.settings.max_models is None else InFlight()
        self._decoders: dict[int, DecoderAndEncoder] = {}
        self._slots: dict[int, OwnerSlots] = {}
        self._requests: dict[int, RequestMetrics] = {}
        self._predictions: dict[int, PredictionMetrics] = {}
        for deployment in shared.deployments:
            self.add(deployment)
        self.share_slots()

    def add(self, deployment: SharedDeployment) -> DeploymentCore:
        """Make what the process has of a deployment, and return its core, which is not started."""
        place, shared = deployment.number, self._shared
        sibling = next(iter(self._slots.values()), None)
        slots = self._slots[place] = OwnerSlots(deployment.table, self._parts.number, sibling)
        decoder = self._decoders[place] = self._decoder_of(deployment)
        core = self.cores[place] = DeploymentCore(shared, deployment, decoder, self._parts, slots)
        writer = deployment.metrics_board.metrics_writer(f"http-{self._parts.number}")
        self._requests[place] = RequestMetrics(writer)
        self._predictions[place] = _prediction_metrics(deployment, writer)
        self.renderers[place] = DecisionRenderer(_decision_context(shared, deployment))
        return core

    async def remove(self, place: int) -> None:
        """Stop and drop a deployment, which has answered everything."""
        await self.cores.pop(place).stop()
        for parts in (self._slots, self._decoders, self._requests, self._predictions, self.renderers):
            del parts[place]

    def share_slots(self) -> None:
        """Divide the process's slots among the deployments that there are."""
        for slots in self._slots.values():
            slots.share_among(list(self._slots))

    def handlers(self) -> list[Handlers]:
        """Return what answers requests, for each deployment that is served, in their order."""
        return [
            build_handlers(self._shared, one, self.cores[one.number], self._decoders[one.number], self._parts)
            for one in self._shared.served
        ]

    def redis_tiers(self) -> list[RedisTier]:
        """Return the tiers beyond this server."""
        return [core.redis for core in self.cores.values() if core.redis is not None]

    def observers(self, other: MetricsWriter) -> list[Observer]:
        """Return what records each request; with several models, the metrics of each have an observer of their own.

        Args:
            other: Records requests for which no model was chosen.
        """
        if not self._shared.has_several:
            return [*self._requests.values(), *self._predictions.values()]
        of_requests = ByDeployment(self._requests, RequestMetrics(other))
        observers: list[Observer] = [of_requests, ByDeployment(self._predictions)]
        return observers if self.in_flight is None else [*observers, self.in_flight]

    def render_lines(self, answered: Answered) -> Iterator[bytes]:
        """Render the decisions of a request for a file."""
        return self.renderers[answered.deployment].lines(answered)

    def render_events(self, answered: Answered) -> Iterator[bytes]:
        """Render the decisions of a request for a URL."""
        return self.renderers[answered.deployment].events(answered)


def _prediction_metrics(deployment: SharedDeployment, metrics_writer: MetricsWriter) -> PredictionMetrics:
    thresholds = deployment.thresholds
    flagged = None if thresholds is None else FlaggedLabels(deployment.checkpoint, thresholds)
    return PredictionMetrics(metrics_writer, deployment.checkpoint, flagged)


def _decision_context(shared: Shared, one: SharedDeployment) -> DecisionContext:
    version = one.spec.version if shared.has_several else None
    return DecisionContext(one.checkpoint, one.checkpoint_identity, one.thresholds, version)
