"""The commands of operators, run one after the other in the main process. Knows nothing of what they do.

A command is a generator that is advanced at each tick of the supervisor and waits by yielding, so that the supervisor
keeps all processes alive meanwhile.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Generator
from typing import NamedTuple

from vit_api.ipc.channel import ChannelClosed
from vit_api.processes.channels import Channels
from vit_api.shared.messages import Command, CommandReply

logger = logging.getLogger(__name__)

_MAX_WAITING = 16
"""Commands that wait for their turn."""


class CommandResult(NamedTuple):
    """A command that was done.

    Attributes:
        version: The version that it was about; None if it was about several.
        warning: See `CommandReply`.
    """

    version: str | None = None
    warning: str | None = None


Running = Generator[None, None, CommandResult]
"""A command that runs."""


class CommandRefused(Exception):
    """A command is not done; nothing has changed.

    Args:
        problem: Why, in sentences.
        code: See `CommandReply`.
    """

    def __init__(self, problem: str, code: str = "load_failed") -> None:
        super().__init__(problem)
        self.code = code


class CommandQueue:
    """Run commands in the order of their arrival, and answer each.

    Args:
        channels: To the HTTP processes, which send the commands.
        run: Begins a command; raises CommandRefused if it can't be done.
    """

    def __init__(self, channels: Channels, run: Callable[[Command], Running]) -> None:
        self._channels = channels
        self._run = run
        self._waiting: deque[tuple[int, Command]] = deque()
        self._running: tuple[int, Command, Running] | None = None

    def add(self, process: int, command: Command) -> None:
        """Queue a command from the HTTP process with this number."""
        if len(self._waiting) >= _MAX_WAITING:
            self._reply(process, CommandReply(command.number, "Too many commands wait. Retry shortly.", "not_ready"))
        else:
            self._waiting.append((process, command))

    def step(self) -> None:
        """Go on, until the command that is run has to wait, or none is left."""
        while self._running is not None or self._waiting:
            if self._running is None:
                process, command = self._waiting.popleft()
                self._running = process, command, self._run(command)
            if not self._advance(*self._running):
                return

    def refuse_all(self) -> None:
        """Stop the command that is run, and refuse those that wait, since the server shuts down."""
        if self._running is not None:
            process, command, running = self._running
            running.close()
            problem = "The server is shutting down. Nothing has changed."
            self._end(process, command, CommandReply(command.number, problem, "not_ready"))
        while self._waiting:
            process, command = self._waiting.popleft()
            self._reply(process, CommandReply(command.number, "The server is shutting down.", "not_ready"))

    def _advance(self, process: int, command: Command, running: Running) -> bool:
        """Go on with the command; return whether it has ended."""
        try:
            next(running)
        except StopIteration as stop:
            self._end(process, command, CommandReply(command.number, None, "", *stop.value))
        except CommandRefused as error:
            self._end(process, command, CommandReply(command.number, str(error), error.code))
        except Exception:
            logger.exception("a command of the operator failed")
            problem = "The server failed. Its log says why."
            self._end(process, command, CommandReply(command.number, problem, "load_failed"))
        else:
            return False
        return True

    def _end(self, process: int, command: Command, reply: CommandReply) -> None:
        outcome = "done" if reply.problem is None else f"failed: {reply.problem}"
        logger.info("%s of model %r: %s", command.kind, command.name, outcome)
        self._running = None
        self._reply(process, reply)
        gc.collect()  # objects that refer to each other would keep shared memory for long

    def _reply(self, process: int, reply: CommandReply) -> None:
        channel = self._channels.ends.get(process)
        if channel is not None:
            try:
                channel.send(reply)
            except ChannelClosed:  # a successor never waits for it
                self._channels.close(process)
