"""Tells the HTTP processes which deployments there are, and hears from them. For the main process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence

from vit_api.ipc.channel import ChannelClosed
from vit_api.processes.channels import Channels
from vit_api.shared.messages import Applied, Catalogue, DeploymentPlan, Drained
from vit_api.shared.server import Shared


class Publisher:
    """Publish the deployments of the server.

    Args:
        shared: What the processes share, and so the deployments.
        channels: To the HTTP processes.

    Attributes:
        loading: Name and version of what is being loaded, which goes with the deployments.
    """

    def __init__(self, shared: Shared, channels: Channels) -> None:
        self._shared = shared
        self._channels = channels
        self._generation = 0
        self._applied: dict[int, int] = {}
        self._drained: defaultdict[int, set[int]] = defaultdict(set)
        self.loading: tuple[tuple[str, str], ...] = ()

    def forking(self, process: int) -> None:
        """Note that an HTTP process is about to be forked, which begins with what there is now."""
        self._applied[process] = self._generation
        for processes in self._drained.values():
            processes.discard(process)

    def note(self, process: int, message: Applied | Drained) -> None:
        """Note what an HTTP process has reported."""
        if isinstance(message, Applied):
            self._applied[process] = message.generation
        else:
            self._drained[message.place].add(process)

    def publish(self, added: DeploymentPlan | None = None, made: Sequence[int] = ()) -> None:
        """Send the catalogue to every HTTP process.

        Args:
            added: What is new in it.
            made: The descriptors of its shared memory.
        """
        self._generation += 1
        catalogue = Catalogue(self._generation, self._shared.entries(), self.loading, added)
        for number, channel in list(self._channels.ends.items()):
            try:
                channel.send(catalogue, made)
            except ChannelClosed:  # it ends, too, and its successor is forked from this process
                self._channels.close(number)

    def until_applied(self) -> Generator[None, None, None]:
        """Wait until every HTTP process serves by the catalogue."""
        while any(self._applied.get(number, 0) < self._generation for number in self._channels.ends):
            yield

    def unloading(self, place: int) -> None:
        """Forget who has answered all requests for a deployment that had this place."""
        self._drained.pop(place, None)

    def is_drained(self, place: int) -> bool:
        """Return whether every HTTP process has answered all requests for a deployment that is unloading."""
        return self._channels.ends.keys() <= self._drained[place]
