"""What an answer means to the client: a result, or an error and when to try again.

Pure: it does no I/O. An answer may come from anybody, such as a proxy, and have any body; it never raises anything but
`ClassifyError`.
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
    ClassifyError,
    Prediction,
    Rejected,
    ServerFailed,
    UnexpectedAnswer,
)

_REDIRECTS = range(300, 400)
_CLIENT_ERRORS = range(400, 500)
_BUSY = (429, 503)
_MESSAGE_LENGTH = 1000
_DELAY_SECONDS = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True)
class Answer:
    """An HTTP response.

    Attributes:
        status: The HTTP status.
        headers: By name; looked up in lower case.
        body: All of it, without content encoding.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def to_classification(answer: Answer) -> Classification:
    """Read an answer with status 200.

    Raises:
        UnexpectedAnswer: It is not what this API answers.
    """
    headers = answer.headers
    body = _json_object(answer.body)
    try:
        predictions = tuple(Prediction(_text(p["label"]), _number(p["confidence"])) for p in body["predictions"])
        batch_size = _header_number(headers, "x-batch-size")
        if not predictions or not isinstance(body["cached"], bool):
            raise ValueError("no predictions, or no word on the cache")
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
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnexpectedAnswer(
            f"the answer is not one of this API ({_kind_of(headers)}); is the base URL right?",
            status=answer.status,
            request_id=headers.get("x-request-id"),
        ) from error


def to_error(answer: Answer, now: float) -> ClassifyError:
    """Read an answer with another status than 200, also one that comes from a proxy and has another body.

    Args:
        answer: The answer.
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
    """Return how many seconds to wait by `Retry-After` (RFC 9110, 10.2.3): a number, or a moment still to come.

    A moment is compared with the answer's own `Date` (RFC 9110, 6.6.1) if it has one, so that clocks that differ do
    no harm.

    Args:
        headers: The answer's.
        now: Seconds since 1970, for answers without `Date`.

    Returns:
        Seconds, 0 for a moment that is over, or None if the header is missing or malformed.
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
    """Return an HTTP date (RFC 9110, 5.6.7; the two obsolete forms, too) in seconds since 1970."""
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


def _foreign_message(answer: Answer) -> str:
    """Say what came that this API does not send."""
    if answer.status in _REDIRECTS and "location" in answer.headers:
        # Without its query, which may have a token.
        target = answer.headers["location"].partition("?")[0][:_MESSAGE_LENGTH]
        return f"the server redirects to {target}; use the address that it redirects to as the base URL"
    return f"HTTP status {answer.status} with {_kind_of(answer.headers)}, not from this API: a proxy's, perhaps"


def _kind_of(headers: Mapping[str, str]) -> str:
    return "a body of type " + (headers.get("content-type", "")[:100] or "unknown")


def _json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that the body is, or an empty one."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)


def _header_number(headers: Mapping[str, str], name: str) -> float | None:
    """Return a header's number; None if it is missing or something else, as it only informs."""
    try:
        return _number(float(headers[name]))
    except (KeyError, ValueError):
        return None
