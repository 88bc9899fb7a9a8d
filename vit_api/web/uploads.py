"""Finds uploads in the bodies of requests: raw, in forms, or as base64 in JSON. Knows nothing of images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest, EmptyUpload, UploadTooLarge, ViTError
from vit_api.web.forms import FormPart, parse_form
from vit_api.web.parameters import Fields
from vit_api.web.requests import BodyLimit, Request
from vit_api.web.text_bodies import find_in_json, find_in_urlencoded, is_json, is_urlencoded, listed

_ENVELOPE_BYTES = 64 * 1024
"""Maximum overhead of a form's or JSON's syntax around an upload."""

_FORM = b"multipart/form-data"
_URLENCODED = b"application/x-www-form-urlencoded"
_JSON = b"application/json"
_WRAPPED = (_FORM, _URLENCODED, _JSON)
_LEADING_SPACE = 64
_EXTRA_PARTS = 16
"""Maximum number of a form's fields besides its uploads."""

_MAX_FIELD_BYTES = 1024
"""Longer fields of a form are no parameters."""

_DATA_URL = b"data:"
_FORM_START = b"--"
_DISPOSITION = b"content-disposition:"
_NAMELESS = ": no part of it has a Content-Disposition with a name"
_TEXTS = (b"text/", b"application/base64")
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
        self._parsed: tuple[bytes, FoundUpload] | None = None  # what `only_file` has found, for `find_one`

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
            raise BadRequest(
                f"The body is not a form: Content-Type is {_shown(request.media_type)}."
                " Send the images as multipart/form-data in the field 'files'."
            )
        return self._several

    def limit_of_json(self, _: Request) -> BodyLimit:
        """Return the maximum size of a body of JSON with several uploads."""
        return BodyLimit(self._several.max_bytes * 4 // 3 * 31 // 30 + _ENVELOPE_BYTES, self._several.reported_bytes)

    async def find_in_list(
        self, request: Request, find: Callable[[bytes], tuple[list[bytes], T]]
    ) -> tuple[list[bytes | ViTError], T]:
        """Return the uploads that a function finds in the request's body, and what else it finds.

        An empty or too large upload is replaced by its error.

        Raises:
            BadRequest: The body has no uploads or too many.
        """
        uploads, other = await parse_body(request, request.take_body(), find)
        if not 1 <= len(uploads) <= self._max_count:
            raise BadRequest(f"Send 1 to {self._max_count} images in one request, not {len(uploads)}.")
        return [self._checked_or_error(upload) for upload in uploads], other

    def is_raw(self, request: Request, body: bytes) -> bool:
        """Return whether a body is surely an upload itself, and one that `find_one` would not refuse."""
        return (
            not request.media_type.startswith(_WRAPPED)
            and 0 < len(body) <= self._max_bytes
            and not is_json(body, request.media_type)
            and not body.startswith(_FORM_START)
        )

    def plain(self, request: Request, body: bytes) -> bytes | None:
        """Return the upload of a body that is one, or a short form with nothing else; None: `find_one` finds out."""
        if self.is_raw(request, body):
            return body
        return self.only_file(body, request.headers[b"content-type"]) if self.is_form(request) else None

    def is_form(self, request: Request) -> bool:
        """Return whether the body of a request is declared as a form with files."""
        return request.media_type.startswith(_FORM)

    def only_file(self, body: bytes, content_type: bytes) -> bytes | None:
        """Return the file of a short form with nothing else; None if there is more to it, which `find_one` finds out.

        Args:
            body: The whole form.
            content_type: The request's `Content-Type`, which has the boundary.
        """
        if len(body) > SHORT_BODY_BYTES:
            return None
        if self._parsed is None or self._parsed[0] is not body:
            try:
                self._parsed = (body, self._one_in_form(body, content_type))
            except ViTError:
                return None  # `find_one` raises it again
        found = self._parsed[1]
        return found.data if not found.fields and 0 < len(found.data) <= self._max_bytes else None

    async def find_one(self, request: Request, field: str = "image") -> FoundUpload:
        """Return the request's upload: a file of a form, base64 in JSON, or the body itself, or base64 as its text.

        Args:
            request: A request of any content type.
            field: The field of JSON that has the upload.

        Raises:
            BadRequest: The form, the JSON or the base64 is malformed, or has no upload, or a form has several.
            EmptyUpload: The body or the upload is empty.
            UploadTooLarge: The upload exceeds the maximum.
        """
        body, media_type = request.take_body(), request.media_type
        parsed, self._parsed = self._parsed, None
        if parsed is not None and parsed[0] is body:
            found = parsed[1]
        elif media_type.startswith(_FORM):
            found = await parse_body(request, body, self._one_in_form, request.headers[b"content-type"])
        elif is_json(body, media_type):
            found = FoundUpload(*await parse_body(request, body, find_in_json, field))
        elif media_type.startswith(_URLENCODED) and is_urlencoded(body):
            found = FoundUpload(*await parse_body(request, body, find_in_urlencoded, field))
        else:
            if body.startswith(_FORM_START):
                _refuse_undeclared_form(body, media_type)
            found = FoundUpload(await _bytes_of(request, body))
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
            is_nameless = _DISPOSITION not in body[:_MAX_FIELD_BYTES].lower()
            found = _NAMELESS if is_nameless else listed(name for name, _ in fields)
            raise BadRequest(f"The form has no file{found}. Send the image in the form field 'file'.")
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
    # Browsers send an empty part for a file input in which nothing is selected.
    full = [part for part in parts if part.content or part.filename != ""]
    choices = (
        [part for part in full if part.name in names],
        [part for part in full if part.filename is not None],
        [part for part in full if len(part.content) > _MAX_FIELD_BYTES or part.content.startswith(_DATA_URL)],
        [part for part in parts if part.filename is not None],
    )
    files = next(filter(None, choices), [])
    others = [part for part in parts if part not in files and len(part.content) <= _MAX_FIELD_BYTES]
    return files, [(part.name, part.content.decode("latin-1").strip()) for part in others if part.filename is None]


def _content_of(file: FormPart) -> bytes:
    """Return a file's bytes; scripts also send base64 as text, or a `data:` URL, as which no image begins."""
    start = file.content[:_LEADING_SPACE]
    if start[: len(_DATA_URL)].lower() == _DATA_URL or (file.filename is None and _TEXT.fullmatch(start)):
        return decode_base64(file.content.decode("latin-1"), file.name)
    return file.content


async def _bytes_of(request: Request, body: bytes) -> bytes:
    """Return the bytes of a raw body; a canvas's `toDataURL()` and a file of base64 are posted as text."""
    is_url = body[: len(_DATA_URL)].lower() == _DATA_URL
    if not is_url and not (request.media_type.startswith(_TEXTS) and _TEXT.fullmatch(body[:_LEADING_SPACE])):
        return body
    return await parse_body(request, body, _decode_text)


def _decode_text(body: bytes) -> bytes:
    return decode_base64(body.decode("latin-1"), "body")


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


def _refuse_undeclared_form(body: bytes, media_type: bytes) -> None:
    """Refuse a form that is sent as something else: its error as an image would not help."""
    if _DISPOSITION in body[:_MAX_FIELD_BYTES].lower():
        raise BadRequest(
            f"The body is a form, but Content-Type is {_shown(media_type)}. Don't set that header yourself: your HTTP"
            " library adds it with the boundary."
        )


def _shown(media_type: bytes) -> str:
    return repr(media_type.decode("latin-1")) if media_type else "missing"
