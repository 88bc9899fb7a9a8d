"""Configures logging for the server's processes: text or JSON, one line per record. Knows nothing of what is logged.

A record may have `fields`, a mapping, in its `extra`: text has them as `key=value` after the message, JSON as members.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

_PLAIN = re.compile(r"[^\s\"=]+")
_REPEAT_S = 60.0
_FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


class TextFormatter(logging.Formatter):
    """Formats records as text, for people."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Append the fields to the message, before a traceback."""
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _fields_of(record).items())
        return super().formatMessage(record) + fields


def _quoted(value: Any) -> str:
    """Return a value as text; in quotes if it could be read as the end of the field."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """Formats records as JSON objects, one per line; line breaks in a record are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class RepeatFilter(logging.Filter):
    """Drops records that repeat another of the last minute; the next one has their number in the field `dropped`.

    Records of one call and one class of exception are repeats: a model that fails with each batch would write megabytes
    of tracebacks a second, which delays others.

    Args:
        clock: Returns a monotonic time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[Any, Any], tuple[float, int]] = {}  # when one was let through, and how many were not

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged."""
        kind = record.msg, record.exc_info[0] if record.exc_info else None
        now = self._clock()
        logged_at, dropped = self._seen.get(kind, (now - _REPEAT_S, 0))
        if now - logged_at < _REPEAT_S:
            self._seen[kind] = logged_at, dropped + 1
            return False
        self._seen[kind] = now, 0
        if dropped:
            record.fields = {**_fields_of(record), "dropped": dropped}
        return True


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send the records of all loggers, including LitServe's and uvicorn's, to standard error in one format.

    uvicorn's reports of the start and stop of each process are left out unless the level is `debug`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("litserve", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    if logging.getLogger().level > logging.DEBUG:
        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
    for name in ("httpx", "PIL", "urllib3", "filelock"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
