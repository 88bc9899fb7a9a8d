"""The first moments of the main process: read the settings, bind the port, and answer on it while the rest starts.

Imports none of the large packages: within a second of the start, `/health/live` answers 200, and everything else 503.
"""

from __future__ import annotations

import functools
import logging
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from vit_api.command_line import main_settings, unknown_variables
from vit_api.environment import platforms
from vit_api.environment.home import provide_home
from vit_api.logs import configure_logging
from vit_api.processes.early import EarlyAnswers, Phase
from vit_api.processes.listeners import Listeners
from vit_api.settings import ENV_PREFIX, Settings
from vit_api.web.starting import StartingAnswers

logger = logging.getLogger(__name__)

_REASONS = {
    Phase.PREPARING: "The server is starting.",
    Phase.FETCHING: "The server is starting: it looks for the model, or downloads it.",
    Phase.LOADING: "The server is starting: the model is loading.",
}


@dataclass(frozen=True)
class StartingServer:
    """A server that starts, and whose port is bound.

    Attributes:
        settings: Its settings.
        listeners: A socket for each HTTP process.
        early: Answers on them for now.
    """

    settings: Settings
    listeners: Listeners
    early: EarlyAnswers


def begin() -> StartingServer:
    """Read this process's settings, listen, and start to answer; exit with an error message if that is not possible."""
    service_links = platforms.drop_service_links(ENV_PREFIX)
    settings = main_settings()
    configure_logging(settings.log_level, settings.log_format)
    if service_links:
        logger.warning("Ignored, as Kubernetes describes a Service with them: %s", ", ".join(service_links))
    for warning in unknown_variables():
        logger.warning("%s", warning)
    if (home := provide_home()) is not None:
        logger.warning("The home directory can't be written, so caches are in %s: they may not outlive a restart", home)
    try:
        listeners = Listeners(settings.host, settings.port, settings.api_servers)
        answers = StartingAnswers(_public_name(settings), settings.header_timeout_s)
        early = EarlyAnswers(listeners, functools.partial(_answer, answers))
        early.start()
    except OSError as error:
        sys.exit(f"error: Can't listen on {settings.host}:{settings.port}: {error.strerror}.")
    return StartingServer(settings, listeners, early)


async def _answer(answers: StartingAnswers, connection: socket.socket, phase: Phase) -> None:
    await answers.answer(connection, _REASONS[phase])


def _public_name(settings: Settings) -> str:
    """Return the model's name without a path of this machine, as far as it is known before the model is found."""
    if settings.models is not None:
        return settings.deployments[0].name
    return settings.model_name or (Path(settings.model).name if Path(settings.model).is_dir() else settings.model)
