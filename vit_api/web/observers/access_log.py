"""The access log: a line for each request, with its outcome and the time of each stage. Knows nothing of formats."""

from __future__ import annotations

import logging
from typing import Any

from vit_api.errors import ViTError
from vit_api.web.core.classifier_result import ClassifierResult, Source
from vit_api.web.observers.exchange import Exchange

logger = logging.getLogger(__name__)


class AccessLog:
    """Log each request after its response.

    Bodies, query strings and headers are never logged, so that no image and no key gets into a log.
    """

    def __init__(self) -> None:
        logger.setLevel(logging.INFO)  # it has its own setting, independent of the minimum log level

    def observe(self, exchange: Exchange) -> None:
        """Log the request."""
        scope = exchange.request.scope
        # A percent-encoded path may decode to line breaks and terminal control codes.
        path = scope["path"].encode("unicode_escape").decode()
        logger.info("%s %s %d", scope["method"], path, exchange.status, extra={"fields": _fields(exchange)})


def _fields(exchange: Exchange) -> dict[str, Any]:
    request = exchange.request
    fields: dict[str, Any] = {
        "request_id": request.id.decode(),
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
