"""`POST /v1/embeddings`, as OpenAI's, for images; see docs/answers.md. Knows nothing of how an image is embedded."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from vit_api.errors import BadRequest, UnsupportedOutput, ViTError
from vit_api.ipc.records import EMBEDDING, Prediction
from vit_api.web.parameters import parse_integer
from vit_api.web.protocols.openai.image_route import ImageRoute
from vit_api.web.protocols.openai.inputs import INPUT, name_of
from vit_api.web.protocols.results import NO_EMBEDDING, UploadClassifier, classify_several, results_only
from vit_api.web.requests import Request
from vit_api.web.responses import Response, to_json
from vit_api.web.routes import HotRoute

_PATH = "/v1/embeddings"
_FORMATS = ("float", "base64")
_FIELDS = (INPUT, "model", "encoding_format", "dimensions", "user")
_DIGITS = 9  # more than float32 has
_MAX_DIGITS = 9
_FORMAT = {"enum": list(_FORMATS), "default": _FORMATS[0]}


class EmbeddingModel:
    """A model that embeds.

    Args:
        classifier: Runs the model on the uploads.
        model_name: The name in each response.
    """

    def __init__(self, classifier: UploadClassifier, *, model_name: str) -> None:
        self._classifier = classifier
        self._model_name = model_name

    async def embed(
        self, request: Request, uploads: Sequence[bytes | ViTError], encoding: str, dimensions: Any
    ) -> Response:
        """Embed the images of a request: one vector for each, in their order; if one fails, the request fails."""
        outcomes = await classify_several(self._classifier, request, uploads, EMBEDDING)
        data = []
        for number, result in enumerate(results_only(outcomes, name_of)):
            embedding = _encode(result.prediction, encoding, dimensions)
            data.append({"object": "embedding", "index": number, "embedding": embedding})
        usage = {"prompt_tokens": 0, "total_tokens": 0}  # of text, of which there is none
        body = {"object": "list", "data": data, "model": self._model_name, "usage": usage}
        return Response(200, to_json(body), outcomes=outcomes)


class EmbeddingRoutes(ImageRoute[EmbeddingModel]):
    """The route of embeddings; for its arguments, see `ImageRoute`."""

    def routes(self) -> list[HotRoute]:
        """Return the route."""
        summary = "Embed 1 to 32 images as OpenAI's API does: `data:` URLs in, vectors of length 1 out."
        fields = {"encoding_format": _FORMAT}
        return [self._route(_PATH, self.embed, name="embed_images", summary=summary, fields=fields)]

    async def embed(self, request: Request) -> Response:
        """Embed images."""
        uploads, fields = await self._find(request, _FIELDS)
        encoding = _format_of(fields)
        model = self._choose(request, fields)
        return await model.embed(request, uploads, encoding, fields.get("dimensions"))


def _format_of(fields: Mapping[str, Any]) -> str:
    encoding = fields.get("encoding_format", _FORMATS[0])
    if encoding not in _FORMATS:
        raise BadRequest(f"'encoding_format' must be one of {', '.join(_FORMATS)}.")
    return str(encoding)


def _encode(prediction: Prediction, encoding: str, dimensions: Any) -> str | list[float]:
    """Return the embedding as base64 of little-endian float32, or as numbers."""
    packed = prediction.embedding
    if not packed:
        raise UnsupportedOutput(NO_EMBEDDING)
    values = prediction.embedding_values()
    if dimensions is not None and parse_integer(dimensions, max_digits=_MAX_DIGITS) != len(values):
        raise BadRequest(f"The model's embeddings have {len(values)} dimensions. Leave 'dimensions' out.")
    if encoding == "base64":
        return base64.b64encode(packed).decode()
    return [round(value, _DIGITS) for value in values]
