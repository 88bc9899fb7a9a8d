"""What the two routes share: the images in `input`, and the form of errors. Pure; knows nothing of models.

https://developers.openai.com/api/reference: moderations, embeddings, error codes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest, InternalError, RateLimited, ViTError
from vit_api.web.openapi.descriptions import FAILURES
from vit_api.web.openapi.schemas import OpenAIErrorResponse
from vit_api.web.parameters import refuse_slip
from vit_api.web.responses import to_json
from vit_api.web.text_bodies import kind_of, load_object

INPUT = "input"

_EXAMPLE = '{"input": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}]}'
_SCHEMES = ("http://", "https://")
_MAX_SHOWN = 64

_DATA_URL_SCHEMA = {"type": "string", "format": "data-url", "description": "A `data:` URL"}

OPENAI_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {**described, "model": OpenAIErrorResponse} for status, described in FAILURES.items()
}
"""The failures of all routes that classify, in OpenAI's form."""

IGNORED = {"type": "string", "description": "Ignored"}
"""Describes the field `model` of a server with one model."""

INPUT_SCHEMA: dict[str, Any] = {
    "description": "Images as `data:` URLs: one or several strings, or objects of the type `image_url`",
    "anyOf": [
        _DATA_URL_SCHEMA,
        {
            "type": "array",
            "minItems": 1,
            "maxItems": 32,
            "items": {
                "anyOf": [
                    _DATA_URL_SCHEMA,
                    {
                        "type": "object",
                        "required": ["type", "image_url"],
                        "properties": {
                            "type": {"const": "image_url"},
                            "image_url": {
                                "type": "object",
                                "required": ["url"],
                                "properties": {"url": _DATA_URL_SCHEMA},
                            },
                        },
                    },
                ]
            },
        },
    ],
}


def content_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the body of a route by the fields of its JSON."""
    return {"application/json": {"schema": {"type": "object", "required": [INPUT], "properties": dict(properties)}}}


def failures_of(parameters: Sequence[dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Return the failures of a route; if parameters choose a model, that may be unknown."""
    unknown: dict[int | str, dict[str, Any]] = {
        404: {"model": OpenAIErrorResponse, "description": "The model or version does not exist"}
    }
    return OPENAI_FAILURES | unknown if parameters else OPENAI_FAILURES


def find_images(body: bytes, known: Collection[str]) -> tuple[list[bytes], dict[str, Any]]:
    """Return the images in the `input` of a request, and its other fields.

    Args:
        body: The body.
        known: The names of the fields that have a meaning; others are ignored unless they look like one of these.

    Raises:
        BadRequest: The JSON is malformed, or has anything else than images in it.
    """
    document = load_object(body, _EXAMPLE)
    if INPUT not in document:
        for name in document:
            refuse_slip(name, (INPUT,))
        raise BadRequest(f"The JSON has no '{INPUT}'. Send {_EXAMPLE}.")
    inputs = document.pop(INPUT)
    for name in document.keys() - set(known):
        refuse_slip(name, known)
    if not isinstance(model := document.get("model", ""), str):
        raise BadRequest(f"'model' is {kind_of(model)}, not a string.")
    several = isinstance(inputs, list)
    elements = inputs if several else [inputs]
    names = [name_of(number) if several else INPUT for number in range(len(elements))]
    return [decode_base64(_url_of(one, name), name) for one, name in zip(elements, names, strict=True)], document


def name_of(number: int) -> str:
    """Return what errors call an image of `input`."""
    return f"{INPUT}[{number}]"


def _url_of(element: Any, name: str) -> str:
    """Return the `data:` URL of an element of `input`."""
    url = element
    if isinstance(element, dict):
        kind = element.get("type")
        if kind == "text":
            raise BadRequest(f"'{name}' is text, and this model classifies images only. Send {_EXAMPLE}.")
        if kind != "image_url":
            raise BadRequest(f"'{name}' has the type {repr(kind)[:_MAX_SHOWN]}, not 'image_url'. Send {_EXAMPLE}.")
        image = element.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise BadRequest(f"'{name}' has no URL, but {kind_of(url)}. Send {_EXAMPLE}.")
    start = url[: len("https://")].lstrip().lower()
    if start.startswith("data:"):
        return url
    if start.startswith(_SCHEMES):
        raise BadRequest(f"'{name}' is a URL, and this server downloads no images. Send {_EXAMPLE}.")
    raise BadRequest(f"'{name}' is text, and this model classifies images only. Send {_EXAMPLE}.")


def error_body(error: ViTError) -> bytes:
    """Return the JSON of an error in OpenAI's form; the request id is in the header `x-request-id`."""
    kind = "server_error" if error.status >= InternalError.status else "invalid_request_error"
    if isinstance(error, RateLimited):
        kind = "rate_limit_error"
    return to_json({"error": {"message": error.message, "type": kind, "param": None, "code": error.code}})
