"""Whether the server accepts images: what the boards of its deployments' workers say together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vit_api.ipc.worker_board import WorkerBoard


class Readiness:
    """The state of a server with one deployment or several.

    It is ready when the deployments that it depends on are: those of the default model that have traffic. One whose
    workers can't be restarted has no traffic any more, as long as another one takes it.

    Args:
        boards: The workers of each deployment, by its title.
        needed: The titles of those that the server depends on.
        is_reachable: Returns whether every connection is accepted by an HTTP process. While the server starts, another
            process accepts some and refuses their requests.
    """

    def __init__(
        self,
        boards: Mapping[str, WorkerBoard],
        needed: frozenset[str],
        is_reachable: Callable[[], bool] = lambda: True,
    ) -> None:
        self._is_reachable = is_reachable
        self._boards = dict(boards)
        self._needed = [board for title, board in boards.items() if title in needed]

    def is_ready(self) -> bool:
        """Return whether images are accepted."""
        alive = [board for board in self._needed if not board.is_gone()]
        return bool(alive) and all(board.is_ready() for board in alive) and self._is_reachable()

    def is_draining(self) -> bool:
        """Return whether the server is shutting down."""
        return self._needed[0].is_draining()

    def is_gone(self) -> bool:
        """Return whether no deployment will have a worker again."""
        return all(board.is_gone() for board in self._boards.values())

    def is_whole(self) -> bool:
        """Return whether every worker of every deployment is ready."""
        return all(board.ready_count() == board.workers for board in self._boards.values())

    def reason(self) -> str:
        """Return why the server is not ready, or degraded: a sentence; empty if neither."""
        text = self._reason_of_boards()
        return text if text or self._is_reachable() else "Not all HTTP processes accept connections yet."

    def _reason_of_boards(self) -> str:
        if len(self._boards) == 1 or self.is_draining():
            return self._needed[0].reason()
        impaired = [f"{title}: {board.state_text()}" for title, board in self._boards.items() if board.state_text()]
        return f"Not all versions are ready. {'; '.join(impaired)}." if impaired else ""
