"""The log formats."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from vit_api.logs import JsonFormatter, TextFormatter


def _record(message: str, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("x").makeRecord("x", logging.INFO, "file", 1, message, (), None, extra=extra)


def test_text_ends_with_the_fields() -> None:
    """They follow the message as key=value."""
    line = TextFormatter().format(_record("GET / 200", fields={"bytes": 3, "cache": "hit"}))
    assert re.search(r"INFO \d+ x: GET / 200 bytes=3 cache=hit$", line)


def test_json_is_always_one_line() -> None:
    """Line breaks, quotes and values that JSON can't represent are encoded."""
    message = 'one\ntwo "three"'
    line = JsonFormatter().format(_record(message, fields={"what": object}))
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["message"], parsed["level"], parsed["logger"]) == (message, "info", "x")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", parsed["time"])


def test_json_has_the_traceback() -> None:
    """The traceback is a separate member."""
    try:
        raise ValueError("planted")
    except ValueError as error:
        record = _record("failed")
        record.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: planted" in json.loads(JsonFormatter().format(record))["exception"]
