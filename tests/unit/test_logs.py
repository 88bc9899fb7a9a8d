"""The log formats."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from vit_api.logs import JsonFormatter, RepeatFilter, TextFormatter


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


def test_repeats_of_a_minute_are_counted() -> None:
    """The first is logged, and the first after a minute, with the number of those that were not."""
    now = [100.0]
    repeats = RepeatFilter(lambda: now[0])
    kept = []
    for now[0] in (100.0, 100.1, 159.9, 160.0, 161.0, 300.0, 400.0):
        record = _record("failed", fields={"size": 3})
        if repeats.filter(record):
            kept.append((now[0], record.__dict__["fields"]))
    counted = {"size": 3, "dropped": 2}, {"size": 3, "dropped": 1}
    assert kept == [(100.0, {"size": 3}), (160.0, counted[0]), (300.0, counted[1]), (400.0, {"size": 3})]


def test_another_failure_is_no_repeat() -> None:
    """Neither another message nor another class of exception."""
    repeats = RepeatFilter()
    records = [_record("failed"), _record("lost"), _record("failed"), _record("failed"), _record("failed")]
    records[2].exc_info = (ValueError, ValueError(), None)
    records[3].exc_info = (OSError, OSError(), None)
    assert [repeats.filter(record) for record in records] == [True, True, True, True, False]
