"""One line of log for each request: what it was, what became of it, and what each stage took."""

from __future__ import annotations

import logging
from typing import Any

from vit_api.errors import ViTError
from vit_api.web.core.classifier import ClassifierResult, Source
from vit_api.web.observers.exchange import Exchange

logger = logging.getLogger(__name__)


class AccessLog:
    """Log each request when it has its answer.

    Neither bodies nor queries nor headers are logged, so that no image and no key gets into a log.
    """

    def __init__(self) -> None:
        logger.setLevel(logging.INFO)  # whoever asks for these lines wants them, whatever else is logged

    def observe(self, exchange: Exchange) -> None:
        """Log it."""
        scope = exchange.request.scope
        # A path may have line breaks and terminals' control codes, percent-encoded.
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
    if request.timeline.parsed_at is not None:
        fields["parse_ms"] = _ms(request.timeline.parsed_at - request.timeline.arrived_at)
    if len(exchange.outcomes) == 1:
        return fields | _of_one(exchange.outcomes[0])
    return fields | _of_several(exchange.outcomes) if exchange.outcomes else fields


def _of_one(outcome: ClassifierResult | ViTError) -> dict[str, Any]:
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


def _of_several(outcomes: Any) -> dict[str, Any]:
    classified = [outcome for outcome in outcomes if isinstance(outcome, ClassifierResult)]
    return {
        "images": len(outcomes),
        "hits": sum(outcome.source is Source.HIT for outcome in classified),
        "errors": len(outcomes) - len(classified),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
