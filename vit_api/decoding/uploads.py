"""The kinds of uploads: image files, their base64, or pixels. Knows nothing of how they are sent."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from vit_api.errors import BadRequest


@dataclass(frozen=True)
class Pixels:
    """One decoded image, in the size that the model takes.

    Attributes:
        data: uint8 RGB, row by row.
    """

    data: bytes

    def as_array(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Return the pixels as (height, width, 3), without a copy."""
        return np.frombuffer(self.data, np.uint8).reshape(shape)


Upload = bytes | Pixels
"""An image to classify: the bytes of a file, or pixels."""


_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\r\n\v\f"
_DATA_URL = re.compile(r"\s*data:([^,]*),", re.IGNORECASE)
_MAX_DATA_URL_HEADER = 1024
_OTHER_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
_MAX_URL_SCHEME = 64
_UNDECLARED = re.compile(r"[A-Za-z0-9+/_=\s-]{16,}")
"""Base64 in a `data:` URL that does not say so; percent-encoded bytes of an image have other characters."""


def decode_base64(text: str, field: str = "image") -> bytes:
    """Decode base64 as clients write it.

    That is the standard alphabet or the URL-safe one (RFC 4648, sections 4 and 5), with or without padding, with line
    breaks (MIME) and white space anywhere, or a `data:` URL (RFC 2397) of base64 or of percent-encoded bytes.

    Args:
        text: Base64 or a `data:` URL.
        field: The name of the field that has it, for the error.

    Raises:
        BadRequest: The text is not base64.
    """
    url = _DATA_URL.match(text, 0, _MAX_DATA_URL_HEADER)
    payload = text if url is None else text[url.end() :]
    if url is not None:
        if "%" in payload:
            payload = unquote_to_bytes(payload).decode("latin-1")
        if not unquote(url[1]).strip().lower().endswith("base64"):
            if _UNDECLARED.fullmatch(payload):
                raise BadRequest(
                    f"The data: URL in '{field}' has base64 but does not say so: write `;base64` before its comma."
                )
            return payload.encode("latin-1", "replace")
    try:
        return binascii.a2b_base64(payload.encode("ascii"), strict_mode=True)
    except ValueError:
        return _decode_lenient(payload, field)


def _decode_lenient(payload: str, field: str) -> bytes:
    """Decode base64 that is not the plain standard form, which most is."""
    payload = unquote(payload) if "%" in payload else payload
    # In bytes: faster than in a string, and with fewer copies.
    plain = payload.encode("utf-8", "surrogatepass").translate(_URL_SAFE, _WHITE_SPACE).rstrip(b"=")
    try:
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError:
        if _OTHER_URL.match(payload, 0, _MAX_URL_SCHEME):
            raise BadRequest(
                f"'{field}' is a URL, and this server doesn't download images. Send the image as base64."
            ) from None
        found = _NOT_BASE64.search(plain.decode("utf-8", "surrogatepass"))
        reason = f": it has the character {found[0]!r}" if found else ""
        raise BadRequest(
            f"The field '{field}' is not valid base64{reason}. Send the bytes of the image as base64."
        ) from None
