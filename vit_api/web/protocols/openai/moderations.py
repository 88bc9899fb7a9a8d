"""`POST /v1/moderations`, as OpenAI's, for images; see docs/answers.md. Knows nothing of how an image is classified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vit_api.errors import ViTError
from vit_api.ipc.records import ALL_CLASSES, MAX_TOP_K, Prediction
from vit_api.labels.categories import CATEGORIES, Categories
from vit_api.labels.thresholds import OTHERS, SCORE_DIGITS, Thresholds
from vit_api.web.protocols.openai.image_route import ImageRoute
from vit_api.web.protocols.openai.inputs import INPUT, name_of
from vit_api.web.protocols.results import UploadClassifier, classify_several, results_only
from vit_api.web.requests import Request
from vit_api.web.responses import Response, to_json
from vit_api.web.routes import HotRoute

_PATH = "/v1/moderations"
_DEFAULT = Thresholds({OTHERS: 0.5})


class ModerationModel:
    """A model that moderates.

    Args:
        classifier: Classifies the uploads.
        model_name: The name in each response.
        labels: The class names, by index.
        has_sigmoid: Whether the model's probabilities are sigmoids; see `Checkpoint`.
        categories: The labels of each category.
        thresholds: From which scores on labels are flagged; None: from 0.5 on.
    """

    def __init__(
        self,
        classifier: UploadClassifier,
        *,
        model_name: str,
        labels: Sequence[str],
        has_sigmoid: bool,
        categories: Categories,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._classifier = classifier
        self._model_name = model_name
        self._labels = labels
        self._has_sigmoid = has_sigmoid
        self._by_category = categories.labels
        self._thresholds = thresholds or _DEFAULT
        self._parts = ALL_CLASSES if len(labels) > MAX_TOP_K else 0

    async def moderate(self, request: Request, uploads: Sequence[bytes | ViTError]) -> Response:
        """Moderate the images of a request: one result for each, in their order; if one fails, the request fails."""
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


class ModerationRoutes(ImageRoute[ModerationModel]):
    """The route of moderations; for its arguments, see `ImageRoute`."""

    def routes(self) -> list[HotRoute]:
        """Return the route."""
        summary = "Moderate 1 to 32 images as OpenAI's API does: `data:` URLs in, flagged categories out."
        return [self._route(_PATH, self.moderate, name="moderate_images", summary=summary)]

    async def moderate(self, request: Request) -> Response:
        """Moderate images."""
        uploads, fields = await self._find(request, (INPUT, "model"))
        return await self._choose(request, fields).moderate(request, uploads)
