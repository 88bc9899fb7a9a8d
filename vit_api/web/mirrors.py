"""Connects the mirrors of an HTTP process with the versions that they mirror, as the deployments say at any time.

Knows nothing of who changes these.
"""

from __future__ import annotations

from vit_api.shared.server import Shared
from vit_api.web.core.mirror import Mirror
from vit_api.web.observers.decisions.log import DecisionLog
from vit_api.web.observers.mirroring import Mirroring, ShadowCounts, Side
from vit_api.web.served import ServedDeployments


class Mirrors:
    """The mirrors of an HTTP process.

    Args:
        shared: What the process shares with others.
        served: What it has of each deployment.
        number: Its number.
        decisions: Logs what mirrors compute; None if there is no log.

    Attributes:
        observers: Send the images of each deployment that has a mirror to it, by the deployment's place.
    """

    def __init__(self, shared: Shared, served: ServedDeployments, number: int, decisions: DecisionLog | None) -> None:
        self._shared = shared
        self._served = served
        self._process = f"http-{number}"
        self._decisions = decisions
        self._mirrors: dict[int, tuple[Mirror, ShadowCounts]] = {}  # by their places
        self._targets: dict[int, int] = {}
        self.observers: dict[int, Mirroring] = {}
        self.connect()

    def connect(self) -> None:
        """Connect what is to be mirrored now; a mirror that is one no longer gives up what it has."""
        before, wanted = self._targets, dict(self._shared.mirrors)
        for place in self._mirrors.keys() - set(wanted.values()):
            self._mirrors.pop(place)[0].stop()
        for place in set(wanted.values()):
            self._update(place)
        for place, core in self._served.cores.items():
            core.mirror_to(self._mirrors[wanted[place]][0] if place in wanted else None)
        for place in before:
            if wanted.get(place) != before[place]:
                del self.observers[place]
        for place in wanted.keys() - self.observers.keys():
            mirror, counts = self._mirrors[wanted[place]]
            answering, mirroring = self._side(place), self._side(wanted[place])
            self.observers[place] = Mirroring(mirror, answering, mirroring, counts, self._decisions)
        self._targets = wanted

    def stop(self) -> None:
        """Stop all; what they have is given up."""
        for mirror, _ in self._mirrors.values():
            mirror.stop()

    def _update(self, place: int) -> None:
        """Make the mirror at a place if it is a new one, and tell it its part of the images."""
        (deployment,) = (one for one in self._shared.deployments if one.number == place)
        if place not in self._mirrors:
            counts = ShadowCounts(deployment.metrics_board.metrics_writer(self._process))
            timeout_s = self._shared.settings.request_timeout_s
            self._mirrors[place] = self._served.cores[place].new_mirror(timeout_s, counts.skip), counts
        self._mirrors[place][0].share = (deployment.spec.mirror_traffic or 0.0) / 100

    def _side(self, place: int) -> Side:
        (deployment,) = (one for one in self._shared.deployments if one.number == place)
        return Side(place, deployment.spec.version, deployment.checkpoint)
