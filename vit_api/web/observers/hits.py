"""Records hits that were answered by what is known of an earlier request. Knows nothing of how they are answered."""

from __future__ import annotations

from collections.abc import Sequence

from vit_api.decoding.uploads import Upload
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.observers.exchange import Exchange, Observer
from vit_api.web.repeats import AnsweredHit
from vit_api.web.requests import Request

_OK = 200


class HitRecorder:
    """Tells observers that record more than numbers of each hit: a log, traces.

    Args:
        request: The first request with the same head.
        observers: The observers.
    """

    def __init__(self, request: Request, observers: Sequence[Observer]) -> None:
        self._request = request
        self._observers = observers

    def record(self, hit: AnsweredHit, cached: CachedPrediction, upload: Upload, received_bytes: int) -> None:
        """Record a hit.

        Args:
            hit: What is its own.
            cached: Its prediction.
            upload: The upload.
            received_bytes: The size of its body.
        """
        request = self._request.again(hit.request_id, hit.client, hit.began_at, received_bytes)
        result = ClassifierResult(cached, Source.HIT, None, 0.0, hit.ended_at, hit.tier, upload)
        exchange = Exchange(request, _OK, hit.ended_at, (result,))
        for observer in self._observers:
            observer.observe(exchange)
