"""Finds uploads in the bodies of requests: raw, in forms, or as base64 in JSON. Knows nothing of images."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest, EmptyUpload, UploadTooLarge, ViTError
from vit_api.web.forms import FormPart, parse_form
from vit_api.web.parameters import Fields, refuse_slip
from vit_api.web.requests import BodyLimit, Request

_ENVELOPE_BYTES = 64 * 1024
"""Maximum overhead of a form's or JSON's syntax around an upload."""

_FORM = b"multipart/form-data"
_URLENCODED = b"application/x-www-form-urlencoded"
_JSON = b"application/json"
_JSON_START = b"{"
_LEADING_SPACE = 64
_MAX_JSON_MARKS = 1000
_EXTRA_PARTS = 16
"""Maximum number of a form's fields besides its uploads."""

_MAX_FIELD_BYTES = 1024
"""Longer fields of a form are no parameters."""

_DATA_URL = b"data:"
_TEXT = re.compile(rb"\s*(data:.*|[A-Za-z0-9+/_=-][A-Za-z0-9+/_=\s-]{15,})", re.IGNORECASE | re.DOTALL)
"""The start of base64 or of a `data:` URL."""

SHORT_BODY_BYTES = 256 * 1024
"""Forms, and JSON with an upload, are parsed on the event loop up to this size, and in a thread above it."""

_TEXT_COPIES = 5
"""Copies of a text that are held at once: the JSON, its text, that without white space, its bytes, and the upload."""

JSON_LENGTH = b"inference-header-content-length"
"""HTTP header with the length of the JSON, for bodies in which binary data follows it."""

_MAX_LENGTH_DIGITS = 12
_LATIN_1_BYTES = bytes(range(0xC4))
"""In UTF-8, a character beyond Latin-1 has a byte that is none of them."""

_WIDE_ESCAPE = re.compile(rb"\\u(?!00)")

T = TypeVar("T")


class FoundUpload(NamedTuple):
    """The only upload of a request.

    Attributes:
        data: The bytes of the file.
        fields: What else the form or the JSON has.
    """

    data: bytes
    fields: Fields = ()


class FoundUploads(NamedTuple):
    """The uploads of a request.

    Attributes:
        data: The bytes of each file, or why it can't be classified.
        fields: What else the form has.
    """

    data: list[bytes | ViTError]
    fields: Fields = ()


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
        # Base64 has 4 characters for 3 bytes, and line breaks after 60 to 76 of them.
        self._json = BodyLimit(max_bytes * 4 // 3 * 31 // 30 + _ENVELOPE_BYTES, max_bytes)
        self._several = BodyLimit(max_total_bytes, max_total_bytes)

    def limit_of_one(self, request: Request) -> BodyLimit:
        """Return the maximum size of a body with one upload, by its content type."""
        media_type = request.media_type
        if media_type.startswith(_FORM):
            return self._form
        return self._json if media_type.startswith((_JSON, _URLENCODED)) else self._raw

    def limit_of_several(self, request: Request) -> BodyLimit:
        """Return the maximum size of a body with several uploads.

        Raises:
            BadRequest: The body is not a form.
        """
        if not request.media_type.startswith(_FORM):
            raise BadRequest("The body is not a form. Send the images as multipart/form-data in the field 'files'.")
        return self._several

    async def find_one(self, request: Request, field: str = "image") -> FoundUpload:
        """Return the request's upload: a file of a form, base64 in JSON, or the body itself.

        Args:
            request: A request of any content type.
            field: The field of JSON that has the upload.

        Raises:
            BadRequest: The form, the JSON or the base64 is malformed, or has no upload, or a form has several.
            EmptyUpload: The body or the upload is empty.
            UploadTooLarge: The upload exceeds the maximum.
        """
        body, media_type = request.take_body(), request.media_type
        if media_type.startswith(_FORM):
            found = await parse_body(request, body, self._one_in_form, request.headers[b"content-type"])
        # No image starts with a brace, and `curl -d` declares JSON as a form, so the content decides.
        elif body[:_LEADING_SPACE].lstrip().startswith(_JSON_START) or (
            media_type.startswith(_JSON) and _is_text(body)
        ):
            found = await parse_body(request, body, _one_in_json, field)
        elif media_type.startswith(_URLENCODED) and (start := f"{field}=".encode()) in body[:_MAX_FIELD_BYTES]:
            found = await parse_body(request, body, _one_in_urlencoded, start)
        else:
            found = FoundUpload(body)
        self._check(found.data)
        return found

    async def find_several(self, request: Request) -> FoundUploads:
        """Return the uploads in the form field `files`, or else all files of the form, in order.

        An empty or too large one is replaced by its error.

        Raises:
            BadRequest: The form is malformed, or has no uploads or too many.
        """
        content_type = request.headers[b"content-type"]
        uploads, fields = await parse_body(request, request.take_body(), self._several_in_form, content_type)
        if not 1 <= len(uploads) <= self._max_count:
            raise BadRequest(f"The form field 'files' must have 1 to {self._max_count} images, not {len(uploads)}.")
        return FoundUploads([self._checked_or_error(upload) for upload in uploads], fields)

    def _one_in_form(self, body: bytes, content_type: bytes) -> FoundUpload:
        files, fields = _files_of(self._parse_form(body, content_type, "file"), ("file",))
        if len(files) == 1:
            return FoundUpload(_content_of(files[0]), fields)
        if not files:
            raise BadRequest("The form has no file. Send the image in the form field 'file'.")
        names = ", ".join(f"'{name[:64]}' ({count})" for name, count in Counter(file.name for file in files).items())
        raise BadRequest(
            f"The form must have exactly one file, in the field 'file', not {len(files)}. It has {names}."
            " Send several images to /predict/batch."
        )

    def _several_in_form(self, body: bytes, content_type: bytes) -> tuple[list[bytes], Fields]:
        files, fields = _files_of(self._parse_form(body, content_type, "files"), ("files", "files[]"))
        return [_content_of(file) for file in files], fields

    def _parse_form(self, body: bytes, content_type: bytes, field: str) -> list[FormPart]:
        if not body:
            raise EmptyUpload(f"The request has no body. Send the image in the form field '{field}'.")
        return parse_form(body, content_type, max_parts=self._max_count + _EXTRA_PARTS)

    def _check(self, upload: bytes) -> None:
        if not upload:
            raise EmptyUpload("The upload is empty. Send the bytes of an image file.")
        if len(upload) > self._max_bytes:
            raise UploadTooLarge(self._max_bytes)

    def _checked_or_error(self, upload: bytes) -> bytes | ViTError:
        try:
            self._check(upload)
        except ViTError as error:
            return error
        return upload


def _files_of(parts: list[FormPart], names: tuple[str, ...]) -> tuple[list[FormPart], Fields]:
    """Split a form into its files and its other fields, which are parameters.

    The files are the parts of the given names, or else those that are sent as files, or else those that are no
    parameters.
    """
    choices = (
        [part for part in parts if part.name in names],
        [part for part in parts if part.filename is not None],
        [part for part in parts if len(part.content) > _MAX_FIELD_BYTES or part.content.startswith(_DATA_URL)],
    )
    files = next(filter(None, choices), [])
    others = [part for part in parts if part not in files and len(part.content) <= _MAX_FIELD_BYTES]
    return files, [(part.name, part.content.decode("latin-1").strip()) for part in others if part.filename is None]


def _content_of(file: FormPart) -> bytes:
    """Return a file's bytes; scripts also send base64 or a `data:` URL as text. No image's first bytes look like it."""
    if file.filename is None and _TEXT.fullmatch(file.content[:_LEADING_SPACE]):
        return decode_base64(file.content.decode("latin-1"), file.name)
    return file.content


async def parse_body(
    request: Request, body: bytes, parse: Callable[..., T], *arguments: Any, short_bytes: int = SHORT_BODY_BYTES
) -> T:
    """Return `parse(body, *arguments)`, called in a thread if the body is longer than `short_bytes`.

    Parsing a longer body would block the event loop for too long.

    Raises:
        BadRequest: Parsing the body takes far more memory than an upload needs.
    """
    if len(body) <= short_bytes:
        return parse(body, *arguments)
    if request.media_type.startswith(_FORM):
        return await request.run(parse, body, *arguments, held_bytes=len(body))
    length = request.headers.get(JSON_LENGTH, b"")
    text_bytes = min(int(length[:_MAX_LENGTH_DIGITS]), len(body)) if length.isdigit() else len(body)
    held_bytes = text_bytes * _TEXT_COPIES + len(body) - text_bytes
    return await request.run(_parse_text, body, text_bytes, parse, *arguments, held_bytes=held_bytes)


def _parse_text(body: bytes, text_bytes: int, parse: Callable[..., T], *arguments: Any) -> T:
    """Parse a body that starts with so many bytes of text.

    Python holds a text with characters beyond Latin-1 in up to four bytes for each character.
    """
    if text_bytes > SHORT_BODY_BYTES and _is_wide(body[:text_bytes]):
        raise BadRequest("The JSON has characters that base64 does not have. Send the bytes of the image as base64.")
    return parse(body, *arguments)


def _is_wide(text: bytes) -> bool:
    """Return whether JSON has characters beyond Latin-1. This holds the GIL, so it must be quick."""
    if not text.isascii() and text.translate(None, _LATIN_1_BYTES):
        return True
    return b"\\" in text and _WIDE_ESCAPE.search(text) is not None


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


def _one_in_json(body: bytes, field: str) -> FoundUpload:
    example = f'{{"{field}": "<base64>"}}'
    document = load_object(body, example)
    image = document.pop(field, None)
    if isinstance(image, str):
        if image.startswith(("http://", "https://")):
            raise BadRequest(f"'{field}' is a URL, and this server doesn't download images. Send the image as base64.")
        return FoundUpload(decode_base64(image, field), list(document.items()))
    if image is None:
        for name in document:
            refuse_slip(name, (field,))
    raise BadRequest(f"The JSON has no upload. Send {example}.")


def _one_in_urlencoded(body: bytes, start: bytes) -> FoundUpload:
    """Find base64 in a form without files; a plus sign that was not escaped is a space by now."""
    field = start[:-1].decode()
    try:
        fields = parse_qsl(body.decode("latin-1"), keep_blank_values=True, max_num_fields=_EXTRA_PARTS)
    except ValueError:
        raise BadRequest(f"The form has too many fields. Send at most {_EXTRA_PARTS}.") from None
    image = next((value for name, value in fields if name == field), "")
    return FoundUpload(
        decode_base64(image.strip().replace(" ", "+"), field),
        [(name, value) for name, value in fields if name != field],
    )
