"""How many slots each deployment of an HTTP process may take. Knows no slots."""

from __future__ import annotations

from collections.abc import Sequence


class DeploymentShares:
    """Count the slots of each deployment, and keep a share for each that no other may take.

    Half of the slots are kept, in equal shares; any deployment may take the others. So a deployment whose workers are
    slow or dead fills at most all but the shares of the others, and never keeps one of them from working.

    Args:
        slots: Number of slots, at least two for each deployment.
        deployments: Maximum number of deployments; at first there are so many.

    Attributes:
        present: The numbers of those that there are.
        minimum: The slots that are kept for each.
        maximum: The most that one can have.
    """

    def __init__(self, slots: int, deployments: int) -> None:
        self._slots = slots
        self._held = [0] * deployments
        self.keep_for(range(deployments))

    def keep_for(self, present: Sequence[int]) -> None:
        """Keep a share for the deployments with these numbers only."""
        self.present = tuple(present)
        self.minimum = self._slots // (2 * len(self.present))
        self.maximum = self._slots - self.minimum * (len(self.present) - 1)

    def free_for(self, deployment: int, free: int) -> int:
        """Return how many of so many free slots a deployment may take."""
        kept = sum(max(0, self.minimum - self._held[one]) for one in self.present)
        return free - kept + max(0, self.minimum - self._held[deployment])

    def add(self, deployment: int) -> None:
        """Count a slot that a deployment took."""
        self._held[deployment] += 1

    def remove(self, deployment: int) -> None:
        """Stop counting one."""
        self._held[deployment] -= 1
