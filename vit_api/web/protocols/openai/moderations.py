"""`POST /v1/moderations`, as OpenAI's, for images; see docs/answers.md. Knows nothing of how an image is classified."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vit_api.ipc.records import ALL_CLASSES, MAX_TOP_K, Prediction
from vit_api.labels.categories import CATEGORIES, Categories
from vit_api.labels.thresholds import OTHERS, SCORE_DIGITS, Thresholds
from vit_api.web.openapi.descriptions import URGENCY
from vit_api.web.protocols.openai.inputs import INPUT, INPUT_SCHEMA, OPENAI_FAILURES, error_body, find_images, name_of
from vit_api.web.protocols.results import UploadClassifier, classify_several, results_only
from vit_api.web.requests import Request
from vit_api.web.responses import Response, to_json
from vit_api.web.routes import HotRoute, Operation
from vit_api.web.uploads import Uploads

_PATH = "/v1/moderations"
_DEFAULT = Thresholds({OTHERS: 0.5})
_CONTENT = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": [INPUT],
            "properties": {INPUT: INPUT_SCHEMA, "model": {"type": "string", "description": "Ignored"}},
        }
    }
}


class ModerationRoutes:
    """The route of moderations.

    Args:
        classifier: Classifies the uploads.
        uploads: Finds the uploads in requests.
        model_name: The name in each response.
        labels: The class names, by index.
        has_sigmoid: Whether the model's probabilities are sigmoids; see `Checkpoint`.
        categories: The labels of each category.
        thresholds: From which scores on labels are flagged; None: from 0.5 on.
    """

    def __init__(
        self,
        classifier: UploadClassifier,
        uploads: Uploads,
        *,
        model_name: str,
        labels: Sequence[str],
        has_sigmoid: bool,
        categories: Categories,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._classifier = classifier
        self._uploads = uploads
        self._model_name = model_name
        self._labels = labels
        self._has_sigmoid = has_sigmoid
        self._by_category = categories.labels
        self._thresholds = thresholds or _DEFAULT
        self._parts = ALL_CLASSES if len(labels) > MAX_TOP_K else 0

    def routes(self) -> list[HotRoute]:
        """Return the route."""
        operation = Operation(
            _PATH,
            "moderate_images",
            "Moderate 1 to 32 images as OpenAI's API does: `data:` URLs in, flagged categories out.",
            _CONTENT,
            URGENCY,
            OPENAI_FAILURES,
            dict[str, Any],
        )
        limit = self._uploads.limit_of_json
        return [HotRoute("POST", _PATH, _PATH, self.moderate, limit, operation, error_body=error_body)]

    async def moderate(self, request: Request) -> Response:
        """Moderate images: one result for each, in their order; if one fails, the request fails."""
        find = functools.partial(find_images, known=(INPUT, "model"))
        uploads, _ = await self._uploads.find_in_list(request, find)
        request.timeline.parsed_at = time.monotonic()
        outcomes = await classify_several(self._classifier, request, uploads, self._parts)
        results = [self._result(result.prediction) for result in results_only(outcomes, name_of)]
        body = {"id": f"modr-{request.id.decode()}", "model": self._model_name, "results": results}
        return Response(200, to_json(body), outcomes=outcomes)

    def _result(self, prediction: Prediction) -> dict[str, Any]:
        """Return the result of one image: its scores by category, the largest of the category's labels."""
        probabilities = prediction.scores(sigmoid=self._has_sigmoid)
        scores: dict[str, float] = {}
        for index, score in zip(prediction.indices, probabilities, strict=True):
            scores.setdefault(self._labels[index], round(score, SCORE_DIGITS))  # of labels with one name the largest
        flagged = {name: self._is_flagged(labels, scores) for name, labels in self._by_category.items()}
        largest = {name: max(scores[label] for label in labels) for name, labels in self._by_category.items()}
        # Typed clients expect all of OpenAI's categories.
        names = [*CATEGORIES, *(name for name in self._by_category if name not in CATEGORIES)]
        return {
            "flagged": any(flagged.values()),
            "categories": {name: flagged.get(name, False) for name in names},
            "category_scores": {name: largest.get(name, 0.0) for name in names},
            "category_applied_input_types": {name: ["image"] if name in largest else [] for name in names},
        }

    def _is_flagged(self, labels: Sequence[str], scores: Mapping[str, float]) -> bool:
        return any(self._thresholds.flags(label, scores[label]) for label in labels)
