"""The access log: a line for each request, with its outcome and the time of each stage. Knows nothing of formats."""

from __future__ import annotations

import logging
from typing import Any

from vit_api.errors import ViTError
from vit_api.web.core.classifier_result import ClassifierResult, Source
from vit_api.web.observers.exchange import Exchange

logger = logging.getLogger(__name__)

_MAX_AGENT_CHARACTERS = 256


class AccessLog:
    """Log each request after its response.

    Bodies, query strings and other headers than the user agent are never logged, so that no image and no key gets into
    a log.

    Args:
        has_user_agent: Log the header `User-Agent`, too.
    """

    def __init__(self, *, has_user_agent: bool = False) -> None:
        logger.setLevel(logging.INFO)  # it has its own setting, independent of the minimum log level
        self._has_user_agent = has_user_agent

    def observe(self, exchange: Exchange) -> None:
        """Log the request."""
        request = exchange.request
        method, path = request.scope["method"], _printable(request.scope["path"])
        fields = {"request_id": request.id.decode(), "method": method, "path": path, "client": request.address}
        if self._has_user_agent:
            agent = request.headers.get(b"user-agent", b"")
            fields["user_agent"] = _printable(agent.decode("latin-1")[:_MAX_AGENT_CHARACTERS])
        logger.info("%s %s %d", method, path, exchange.status, extra={"fields": fields | _fields(exchange)})


def _printable(text: str) -> str:
    """Escape line breaks and terminal control codes; a percent-encoded path may decode to them."""
    return text.encode("unicode_escape").decode()


def _fields(exchange: Exchange) -> dict[str, Any]:
    request = exchange.request
    fields: dict[str, Any] = {
        "status": exchange.status,
        "bytes": request.received_bytes,
        "total_ms": _ms(exchange.seconds),
    }
    if request.deployment is not None:
        fields |= {"model": request.deployment.name, "version": request.deployment.version}
    if request.timeline.parsed_at is not None:
        fields["parse_ms"] = _ms(request.timeline.parsed_at - request.timeline.arrived_at)
    if len(exchange.outcomes) == 1:
        return fields | _image_fields(exchange.outcomes[0])
    return fields | _batch_fields(exchange.outcomes) if exchange.outcomes else fields


def _image_fields(outcome: ClassifierResult | ViTError) -> dict[str, Any]:
    if isinstance(outcome, ViTError):
        return {"error": outcome.code}
    fields: dict[str, Any] = {"cache": outcome.source.value}
    answer = outcome.own_answer
    if answer is None:
        return fields
    return fields | {
        "decode_ms": _ms(outcome.decode_s),
        "queue_ms": _ms(answer.queue_s),
        "inference_ms": _ms(answer.inference_s),
        "batch_size": answer.batch_size,
    }


def _batch_fields(outcomes: Any) -> dict[str, Any]:
    classified = [outcome for outcome in outcomes if isinstance(outcome, ClassifierResult)]
    return {
        "images": len(outcomes),
        "hits": sum(outcome.source is Source.HIT for outcome in classified),
        "errors": len(outcomes) - len(classified),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
