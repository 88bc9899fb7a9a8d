"""Reads HTTP responses: a result, or an error and how long to wait before a retry.

Pure: it does no I/O. A response may come from anything in between, such as a proxy, and have any body: whatever it
says, nothing but `ClassifyError` is raised.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from vit_api.client.results import (
    Busy,
    Classification,
    ClassifiedFrame,
    ClassifyError,
    Rejected,
    ScoredLabel,
    ServerFailed,
    UnexpectedAnswer,
)

_REDIRECTS = range(300, 400)
_CLIENT_ERRORS = range(400, 500)
_BUSY = (429, 503)
_MESSAGE_LENGTH = 1000
_DELAY_SECONDS = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True)
class HttpAnswer:
    """An HTTP response.

    Attributes:
        status: The HTTP status.
        headers: By name; looked up in lower case.
        body: The whole body, decoded.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def to_classification(answer: HttpAnswer) -> Classification:
    """Read a response with status 200.

    Raises:
        UnexpectedAnswer: It is not a response of this API.
    """
    headers = answer.headers
    body = _json_object(answer.body)
    try:
        predictions = _predictions(body)
        batch_size = _header_number(headers, "x-batch-size")
        if not isinstance(body["predictions"], list) or not isinstance(body["cached"], bool):
            raise ValueError("It has no list of predictions, or does not say whether they were cached.")
        return Classification(
            predictions=predictions,
            cached=body["cached"],
            processing_time_ms=_number(body["processing_time_ms"]),
            model=_text(body["model"]),
            request_id=headers.get("x-request-id"),
            source=headers.get("x-cache"),
            queue_time_ms=_header_number(headers, "x-queue-time-ms"),
            inference_time_ms=_header_number(headers, "x-inference-time-ms"),
            batch_size=None if batch_size is None else int(batch_size),
            frames=tuple(map(_frame, body.get("frames") or ())),
            flagged=_flag(body),
            thresholds_digest=body.get("thresholds_digest"),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnexpectedAnswer(
            f"The response is not one of this API, but {_kind_of(headers)}: check the base URL.",
            status=answer.status,
            request_id=headers.get("x-request-id"),
        ) from error


def _predictions(body: Mapping[str, Any]) -> tuple[ScoredLabel, ...]:
    return tuple(ScoredLabel(_text(p["label"]), _number(p["confidence"]), _flag(p)) for p in body["predictions"])


def _flag(body: Mapping[str, Any]) -> bool | None:
    flagged = body.get("flagged")
    if not isinstance(flagged, bool | None):
        raise TypeError("It is neither true nor false.")
    return flagged


def _frame(body: Mapping[str, Any]) -> ClassifiedFrame:
    time_ms = body["time_ms"]
    return ClassifiedFrame(
        int(_number(body["index"])), None if time_ms is None else _number(time_ms), _predictions(body)
    )


def to_error(answer: HttpAnswer, now: float) -> ClassifyError:
    """Read a response with a status other than 200, from this API or from a proxy in front of it.

    Args:
        answer: The response.
        now: Seconds since 1970.
    """
    status, headers, body = answer.status, answer.headers, _json_object(answer.body)
    said, code, request_id = body.get("error"), body.get("code"), body.get("request_id")
    error = _error_class(status)(
        said[:_MESSAGE_LENGTH] if isinstance(said, str) and said else _foreign_message(answer),
        code=code if isinstance(code, str) and code else f"http_{status}",
        status=status,
        request_id=request_id if isinstance(request_id, str) else headers.get("x-request-id"),
    )
    if isinstance(error, Busy):
        error.retry_after_s = retry_after_s(headers, now)
    return error


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return the delay that `Retry-After` (RFC 9110, 10.2.3) asks for, whether as seconds or as a date.

    A date is compared with the response's own `Date` (RFC 9110, 6.6.1) if there is one, so that clock skew does not
    matter.

    Args:
        headers: The response's headers.
        now: Seconds since 1970, for responses without `Date`.

    Returns:
        Seconds, 0 for a date in the past, or None if the header is missing or malformed.
    """
    value = headers.get("retry-after", "").strip()
    if _DELAY_SECONDS.fullmatch(value):
        return float(value)
    moment = _moment(value)
    if moment is None:
        return None
    sent_at = _moment(headers.get("date", ""))
    return max(0.0, moment - (now if sent_at is None else sent_at))


def _moment(value: str) -> float | None:
    """Return an HTTP date (RFC 9110, 5.6.7, including the two obsolete forms) as seconds since 1970."""
    try:
        moment = parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def _error_class(status: int) -> type[ClassifyError]:
    if status in _BUSY:
        return Busy
    if status in _CLIENT_ERRORS:
        return Rejected
    return ServerFailed if status >= _CLIENT_ERRORS.stop else UnexpectedAnswer


def _foreign_message(answer: HttpAnswer) -> str:
    """Describe a response that this API did not send."""
    if answer.status in _REDIRECTS and "location" in answer.headers:
        # Without its query, which may contain a token.
        target = answer.headers["location"].partition("?")[0][:_MESSAGE_LENGTH]
        return f"The server redirects to {target}: use that server's address as the base URL."
    return f"HTTP status {answer.status} with {_kind_of(answer.headers)}, not from this API: check the proxy, if any."


def _kind_of(headers: Mapping[str, str]) -> str:
    return "a body of type " + (headers.get("content-type", "")[:100] or "unknown")


def _json_object(body: bytes) -> dict[str, Any]:
    """Parse the body as a JSON object; anything else gives an empty one."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("It is not a string.")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("It is not a finite number.")
    return float(value)


def _header_number(headers: Mapping[str, str], name: str) -> float | None:
    """Return a header's number; None if it is missing or malformed, since it is only informative."""
    try:
        return _number(float(headers[name]))
    except (KeyError, ValueError):
        return None
