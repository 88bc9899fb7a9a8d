"""What real clients put into requests, on a real server: forms, base64, compressed bodies and parameters."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.server import PLAIN_HTTP, ROOT, RunningServer

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_BASE64 = base64.b64encode(_SEVEN).decode()
_FORM = "multipart/form-data; boundary=b"


def _part(headers: str, content: bytes) -> bytes:
    return b"--b\r\n" + headers.encode() + b"\r\n\r\n" + content + b"\r\n"


def _file(name: str = "file", filename: str = "a.png", content: bytes = _SEVEN, more: str = "") -> bytes:
    return _part(f'Content-Disposition: form-data; name="{name}"; filename="{filename}"{more}', content)


def _field(name: str, value: str) -> bytes:
    return _part(f'Content-Disposition: form-data; name="{name}"', value.encode())


def _post(server: RunningServer, path: str, body: bytes, *headers: tuple[str, str]) -> httpx.Response:
    return httpx.post(server.url + path, content=body, headers=headers, timeout=60, **PLAIN_HTTP)


def _send_form(server: RunningServer, path: str, *parts: bytes) -> httpx.Response:
    return _post(server, path, b"".join(parts) + b"--b--\r\n", ("content-type", _FORM))


def _tops(response: httpx.Response) -> list[tuple[str, int]]:
    """Return the best label and the number of labels of each image, of any of our own protocols."""
    assert response.status_code == 200, response.text
    body: Any = response.json()
    if isinstance(body, dict):
        body = [body]
    answers: Sequence[Any] = [one["predictions"] for one in body] if "predictions" in body[0] else [body]
    return [(answer[0]["label"], len(answer)) for answer in answers]


def _error(response: httpx.Response) -> str:
    assert response.status_code == 400, response.text
    return str(response.json()["error"])


_TEXTS = [
    pytest.param(base64.encodebytes(_SEVEN).decode(), id="MIME's lines"),
    pytest.param(f" \n{_BASE64}\t ", id="white space around"),
    pytest.param(base64.urlsafe_b64encode(_SEVEN).decode().rstrip("="), id="URL-safe without padding"),
    pytest.param(f"DATA:IMAGE/PNG;charset=utf-8;BASE64,{_BASE64}", id="data URL in capitals"),
    pytest.param(f"data:image/png;base64,{quote(_BASE64, safe='')}", id="data URL, percent-encoded base64"),
    pytest.param(f"data:image/png,{quote(_SEVEN)}", id="data URL, percent-encoded bytes"),
]


@pytest.mark.parametrize("text", _TEXTS)
def test_base64_in_every_protocol(digits_server: RunningServer, text: str) -> None:
    """In JSON, in an urlencoded form, in a field of a form, and in a tensor."""
    json_type = ("content-type", "application/json")
    for path, field in (("/predict", "image"), ("/", "inputs")):
        assert _tops(_post(digits_server, path, json.dumps({field: text}).encode(), json_type))[0][0] == "7"
        urlencoded = f"{field}={quote(text, safe='')}".encode()
        form_type = ("content-type", "application/x-www-form-urlencoded")
        assert _tops(_post(digits_server, path, urlencoded, form_type))[0][0] == "7"
    assert _tops(_send_form(digits_server, "/predict", _field("image", text)))[0][0] == "7"
    assert _tops(_send_form(digits_server, "/predict/batch", _field("files", text)))[0][0] == "7"
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    response = _post(digits_server, "/v2/models/digits/infer", json.dumps({"inputs": [tensor]}).encode())
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", ["/predict?top_k=2", "/?top_k=2"])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param("text/plain;charset=UTF-8", f"data:image/png;base64,{_BASE64}", id="toDataURL() of a canvas"),
        pytest.param("application/octet-stream", f"Data:image/png;base64,{_BASE64}", id="whatever it is declared as"),
        pytest.param("text/plain", base64.encodebytes(_SEVEN).decode(), id="a file of base64"),
        pytest.param("application/base64", _BASE64, id="declared as base64"),
    ],
)
def test_base64_as_the_body(digits_server: RunningServer, path: str, content_type: str, body: str) -> None:
    """A raw body may be the text of an image."""
    assert _tops(_post(digits_server, path, body.encode(), ("content-type", content_type))) == [("7", 2)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_json_in_other_forms_of_unicode(digits_server: RunningServer, encoding: str, content_type: str) -> None:
    """As PowerShell and .NET write it."""
    body = json.dumps({"image": _BASE64}).encode(encoding)
    assert _tops(_post(digits_server, "/predict", body, ("content-type", content_type))) == [("7", 5)]


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/"])
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(_file("picture"), id="any field"),
        pytest.param(_file(filename="日本.png"), id="a file name that is not ASCII"),
        pytest.param(_file(more="; filename*=UTF-8''%e6%97%a5.png"), id="RFC 5987"),
        pytest.param(_file(more="; filename*=x''%zz"), id="malformed RFC 5987"),
        pytest.param(_part('Content-Disposition: form-data; filename="a.png"', _SEVEN), id="no field name"),
        pytest.param(_part("Content-Type: text/plain", b"x") + _file(), id="a part without disposition"),
        pytest.param(_file(more="\r\nX-A: b" * 100), id="many part headers"),
        pytest.param(_file("other", "", b"") + _file(), id="an empty file input"),
        pytest.param(_file("file", "", b"") + _file(), id="an empty file input of the same name"),
        pytest.param(_file("file", "", b"") + _file("other"), id="only another file input is used"),
        pytest.param(
            _file(more="\r\nContent-Transfer-Encoding: base64", content=_BASE64.rstrip("=").encode()), id="base64"
        ),
        pytest.param(_file(content=f"data:image/png;base64,{_BASE64}".encode()), id="a data URL as a file"),
    ],
)
def test_forms_with_one_file(digits_server: RunningServer, path: str, file: bytes) -> None:
    """It is taken whatever its field and headers are, with `top_k` before or behind it."""
    assert _tops(_send_form(digits_server, path, _field("top_k", "2"), file)) == [("7", 2)]
    assert _tops(_send_form(digits_server, f"{path}?top_k=2", file, _field("top_k", "2"))) == [("7", 2)]


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        pytest.param("multipart/form-data", _file() + b"--b--", "no boundary", id="no boundary"),
        pytest.param(_FORM, _file("a") + _file("c") + b"--b--", "It has 'a' (1), 'c' (1)", id="several files"),
        pytest.param(_FORM, _field("user", "me") + b"--b--", "no file, only 'user'", id="no file"),
        pytest.param(_FORM, _part("Content-Type: image/png", _SEVEN) + b"--b--", "no part of it has", id="no names"),
        pytest.param("image/png", _file() + b"--b--", "Content-Type is 'image/png'", id="declared as an image"),
        pytest.param("multipart/mixed; boundary=b", _file() + b"--b--", "'multipart/mixed", id="another multipart"),
        pytest.param(_FORM, _file()[:-2] + b"--b--", "does not begin a line", id="no line end before the boundary"),
        pytest.param(_FORM, _file()[:-9], "truncated", id="truncated"),
        pytest.param(
            "application/x-www-form-urlencoded",
            b"file=" + quote(_BASE64).encode(),
            "no 'image', only 'file'",
            id="field",
        ),
    ],
)
def test_errors_about_forms(digits_server: RunningServer, content_type: str, body: bytes, message: str) -> None:
    """They say what was found."""
    assert message in _error(_post(digits_server, "/predict", body, ("content-type", content_type)))


_CODED = [
    pytest.param(["gzip"], gzip.compress(_SEVEN), id="gzip"),
    pytest.param(["X-GZIP"], gzip.compress(_SEVEN[:99]) + gzip.compress(_SEVEN[99:]), id="x-gzip, two members"),
    pytest.param(["deflate"], zlib.compress(_SEVEN), id="deflate"),
    pytest.param(["deflate"], zlib.compress(_SEVEN)[2:-4], id="deflate without zlib's header"),
    pytest.param(["gzip, gzip"], gzip.compress(gzip.compress(_SEVEN)), id="twice"),
    pytest.param(["deflate", "gzip"], gzip.compress(zlib.compress(_SEVEN)), id="in two headers"),
    pytest.param(["identity"], _SEVEN, id="identity"),
]


@pytest.mark.parametrize(("codings", "body"), _CODED)
@pytest.mark.parametrize("path", ["/predict?top_k=2", "/?top_k=2"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_compressed_bodies(
    digits_server: RunningServer, path: str, codings: list[str], body: bytes, is_chunked: bool
) -> None:
    """On every path, with and without a declared length."""
    headers = [("content-encoding", coding) for coding in codings]
    content = iter([body[:50], body[50:]]) if is_chunked else body
    response = httpx.post(digits_server.url + path, content=content, headers=headers, timeout=60, **PLAIN_HTTP)
    assert _tops(response) == [("7", 2)]


def test_compressed_forms_json_and_tensors(digits_server: RunningServer) -> None:
    """Whatever is in them."""
    coding = ("content-encoding", "gzip")
    form = gzip.compress(_file("files") * 2 + b"--b--")
    response = _post(digits_server, "/predict/batch?top_k=2", form, coding, ("content-type", _FORM))
    assert _tops(response) == [("7", 2)] * 2
    body = gzip.compress(json.dumps({"image": _BASE64, "top_k": 2}).encode())
    assert _tops(_post(digits_server, "/predict", body, coding)) == [("7", 2)]
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [_BASE64]}
    body = gzip.compress(json.dumps({"inputs": [tensor]}).encode())
    assert _post(digits_server, "/v2/models/digits/infer", body, coding).status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/", "/v2/models/digits/infer"])
def test_bombs_and_other_codings(digits_server: RunningServer, path: str) -> None:
    """A bomb is too large; what is not supported is a 415 that says what is."""
    bomb = gzip.compress(bytes(300 * 2**20))
    assert _post(digits_server, path, bomb, ("content-encoding", "gzip")).status_code == 413
    refused = _post(digits_server, path, _SEVEN, ("content-encoding", "br"))
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_encoding")
    assert (refused.headers["accept-encoding"], "Content-Encoding: br" in refused.text) == ("gzip, deflate", True)


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/"])
def test_parameters(digits_server: RunningServer, path: str) -> None:
    """The same value twice is one; two values are refused, and so is a name that looks like a slip."""
    file = _file()
    assert _tops(_send_form(digits_server, f"{path}?top_k=2&top_k=2&utm_source=x", file)) == [("7", 2)]
    for value in ("2.0", "%202", "+2", "02"):
        assert _tops(_send_form(digits_server, f"{path}?top_k={value}", file)) == [("7", 2)]
    assert _tops(_send_form(digits_server, f"{path}?top_k=", file, _field("top_k", ""))) == [("7", 5)]
    for query in ("top_k=2&top_k=3", "top_k=2"):
        error = _error(_send_form(digits_server, f"{path}?{query}", file, _field("top_k", "3")))
        assert "'top_k' has more than one value: '2', '3'" in error
    for slip in ("topk", "top-k", "topK", "Top_K", "top_k[]", "amp;top_k", "k"):
        assert "Did you mean 'top_k'" in _error(_send_form(digits_server, f"{path}?{slip}=2", file))
        assert "Did you mean 'top_k'" in _error(_send_form(digits_server, path, file, _field(slip, "2")))


@pytest.mark.parametrize(("path", "field"), [("/predict", "image"), ("/", "inputs")])
def test_parameters_in_json(digits_server: RunningServer, path: str, field: str) -> None:
    """As languages write them: numbers with a fraction, text, null for the default."""
    for value, count in ((2, 2), (2.0, 2), ("2", 2), (None, 5)):
        body = json.dumps({field: _BASE64, "top_k": value}).encode()
        assert _tops(_post(digits_server, path, body)) == [("7", count)]
    twice = f'{{"{field}": "{_BASE64}", "top_k": 1, "top_k": 2}}'.encode()
    assert "'top_k' more than once" in _error(_post(digits_server, path, twice))
    body = json.dumps({field: _BASE64, "topk": 2}).encode()
    assert "Did you mean 'top_k'" in _error(_post(digits_server, path, body))
    body = json.dumps({field: _BASE64, "top_k": 3}).encode()
    assert "more than one value" in _error(_post(digits_server, f"{path}?top_k=2", body))
    body = json.dumps({field: list(_SEVEN)}).encode()
    assert "an array of numbers" in _error(_post(digits_server, path, body))
    body = json.dumps({field: None}).encode()
    assert f"'{field}' is null, not a string" in _error(_post(digits_server, path, body))
