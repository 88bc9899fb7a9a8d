"""Base64 in JSON and in urlencoded forms."""

from __future__ import annotations

import base64
import contextlib
import json
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.samples import encode, photo
from vit_api.errors import BadRequest
from vit_api.web.text_bodies import find_in_json, find_in_urlencoded, is_json, is_urlencoded

_DATA = bytes(range(256))
_BASE64 = base64.b64encode(_DATA).decode()
_JSON_TYPE = b"application/json; charset=utf-8"
_OBJECT = json.dumps({"image": _BASE64, "top_k": 3})


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", *(f"utf-{size}{order}" for size in (16, 32) for order in ("", "-le", "-be"))]
)
@pytest.mark.parametrize("media_type", [_JSON_TYPE, b"", b"application/x-www-form-urlencoded"])
def test_json_in_any_unicode(encoding: str, media_type: bytes) -> None:
    """RFC 8259 demands UTF-8; other forms, and byte order marks, are read as `json.loads` does."""
    body = _OBJECT.encode(encoding)
    assert is_json(body, media_type)
    assert find_in_json(body, "image") == (_DATA, [("top_k", 3)])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("media_type", [_JSON_TYPE, b""])
def test_an_image_is_not_json(form: str, media_type: bytes) -> None:
    """This holds for every content type."""
    image = encode(photo((40, 30)), form)
    assert not is_json(image, media_type)
    assert not is_urlencoded(image)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param('{"image": "QUJD",}', "JSON is malformed: .* at line 1, column 1", id="comma at the end"),
        pytest.param("{'image': 'QUJD'}", "at line 1, column 2", id="single quotes"),
        pytest.param('{"image": "QUJD"} x', "Extra data at line 1, column 19", id="something behind it"),
        pytest.param('{"image":' + "[" * 900, "malformed", id="deep"),
        pytest.param('{"image": %s}' % ("9" * 5000), "too many digits", id="an endless number"),
        pytest.param('["QUJD"]', "JSON is an array, not an object", id="array"),
        pytest.param('"QUJD"', "JSON is a string, not an object", id="string"),
        pytest.param("null", "JSON is null, not an object", id="null"),
        pytest.param("7.5", "JSON is a number, not an object", id="number"),
        pytest.param('{"image": null}', "'image' is null, not a string", id="no image"),
        pytest.param('{"image": ["QUJD"]}', "'image' is an array, not a string", id="a list of images"),
        pytest.param('{"image": {"b64": "QUJD"}}', "'image' is an object, not a string", id="an object"),
        pytest.param('{"image": true}', "'image' is true or false, not a string", id="true"),
        pytest.param('{"image": 7}', "'image' is a number, not a string", id="a number for an image"),
        pytest.param('{"img": "QUJD"}', "Did you mean 'image'", id="a slip"),
        pytest.param('{"b64": "QUJD", "x": 1}', "has no 'image', only 'b64', 'x'", id="other fields"),
        pytest.param("{}", "has no 'image'. Send", id="nothing"),
        pytest.param('{"image": "QUJD", "image": "QUJE"}', "'image' more than once", id="two images"),
        pytest.param('{"image": "QUJD", "top_k": 1, "top_k": 2}', "'top_k' more than once", id="two values"),
        pytest.param('{"image": "https://x.org/a.png"}', "doesn't download", id="URL"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_json_is_said(body: str, message: str) -> None:
    """The error says what was found."""
    with pytest.raises(BadRequest, match=message):
        find_in_json(body.encode(), "image")


def test_the_same_value_twice_is_one() -> None:
    """It does not matter which of them a parser takes."""
    body = b'{"image": "QUJD", "image": "QUJD", "top_k": 1, "top_k": 1}'
    assert find_in_json(body, "image") == (b"ABC", [("top_k", 1)])


def test_line_breaks_between_the_quotes() -> None:
    """`base64` breaks its lines, and scripts put them into JSON as they are."""
    body = '{"image": "' + base64.encodebytes(_DATA).decode() + '"}'
    assert find_in_json(body.encode(), "image") == (_DATA, [])


def test_json_that_is_not_unicode() -> None:
    """Some clients write Latin-1."""
    with pytest.raises(BadRequest, match="not UTF-8"):
        find_in_json(b'{"image": "\xe9"}', "image")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(urlencode({"image": _BASE64, "top_k": 3}), id="escaped"),
        pytest.param(f"image={_BASE64}&top_k=3", id="not escaped"),
        pytest.param(urlencode({"top_k": 3, "image": _BASE64}), id="the image last"),
        pytest.param(urlencode({"top_k": 3, "image": f"data:image/png;base64,{_BASE64}"}), id="data URL"),
        pytest.param(urlencode({"image": _BASE64, "top_k": 3}) + "&" + urlencode({"image": _BASE64}), id="twice"),
    ],
)
def test_forms_without_files(body: str) -> None:
    """`curl -d` and HTML forms without an enctype send them."""
    assert is_urlencoded(body.encode())
    data, fields = find_in_urlencoded(body.encode(), "image")
    assert (data, list(fields)) == (_DATA, [("top_k", "3")])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param("picture=QUJD&x=1", "has no 'image', only 'picture', 'x'", id="another field"),
        pytest.param("Image=QUJD", "Did you mean 'image'", id="a slip"),
        pytest.param("image=QUJD&image=QUJE", "'image' more than once", id="two images"),
        pytest.param("image=QUJD" + "&a=1" * 17, "too many fields", id="many fields"),
    ],
)
def test_what_is_wrong_with_such_a_form_is_said(body: str, message: str) -> None:
    """The error says what was found."""
    with pytest.raises(BadRequest, match=message):
        find_in_urlencoded(body.encode(), "image")


@given(body=st.binary(max_size=100))
def test_no_body_breaks_the_parsers(body: bytes) -> None:
    """Any bytes are either an upload or refused with a client error."""
    is_json(body, _JSON_TYPE)
    is_urlencoded(body)
    for find in (find_in_json, find_in_urlencoded):
        with contextlib.suppress(BadRequest):
            find(body, "image")
