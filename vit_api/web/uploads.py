"""Uploads in requests: raw bodies, multipart forms and JSON with base64. Bounded; knows nothing of images."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest, EmptyUpload, UploadTooLarge, ViTError
from vit_api.web.requests import Request

_ENVELOPE_BYTES = 64 * 1024
"""What a form's or JSON's own syntax may add to an upload."""

_FORM = b"multipart/form-data"
_JSON = b"application/json"
_LONGEST_TYPE = 32
_JSON_START = b"{"
_LEADING_SPACE = 64
_MOST_JSON_MARKS = 1000
SHORT_BODY_BYTES = 256 * 1024
"""Up to this size a form, or JSON with an upload, is parsed in well under a millisecond."""

T = TypeVar("T")


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
        content_type = request.headers.get(b"content-type", b"")
        if content_type[:_LONGEST_TYPE].lower().startswith(_FORM):
            body = await self._read_enveloped(request, self._max_bytes)
            uploads = await parse_body(body, self._parse_form, content_type, "file")
            if len(uploads) != 1:
                raise BadRequest("send one upload in the form field 'file'; /predict/batch takes several")
            return self._checked(uploads[0])
        upload, _ = await self.read_raw_or_json(request, _image_in_json)
        return upload

    async def read_raw_or_json(
        self, request: Request, parse: Callable[[bytes], tuple[bytes, T]]
    ) -> tuple[bytes, T | None]:
        """Return the request's upload, which is the body itself or in its JSON, and what else `parse` finds there.

        Args:
            request: It may have any content type.
            parse: Returns the upload that is in JSON, and anything else; None stands for that of a raw body.

        Raises:
            BadRequest: The JSON or the base64 is malformed, or has no upload.
            EmptyUpload: The body or the upload has no bytes.
            UploadTooLarge: There are more bytes than allowed; the rest was not read.
        """
        content_type = request.headers.get(b"content-type", b"")
        is_json = content_type[:_LONGEST_TYPE].lower().startswith(_JSON)
        # Base64 makes 4 characters of 3 bytes.
        body = await (
            self._read_enveloped(request, self._max_bytes * 4 // 3) if is_json else request.read_body(self._max_bytes)
        )
        # No image starts with a brace, and `curl -d` says that JSON is a form: the content decides.
        if body[:_LEADING_SPACE].lstrip().startswith(_JSON_START) or (is_json and _is_text(body)):
            upload, rest = await parse_body(body, parse)
            return self._checked(upload), rest
        return self._checked(body), None

    async def read_many(self, request: Request) -> list[bytes | ViTError]:
        """Return the uploads of a form's field `files` in order; in place of an empty or too large one, its error.

        Raises:
            BadRequest: The body is not a well-formed form, or it has no upload or too many.
            UploadTooLarge: The whole body has more bytes than allowed; the rest was not read.
        """
        content_type = request.headers.get(b"content-type", b"")
        if not content_type[:_LONGEST_TYPE].lower().startswith(_FORM):
            raise BadRequest("send the images as multipart/form-data in the field 'files'")
        body = await request.read_body(self._max_total_bytes)
        uploads = await parse_body(body, self._parse_form, content_type, "files")
        if not 1 <= len(uploads) <= self._max_count:
            raise BadRequest(f"send 1 to {self._max_count} images in the form field 'files', not {len(uploads)}")
        return [self._checked_or_error(upload) for upload in uploads]

    async def _read_enveloped(self, request: Request, max_bytes: int) -> bytes:
        """Read a body with an upload of so many bytes in it; what a client is told of is the upload's own limit."""
        try:
            return await request.read_body(max_bytes + _ENVELOPE_BYTES)
        except UploadTooLarge:
            raise UploadTooLarge(self._max_bytes) from None

    def _checked(self, upload: bytes) -> bytes:
        if not upload:
            raise EmptyUpload("the upload is empty; send an image file's bytes")
        if len(upload) > self._max_bytes:
            raise UploadTooLarge(self._max_bytes)
        return upload

    def _checked_or_error(self, upload: bytes) -> bytes | ViTError:
        try:
            return self._checked(upload)
        except ViTError as error:
            return error

    def _parse_form(self, body: bytes, content_type: bytes, field: str) -> list[bytes]:
        """Return the contents of all parts named `field`."""
        if not body:
            raise EmptyUpload(f"the request has no body; send the image in the form field '{field}'")
        boundary = parse_options_header(content_type.decode("latin-1"))[1].get("boundary", "")
        uploads: list[bytes] = []
        try:
            most = self._max_count + 16
            # Latin-1 takes any byte: no part's file name matters, so none is a reason to refuse a form.
            with PushMultipartParser(boundary, max_segment_count=most, header_charset="latin-1") as parser:
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


async def parse_body(body: bytes, parse: Callable[..., T], *arguments: Any, short_bytes: int = SHORT_BODY_BYTES) -> T:
    """Parse a body; one that isn't short in a thread, since it takes longer than the event loop may be held up."""
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
        example: What it should look like, for a client that sent anything else.

    Raises:
        BadRequest: It is no object, malformed, or has much more in it than an upload.
    """
    # Base64 has none of these bytes. Lists without end would hold up every thread while they are parsed.
    if sum(map(body.count, (b"{", b"[", b'"', b","))) > _MOST_JSON_MARKS:
        raise BadRequest(f"the JSON has more than an upload; send {example}")
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the JSON is malformed") from None
    if not isinstance(document, dict):
        raise BadRequest(f"the JSON has no upload; send {example}")
    return document


def _image_in_json(body: bytes) -> tuple[bytes, None]:
    example = '{"image": "<base64>"}'
    image = load_object(body, example).get("image")
    if not isinstance(image, str):
        raise BadRequest(f"the JSON has no upload; send {example}")
    return decode_base64(image), None
