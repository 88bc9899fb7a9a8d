"""Multipart forms as real clients write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.errors import BadRequest
from vit_api.web.forms import FormPart, parse_form

_BOUNDARY = b"----FormBoundary7MA4"
_TYPE = b"multipart/form-data; boundary=" + _BOUNDARY
_DISPOSITION = b'Content-Disposition: form-data; name="file"; filename="a.png"'
_PNG = b"\x89PNG\r\n\x1a\n\0\n\n--\r\n--x\r"


def _form(
    *parts: bytes, boundary: bytes = _BOUNDARY, line_end: bytes = b"\r\n", end: bytes = b"--\r\n", start: bytes = b""
) -> bytes:
    """Return a form of parts, each of which has its headers."""
    delimiter = b"--" + boundary
    return start + b"".join(delimiter + line_end + part + line_end for part in parts) + delimiter + end


def _part(content: bytes, *headers: bytes, line_end: bytes = b"\r\n") -> bytes:
    return line_end.join((*headers, b"", content))


def _parse(body: bytes, content_type: bytes = _TYPE) -> list[FormPart]:
    return parse_form(body, content_type, max_parts=5)


@pytest.mark.parametrize("boundary", [b"b", b"=?:/()", b"a b", b"'+_,-.", b"\xff", b"x" * 70])
@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param(b"multipart/form-data; boundary=%b", id="plain"),
        pytest.param(b'multipart/form-data; boundary="%b"', id="quoted"),
        pytest.param(b"multipart/form-data;boundary=%b", id="no space"),
        pytest.param(b"multipart/form-data ; \t BOUNDARY = %b ", id="spaces and capitals"),
        pytest.param(b"multipart/form-data; charset=utf-8; boundary=%b; x=y", id="among other parameters"),
    ],
)
def test_any_boundary_that_clients_make(boundary: bytes, content_type: bytes) -> None:
    """It may be quoted or not: many clients don't quote characters that RFC 2045 says must be quoted."""
    body = _form(_part(_PNG, _DISPOSITION), boundary=boundary)
    assert _parse(body, content_type % boundary) == [FormPart("file", "a.png", _PNG)]


def test_a_quoted_boundary_may_have_escapes() -> None:
    """A backslash may precede any character; see RFC 9110, section 5.6.4."""
    body = _form(_part(_PNG, _DISPOSITION), boundary=b'a"b')
    assert _parse(body, rb'multipart/form-data; boundary="a\"\b"') == [FormPart("file", "a.png", _PNG)]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_form(_part(_PNG, _DISPOSITION)), id="as the RFC has it"),
        pytest.param(_form(_part(_PNG, _DISPOSITION), end=b"--"), id="no line end after the last boundary"),
        pytest.param(_form(_part(_PNG, _DISPOSITION), end=b"\r\n"), id="no -- at the end"),
        pytest.param(_form(_part(_PNG, _DISPOSITION), end=b""), id="no -- and no line end"),
        pytest.param(_form(_part(_PNG, _DISPOSITION), start=b"This is a form.\r\n"), id="preamble"),
        pytest.param(_form(_part(_PNG, _DISPOSITION), end=b"--\r\nThe end, --boundary"), id="epilogue"),
        pytest.param(_form(_part(_PNG, _DISPOSITION), end=b"-- \t\r\n"), id="space after the last boundary"),
        pytest.param(_form(_part(b"x", b"X-A: b"), _part(_PNG, _DISPOSITION)), id="a part without disposition"),
        pytest.param(_form(_part(b"x"), _part(_PNG, _DISPOSITION)), id="a part without headers"),
        pytest.param(_form(_part(b"x", b"Content-Disposition: form-data"), _part(_PNG, _DISPOSITION)), id="no name"),
        pytest.param(
            _form(_part(b"x", b'Content-Disposition: form-data; x="y"'), _part(_PNG, _DISPOSITION)),
            id="another parameter",
        ),
        pytest.param(_form(b"", _part(_PNG, _DISPOSITION)), id="an empty part"),
        pytest.param(_form(_part(_PNG, *(b"X-%d: y" % i for i in range(100)), _DISPOSITION)), id="many headers"),
        pytest.param(_form(_part(_PNG, _DISPOSITION, b"no header at all")), id="an odd line"),
        pytest.param(
            _form(_part(_PNG, b'content-disposition:form-data;\r\n name="file";\r\n\tfilename="a.png"')), id="folded"
        ),
        pytest.param(
            _form(_part(_PNG, b"Content-Disposition: form-data; name=file; filename=a.png")), id="unquoted names"
        ),
        pytest.param(_form(_part(_PNG, _DISPOSITION, b"Content-Length: 9")), id="a wrong length"),
        pytest.param(_form(_part(_PNG, _DISPOSITION, b"Content-Transfer-Encoding: binary")), id="a transfer encoding"),
    ],
)
def test_forms_as_clients_write_them(body: bytes) -> None:
    """The file is found, and is complete."""
    assert _parse(body) == [FormPart("file", "a.png", _PNG)]


def test_a_file_without_a_field_name_is_a_file() -> None:
    """RFC 7578 requires a field name, but a file name is enough to find the file."""
    part = _part(_PNG, b'Content-Disposition: form-data; filename="a.png"')
    assert _parse(_form(part)) == [FormPart("", "a.png", _PNG)]


@pytest.mark.parametrize("content", [b"", b"\r", b"x\r", b"a\nb", _PNG])
def test_lines_that_end_with_a_line_feed_alone(content: bytes) -> None:
    """Scripts write them; the bytes of the file are not changed."""
    body = _form(_part(content, _DISPOSITION, line_end=b"\n"), line_end=b"\n", end=b"--\n")
    assert _parse(body) == [FormPart("file", "a.png", content)]


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        (b"base64", b"iVBO\r\nRw0K"),
        (b"base64", b" iVBORw0K\r\n"),
        (b"base64", b"iVBORw0K" + b"=" * 3),
        (b"BASE64", b"iVBORw0K"),
        (b"quoted-printable", b"=89PN=\r\nG=0D=0A"),
        (b"8bit", b"\x89PNG\r\n"),
    ],
)
def test_transfer_encodings(encoding: bytes, content: bytes) -> None:
    """They are deprecated, but mail libraries still write them."""
    part = _part(content, _DISPOSITION, b"Content-Transfer-Encoding: " + encoding)
    assert _parse(_form(part)) == [FormPart("file", "a.png", b"\x89PNG\r\n")]


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        (b'filename="\xe9.png"', "\xe9.png"),
        ('filename="日本.png"'.encode(), "日本.png"),
        (b'filename="' + b"x" * 5000 + b'"', "x" * 5000),
        (b'filename=""', ""),
        (b'filename="a;b.png"', "a;b.png"),
    ],
)
def test_any_file_name(header: bytes, filename: str) -> None:
    """No file name is a reason to refuse a form."""
    part = _part(_PNG, b'Content-Disposition: form-data; name="file"; ' + header)
    assert _parse(_form(part)) == [FormPart("file", filename, _PNG)]


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        pytest.param(b"x", b"multipart/form-data", "no boundary", id="no boundary"),
        pytest.param(b"x", b'multipart/form-data; boundary=""', "no boundary", id="empty boundary"),
        pytest.param(b"x", b"multipart/form-data; boundary=" + b"x" * 300, "too long", id="endless boundary"),
        pytest.param(b"x", _TYPE, f"no line of the body is `--{_BOUNDARY.decode()}`", id="no form"),
        pytest.param(b"--" + _BOUNDARY + b"x--", _TYPE, "no line of the body", id="another boundary"),
        pytest.param(
            _form(_part(_PNG, _DISPOSITION), boundary=b"b"),
            b"multipart/form-data; boundary=--b",
            "no line of the body is `----b`",
            id="a boundary that begins with the dashes of its lines",
        ),
        pytest.param(
            _form(_part(_PNG, _DISPOSITION)).replace(b"\r\n--" + _BOUNDARY + b"--", b"--" + _BOUNDARY + b"--"),
            _TYPE,
            "does not begin a line",
            id="no line end before the last boundary",
        ),
        pytest.param(_form(_part(_PNG, _DISPOSITION))[: -len(_BOUNDARY) - 7], _TYPE, "truncated", id="truncated"),
        pytest.param(_form(_part(b"x", b"x" * 20_000, _DISPOSITION)), _TYPE, "too long", id="endless headers"),
        pytest.param(_form(*[_part(b"x", _DISPOSITION)] * 6), _TYPE, "too many parts", id="too many parts"),
        pytest.param(
            _form(_part(b"x", _DISPOSITION, b"Content-Transfer-Encoding: base64")), _TYPE, "base64", id="bad base64"
        ),
        pytest.param(
            _form(_part(b"***iVBORw0K", _DISPOSITION, b"Content-Transfer-Encoding: base64")),
            _TYPE,
            re.escape("'file' is not valid base64: it has the character '*'"),
            id="characters that are not of base64",
        ),
    ],
)
def test_what_is_wrong_is_said(body: bytes, content_type: bytes, message: str) -> None:
    """The error says what was found."""
    with pytest.raises(BadRequest, match=message):
        _parse(body, content_type)


@given(
    contents=st.lists(st.binary(max_size=200), max_size=5),
    line_end=st.sampled_from([b"\r\n", b"\n"]),
    boundary=st.from_regex(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}", fullmatch=True),
)
def test_every_form_is_parsed_back(contents: list[bytes], line_end: bytes, boundary: bytes) -> None:
    """Its files may contain anything but the boundary."""
    contents = [content.replace(b"--" + boundary, b"") for content in contents]
    parts = [
        _part(content, b'Content-Disposition: form-data; name="%d"' % i, line_end=line_end)
        for i, content in enumerate(contents)
    ]
    body = _form(*parts, boundary=boundary, line_end=line_end)
    parsed = _parse(body, b"multipart/form-data; boundary=" + boundary)
    assert parsed == ([FormPart(str(i), None, content) for i, content in enumerate(contents)])


@given(body=st.binary(max_size=300), cut=st.integers(0, 300))
def test_no_body_breaks_the_parser(body: bytes, cut: int) -> None:
    """Any bytes, and any part of a form, are either parsed or refused."""
    for sent in (body, _form(_part(body, _DISPOSITION))[:cut]):
        try:
            parts = _parse(sent)
        except BadRequest:
            continue
        assert all(isinstance(part, FormPart) for part in parts)
