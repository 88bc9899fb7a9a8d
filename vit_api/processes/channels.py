"""The main process's channel to each HTTP process. Knows nothing of what is said."""

from __future__ import annotations

from vit_api.ipc.channel import Channel


class Channels:
    """A channel for each HTTP process that runs, by its number.

    Attributes:
        ends: The main process's ends.
    """

    def __init__(self) -> None:
        self.ends: dict[int, Channel] = {}
        self._others: dict[int, Channel] = {}

    def open(self, number: int) -> None:
        """Make the channel of a process that is about to be forked, in place of its predecessor's."""
        self.close(number)
        self.ends[number], self._others[number] = Channel.pair()

    def forked(self, number: int) -> None:
        """Close this process's copy of the end that the process has now, so that its death is noticed."""
        self._others.pop(number).close()

    def close(self, number: int) -> None:
        """Close the channel of a process."""
        end = self.ends.pop(number, None)
        if end is not None:
            end.close()

    def keep(self, number: int) -> Channel:
        """Return the end of the process with this number and close all others. For that process, once it is forked."""
        for end in self.ends.values():
            end.close()
        return self._others[number]
