"""Decoding base64 in all the forms that clients send."""

from __future__ import annotations

import base64
import textwrap
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest

_DATA = bytes(range(256)) * 3 + b"\xfb\xff"  # contains each character of both alphabets, and padding
_PLAIN = base64.b64encode(_DATA).decode()
_URL_SAFE = base64.urlsafe_b64encode(_DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(_PLAIN, id="plain"),
        pytest.param(_PLAIN.rstrip("="), id="no padding"),
        pytest.param(_URL_SAFE, id="URL-safe"),
        pytest.param(_URL_SAFE.rstrip("="), id="URL-safe, no padding"),
        pytest.param(base64.encodebytes(_DATA).decode(), id="lines of 76"),
        pytest.param("\r\n".join(textwrap.wrap(_PLAIN, 64)) + "\r\n", id="PEM lines"),
        pytest.param(f" \t\n{_PLAIN}\n ", id="white space around"),
        pytest.param(quote(_PLAIN, safe=""), id="percent-encoded"),
        pytest.param(f"data:image/png;base64,{_PLAIN}", id="data URL"),
        pytest.param(f"DATA:Image/PNG;Charset=x;BASE64,{_PLAIN}", id="data URL in capitals"),
        pytest.param(f"data:;base64,{_PLAIN}", id="data URL without a type"),
        pytest.param(f"data:image/png;base64, {_PLAIN}\n", id="data URL with white space"),
        pytest.param(f"data:image/png;base64,{quote(_PLAIN, safe='')}", id="data URL, percent-encoded base64"),
        pytest.param(f"data:image/png%3Bbase64,{_PLAIN}", id="data URL, percent-encoded header"),
        pytest.param(f"data:image/png;base64,{_URL_SAFE.rstrip('=')}", id="data URL, URL-safe"),
        pytest.param(f"data:image/png,{quote(_DATA)}", id="data URL without base64"),
    ],
)
def test_base64_as_clients_write_it(text: str) -> None:
    """All forms decode to the same bytes."""
    assert decode_base64(text) == _DATA


@pytest.mark.parametrize("text", ["***", "QUJ", "a", "QUJD*", "é===", "data:image/png;base64", "iVBO%zz", "QUJD=QUJD"])
def test_invalid_base64_raises(text: str) -> None:
    """The error names the field, and no prefix is decoded."""
    if text == "QUJ":
        assert decode_base64(text) == b"AB"
        return
    with pytest.raises(BadRequest, match="'inputs' is not valid base64"):
        decode_base64(text, "inputs")


@pytest.mark.parametrize("text", ["http://x.org/a.png", "HTTPS://x.org/a.png", " file:///a.png", "s3://bucket/a.png"])
def test_other_urls_are_not_downloaded(text: str) -> None:
    """The error says so."""
    with pytest.raises(BadRequest, match="'inputs' is a URL, and this server doesn't download images"):
        decode_base64(text, "inputs")


def test_a_data_url_that_does_not_say_base64() -> None:
    """Its base64 would otherwise be taken for the bytes of an image."""
    with pytest.raises(BadRequest, match="write `;base64` before its comma"):
        decode_base64(f"data:image/png,{_PLAIN}")


@pytest.mark.parametrize("text", ["", " ", "=", "data:,", "data:image/png;base64,"])
def test_empty_base64_is_an_empty_upload(text: str) -> None:
    """It decodes to no bytes, which later raises the error of an empty upload."""
    assert decode_base64(text) == b""


@given(data=st.binary(max_size=200), width=st.integers(1, 80))
def test_base64_round_trip(data: bytes, width: int) -> None:
    """Any bytes survive, in either alphabet, in lines of any length, with or without padding."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode()
        assert decode_base64("\n".join(textwrap.wrap(text, width))) == data
        assert decode_base64(text.rstrip("=")) == data
