"""How the server's processes log. Knows nothing of what is logged."""

from __future__ import annotations

import logging

_FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Send the records of all loggers, also LitServe's and uvicorn's, to standard error in one format."""
    logging.basicConfig(level=level.upper(), format=_FORMAT, force=True)
    for name in ("litserve", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name in ("httpx", "PIL", "urllib3", "filelock"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
