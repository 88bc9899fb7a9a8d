"""How many slots each deployment of an HTTP process may take. Knows no slots."""

from __future__ import annotations


class DeploymentShares:
    """Count the slots of each deployment, and keep a share for each that no other may take.

    Half of the slots are kept, in equal shares; any deployment may take the others. So a deployment whose workers are
    slow or dead fills at most all but the shares of the others, and never keeps one of them from working.

    Args:
        slots: Number of slots, at least two for each deployment.
        deployments: Number of deployments.

    Attributes:
        minimum: The slots that are kept for each.
        maximum: The most that one can have.
    """

    def __init__(self, slots: int, deployments: int) -> None:
        self.minimum = slots // (2 * deployments)
        self.maximum = slots - self.minimum * (deployments - 1)
        self._held = [0] * deployments

    def free_for(self, deployment: int, free: int) -> int:
        """Return how many of so many free slots a deployment may take."""
        kept = sum(max(0, self.minimum - held) for held in self._held)
        return free - kept + max(0, self.minimum - self._held[deployment])

    def add(self, deployment: int) -> None:
        """Count a slot that a deployment took."""
        self._held[deployment] += 1

    def remove(self, deployment: int) -> None:
        """Stop counting one."""
        self._held[deployment] -= 1
