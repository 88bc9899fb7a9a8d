"""Finds uploads in the bodies of requests: raw, in multipart forms, or as base64 in JSON. Knows nothing of images."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest, EmptyUpload, UploadTooLarge, ViTError
from vit_api.web.requests import BodyLimit, Request

_ENVELOPE_BYTES = 64 * 1024
"""Maximum overhead of a form's or JSON's syntax around an upload."""

_FORM = b"multipart/form-data"
_JSON = b"application/json"
_JSON_START = b"{"
_LEADING_SPACE = 64
_MAX_JSON_MARKS = 1000
SHORT_BODY_BYTES = 256 * 1024
"""Forms, and JSON with an upload, are parsed on the event loop up to this size, and in a thread above it."""

T = TypeVar("T")


class Uploads:
    """Find the uploads of requests, within limits.

    Args:
        max_bytes: Maximum size of one upload.
        max_count: Maximum number of uploads in one request.
        max_total_bytes: Maximum size of the body of a request with several uploads.
    """

    def __init__(self, *, max_bytes: int, max_count: int, max_total_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._raw = BodyLimit(max_bytes, max_bytes)
        self._form = BodyLimit(max_bytes + _ENVELOPE_BYTES, max_bytes)
        self._json = BodyLimit(max_bytes * 4 // 3 + _ENVELOPE_BYTES, max_bytes)  # base64: 4 characters for 3 bytes
        self._several = BodyLimit(max_total_bytes, max_total_bytes)

    def limit_of_one(self, request: Request) -> BodyLimit:
        """Return the maximum size of a body with one upload, by its content type."""
        return self._form if request.media_type.startswith(_FORM) else self.limit_of_raw_or_json(request)

    def limit_of_raw_or_json(self, request: Request) -> BodyLimit:
        """Return the maximum size of a body with one upload on a path that takes no forms."""
        return self._json if request.media_type.startswith(_JSON) else self._raw

    def limit_of_several(self, request: Request) -> BodyLimit:
        """Return the maximum size of a body with several uploads.

        Raises:
            BadRequest: The body is not a form.
        """
        if not request.media_type.startswith(_FORM):
            raise BadRequest("The body is not a form. Send the images as multipart/form-data in the field 'files'.")
        return self._several

    async def find_one(self, request: Request) -> bytes:
        """Return the request's upload: the form field `file`, the JSON field `image`, or the body itself.

        Raises:
            BadRequest: The form, the JSON or the base64 is malformed, or has no upload.
            EmptyUpload: The body or the upload is empty.
            UploadTooLarge: The upload exceeds the maximum.
        """
        if request.media_type.startswith(_FORM):
            uploads = await self._parsed_form(request, "file")
            if len(uploads) != 1:
                raise BadRequest(
                    f"The form must have exactly one upload in the field 'file', not {len(uploads)}."
                    " Send several images to /predict/batch."
                )
            return self._checked(uploads[0])
        upload, _ = await self.find_raw_or_json(request, _image_in_json)
        return upload

    async def find_raw_or_json(
        self, request: Request, parse: Callable[[bytes], tuple[bytes, T]]
    ) -> tuple[bytes, T | None]:
        """Return the request's upload, and the parameters beside it if the body is JSON.

        Args:
            request: A request of any content type.
            parse: Returns the upload and the parameters in a JSON body.

        Returns:
            The upload, and what `parse` returned beside it; None for a raw body.

        Raises:
            BadRequest: The JSON or the base64 is malformed, or has no upload.
            EmptyUpload: The body or the upload is empty.
            UploadTooLarge: The upload exceeds the maximum.
        """
        body = request.take_body()
        # No image starts with a brace, and `curl -d` declares JSON as a form, so the content decides.
        start = body[:_LEADING_SPACE].lstrip()
        if start.startswith(_JSON_START) or (request.media_type.startswith(_JSON) and _is_text(body)):
            upload, rest = await parse_body(body, parse)
            return self._checked(upload), rest
        return self._checked(body), None

    async def find_several(self, request: Request) -> list[bytes | ViTError]:
        """Return the uploads in the form field `files`, in order; an empty or too large one is replaced by its error.

        Raises:
            BadRequest: The form is malformed, or has no uploads or too many.
        """
        uploads = await self._parsed_form(request, "files")
        if not 1 <= len(uploads) <= self._max_count:
            raise BadRequest(f"The form field 'files' must have 1 to {self._max_count} images, not {len(uploads)}.")
        return [self._checked_or_error(upload) for upload in uploads]

    async def _parsed_form(self, request: Request, field: str) -> list[bytes]:
        content_type = request.headers[b"content-type"]
        return await parse_body(request.take_body(), self._parse_form, content_type, field)

    def _checked(self, upload: bytes) -> bytes:
        if not upload:
            raise EmptyUpload("The upload is empty. Send the bytes of an image file.")
        if len(upload) > self._max_bytes:
            raise UploadTooLarge(self._max_bytes)
        return upload

    def _checked_or_error(self, upload: bytes) -> bytes | ViTError:
        try:
            return self._checked(upload)
        except ViTError as error:
            return error

    def _parse_form(self, body: bytes, content_type: bytes, field: str) -> list[bytes]:
        """Return the contents of all parts with the name `field`."""
        if not body:
            raise EmptyUpload(f"The request has no body. Send the image in the form field '{field}'.")
        boundary = parse_options_header(content_type.decode("latin-1"))[1].get("boundary", "")
        uploads: list[bytes] = []
        try:
            max_parts = self._max_count + 16
            # Latin-1 decodes any byte: file names are ignored, so a form must not be rejected because of one.
            with PushMultipartParser(boundary, max_segment_count=max_parts, header_charset="latin-1") as parser:
                chunks: list[bytes] | None = None
                for event in parser.parse(body):
                    if isinstance(event, MultipartSegment):
                        chunks = [] if event.name == field else None
                    elif event is not None and chunks is not None:
                        chunks.append(event)
                    elif event is None and chunks is not None:
                        uploads.append(b"".join(chunks))
        except ParserLimitReached:
            raise BadRequest("The form has too many parts, or a part has too long headers.") from None
        except MultipartError:
            raise BadRequest("The multipart form is malformed or truncated.") from None
        return uploads


async def parse_body(body: bytes, parse: Callable[..., T], *arguments: Any, short_bytes: int = SHORT_BODY_BYTES) -> T:
    """Return `parse(body, *arguments)`, called in a thread if the body is longer than `short_bytes`.

    Parsing a longer body would block the event loop for too long.
    """
    if len(body) <= short_bytes:
        return parse(body, *arguments)
    return await asyncio.get_running_loop().run_in_executor(None, parse, body, *arguments)


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return bool(body)


def load_object(body: bytes, example: str) -> dict[str, Any]:
    """Return the JSON object in a body that carries an upload.

    Args:
        body: JSON.
        example: A valid body, for error messages.

    Raises:
        BadRequest: The JSON is malformed, is not an object, or has far more values than an upload needs.
    """
    # Base64 has none of these bytes. json.loads holds the GIL, so a long list would block every thread.
    if sum(map(body.count, (b"{", b"[", b'"', b","))) > _MAX_JSON_MARKS:
        raise BadRequest(f"The JSON has more than an upload. Send {example}.")
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("The JSON is malformed.") from None
    if not isinstance(document, dict):
        raise BadRequest(f"The JSON has no upload. Send {example}.")
    return document


def _image_in_json(body: bytes) -> tuple[bytes, None]:
    example = '{"image": "<base64>"}'
    image = load_object(body, example).get("image")
    if not isinstance(image, str):
        raise BadRequest(f"The JSON has no upload. Send {example}.")
    return decode_base64(image), None
