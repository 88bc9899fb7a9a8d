"""Uploads in requests: raw bodies, multipart forms and JSON with base64. Bounded; knows nothing of images."""

from __future__ import annotations

import json
from typing import Any

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header
from starlette.requests import Request

from vit_api.errors import BadRequest, EmptyUpload, UploadTooLarge, ViTError
from vit_api.lit_api import decode_base64

_ENVELOPE_BYTES = 64 * 1024
"""What a form's or JSON's own syntax may add to an upload."""

_JSON_START = b"{"


class Uploads:
    """Take uploads out of requests.

    Args:
        max_bytes: Of one upload at the most.
        max_count: Uploads in one request at the most.
        max_total_bytes: Of one request's body with several uploads at the most.
    """

    def __init__(self, *, max_bytes: int, max_count: int, max_total_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._max_total_bytes = max_total_bytes

    async def read_one(self, request: Request) -> bytes:
        """Return the request's upload: a form's field `file`, JSON's field `image`, or the body itself.

        Raises:
            BadRequest: The form, the JSON or the base64 is malformed, or has no upload.
            EmptyUpload: The body or the upload has no bytes.
            UploadTooLarge: There are more bytes than allowed; the rest was not read.
        """
        media_type, options = parse_options_header(request.headers.get("content-type", ""))
        if media_type == "multipart/form-data":
            body = await _read_body(request, self._max_bytes + _ENVELOPE_BYTES)
            uploads = self._parse_form(body, options.get("boundary", ""), "file")
            if len(uploads) != 1:
                raise BadRequest("send one upload in the form field 'file'; /predict/batch takes several")
            return self._checked(uploads[0])
        is_json = media_type == "application/json"
        # Base64 makes 4 characters of 3 bytes.
        body = await _read_body(request, self._max_bytes * 4 // 3 + _ENVELOPE_BYTES if is_json else self._max_bytes)
        # No image starts with a brace, and `curl -d` says that JSON is a form: the content decides.
        if body.lstrip()[:1] == _JSON_START or (is_json and _is_text(body)):
            body = _upload_in_json(body)
        return self._checked(body)

    async def read_many(self, request: Request) -> list[bytes | ViTError]:
        """Return the uploads of a form's field `files` in order; in place of an empty or too large one, its error.

        Raises:
            BadRequest: The body is not a well-formed form, or it has no upload or too many.
            UploadTooLarge: The whole body has more bytes than allowed; the rest was not read.
        """
        media_type, options = parse_options_header(request.headers.get("content-type", ""))
        if media_type != "multipart/form-data":
            raise BadRequest("send the images as multipart/form-data in the field 'files'")
        body = await _read_body(request, self._max_total_bytes)
        uploads = self._parse_form(body, options.get("boundary", ""), "files")
        if not 1 <= len(uploads) <= self._max_count:
            raise BadRequest(f"send 1 to {self._max_count} images in the form field 'files', not {len(uploads)}")
        return [self._checked_or_error(upload) for upload in uploads]

    def _checked(self, upload: bytes) -> bytes:
        if not upload:
            raise EmptyUpload("the upload is empty; send an image file's bytes")
        if len(upload) > self._max_bytes:
            raise _too_large(self._max_bytes)
        return upload

    def _checked_or_error(self, upload: bytes) -> bytes | ViTError:
        try:
            return self._checked(upload)
        except ViTError as error:
            return error

    def _parse_form(self, body: bytes, boundary: str, field: str) -> list[bytes]:
        """Return the contents of all parts named `field`."""
        if not body:
            raise EmptyUpload(f"the request has no body; send the image in the form field '{field}'")
        uploads: list[bytes] = []
        try:
            with PushMultipartParser(boundary, max_segment_count=self._max_count + 16) as parser:
                chunks: list[bytes] | None = None
                for event in parser.parse(body):
                    if isinstance(event, MultipartSegment):
                        chunks = [] if event.name == field else None
                    elif event is not None and chunks is not None:
                        chunks.append(event)
                    elif event is None and chunks is not None:
                        uploads.append(b"".join(chunks))
        except ParserLimitReached:
            raise BadRequest("the form has too many parts or too long headers") from None
        except MultipartError:
            raise BadRequest("the multipart form is malformed or cut off") from None
        return uploads


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body; refuse it at the limit while it arrives, or at once by its declared length."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(f"the upload has more than the {max_bytes / 2**20:.4g} MB that this server takes")


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return bool(body)


def _upload_in_json(body: bytes) -> bytes:
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the JSON is malformed") from None
    image = document.get("image") if isinstance(document, dict) else None
    if not isinstance(image, str):
        raise BadRequest('the JSON has no upload; send {"image": "<base64>"}')
    return decode_base64(image)
