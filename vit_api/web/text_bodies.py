"""Finds base64 in bodies of text: JSON, and urlencoded forms. Knows nothing of images."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from types import NoneType
from typing import Any
from urllib.parse import parse_qsl

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest
from vit_api.web.parameters import Fields, refuse_slip

_BYTE_ORDER_MARKS = tuple("\ufeff".encode(f"utf-{form}") for form in ("8", "16-le", "16-be", "32-le", "32-be"))
_FIRST_BYTES = frozenset(b"{ \t\r\n\v\f\0\xef\xfe")
_UTF_16 = b"\xff\xfe"
_JSON = b"application/json"
_JSON_STARTS = (b"{", b"\0{", b"\0\0\0{", *(mark + brace for mark in _BYTE_ORDER_MARKS for brace in (b"{", b"\0{")))
"""How an object of JSON begins in UTF-8, 16 and 32, which `json.loads` tells apart. No image begins so."""
_LEADING_SPACE = 64
_MAX_JSON_MARKS = 1000
_MAX_FIELDS = 17
"""Maximum number of an urlencoded form's fields."""
_MAX_SHOWN = 64
_FIELD_BYTES = 1024
_FIELD = re.compile(rb"[^=&\s\x80-\xff]{1,64}=[ -~\s]*")
"""The start of an urlencoded form; `curl --data-binary` declares images as such."""


def listed(names: Iterable[str]) -> str:
    """Return the end of a sentence that says which fields there are; empty if there are none."""
    shown = ", ".join(repr(name[:_MAX_SHOWN]) for name in itertools.islice(names, _MAX_FIELDS))
    return f", only {shown}" if shown else ""


def is_json(body: bytes, media_type: bytes) -> bool:
    """Return whether a body is JSON; `curl -d` declares JSON as a form, so an object is one whatever its type is."""
    # The first comparison is for speed: each raw image comes through here.
    is_candidate = body and (body[0] in _FIRST_BYTES or body.startswith(_UTF_16))
    if is_candidate and body[:_LEADING_SPACE].lstrip().startswith(_JSON_STARTS):
        return True
    return media_type.startswith(_JSON) and _is_text(body)


def is_urlencoded(body: bytes) -> bool:
    """Return whether a body that is declared as an urlencoded form is one."""
    return _FIELD.fullmatch(body[:_FIELD_BYTES]) is not None


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return body.startswith(_BYTE_ORDER_MARKS)
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
        raise BadRequest(
            f"The JSON has more values than an upload needs, such as an array of numbers for its bytes. Send {example}."
        )
    try:
        # Not strict: scripts put base64 with its line breaks between the quotes.
        document: Any = json.loads(body, strict=False, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The JSON is malformed{_reason(error)}.") from None
    if not isinstance(document, dict):
        raise BadRequest(f"The JSON is {kind_of(document)}, not an object. Send {example}.")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, of which parsers differ on what a repeated name means (RFC 8259, section 4)."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise BadRequest(f"The JSON has {name[:_MAX_SHOWN]!r} more than once, with other values. Send it once.")
    return found


def _reason(error: Exception) -> str:
    match error:
        case json.JSONDecodeError():
            return f": {error.msg} at line {error.lineno}, column {error.colno}"
        case UnicodeDecodeError():
            return ": it is not UTF-8"
        case RecursionError():
            return ": it is nested too deeply"
    return ": a number has too many digits"


def kind_of(value: Any) -> str:
    """Return what a value is called in JSON."""
    kinds = {str: "a string", list: "an array", dict: "an object", bool: "true or false", NoneType: "null"}
    return kinds.get(type(value), "a number")


def find_in_json(body: bytes, field: str) -> tuple[bytes, Fields]:
    """Return the upload in a field of JSON, and the other fields.

    Raises:
        BadRequest: The JSON or the base64 is malformed, or has no upload.
    """
    example = f'{{"{field}": "<base64>"}}'
    document = load_object(body, example)
    if field in document:
        image = document.pop(field)
        if not isinstance(image, str):
            raise BadRequest(f"'{field}' is {kind_of(image)}, not a string. Send {example}.")
        return decode_base64(image, field), list(document.items())
    for name in document:
        refuse_slip(name, (field,))
    raise BadRequest(f"The JSON has no {field!r}{listed(document)}. Send {example}.")


def find_in_urlencoded(body: bytes, field: str) -> tuple[bytes, Fields]:
    """Return the upload in a field of a form without files, and the other fields.

    Raises:
        BadRequest: The base64 is malformed, or there is none.
    """
    try:
        fields = parse_qsl(body.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise BadRequest(f"The form has too many fields. Send at most {_MAX_FIELDS}.") from None
    images = {value for name, value in fields if name == field}
    if not images:
        for name, _ in fields:
            refuse_slip(name, (field,))
        raise BadRequest(
            f"The form has no {field!r}{listed(name for name, _ in fields)}. Send the image there, as base64."
        )
    if len(images) > 1:
        raise BadRequest(f"The form has {field!r} more than once, with other values. Send one image.")
    base64 = images.pop().strip().replace(" ", "+")  # a plus sign that was not escaped is a space by now
    return decode_base64(base64, field), [(name, value) for name, value in fields if name != field]
