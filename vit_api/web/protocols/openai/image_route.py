"""What the routes of images share: how they are described, and how the model is chosen."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

from vit_api.errors import ViTError
from vit_api.web.openapi.descriptions import URGENCY
from vit_api.web.protocols.openai.inputs import (
    IGNORED,
    INPUT,
    INPUT_SCHEMA,
    content_of,
    error_body,
    failures_of,
    find_images,
)
from vit_api.web.requests import Request
from vit_api.web.routes import Handler, HotRoute, Operation
from vit_api.web.uploads import Uploads

T = TypeVar("T")


class ImageRoute(Generic[T]):
    """A route of images.

    Args:
        model_of: Returns the model for a request and the name in its `model`.
        uploads: Finds the uploads in requests.
        named: Describes the field `model`.
        parameters: What chooses a model besides it, as OpenAPI parameters.
    """

    def __init__(
        self,
        model_of: Callable[[Request, str], T],
        uploads: Uploads,
        named: Mapping[str, Any] = IGNORED,
        parameters: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._model_of = model_of
        self._uploads = uploads
        self._named = named
        self._parameters = parameters

    def _route(
        self, path: str, handler: Handler, *, name: str, summary: str, fields: Mapping[str, Any] | None = None
    ) -> HotRoute:
        """Return the route of a path.

        Args:
            path: The path.
            handler: Answers its requests.
            name: The id of the operation.
            summary: What it does.
            fields: Describes the fields of its JSON besides `input` and `model`.
        """
        operation = Operation(
            path,
            name,
            summary,
            content_of({INPUT: INPUT_SCHEMA, "model": self._named, **(fields or {})}),
            [*URGENCY, *self._parameters],
            failures_of(self._parameters),
            dict[str, Any],
        )
        return HotRoute("POST", path, path, handler, self._uploads.limit_of_json, operation, error_body=error_body)

    async def _find(self, request: Request, known: Collection[str]) -> tuple[list[bytes | ViTError], dict[str, Any]]:
        """Return the uploads of a request, and the other fields of its JSON; see `find_images`."""
        return await self._uploads.find_in_list(request, functools.partial(find_images, known=known))

    def _choose(self, request: Request, fields: Mapping[str, Any]) -> T:
        """Return the model of a request, which is thereby parsed."""
        model = self._model_of(request, fields.get("model", ""))
        request.timeline.parsed_at = time.monotonic()
        return model
