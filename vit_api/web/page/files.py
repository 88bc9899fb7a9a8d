"""`GET /`: the web page that classifies images, and its static files. Knows nothing of their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from vit_api.web.openapi.links import DESCRIPTION_LINKS
from vit_api.web.page.security_headers import strict_page_headers

PAGE_PATH = "/"
PAGE_FOLDER = "/page/"

_FILES = Path(__file__).resolve().parent / "static"
_START = "index.html"

# The types that `mimetypes` knows vary by machine, and browsers refuse scripts with a wrong type.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class _File:
    """A static file and its response headers."""

    content: bytes
    headers: dict[str, str]

    def answer(self, request: Request) -> Response:
        """Return the file, or a 304 if the browser has the current version; see RFC 9110, section 13.1.2."""
        cached = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if self.headers["etag"] in cached:
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def page_router() -> APIRouter:
    """Return the routes of the page and its files, which are read once.

    Browsers revalidate each file on every load, so that a page never mixes scripts of two versions.
    """
    files = read_files(_FILES)
    start = files.pop(_START)
    start = _File(start.content, start.headers | {"link": DESCRIPTION_LINKS})
    router = APIRouter(tags=["page"])

    @router.head(PAGE_PATH, include_in_schema=False)
    @router.get(PAGE_PATH, response_class=HTMLResponse, responses={304: {"description": "Not modified"}})
    async def page(request: Request) -> Response:
        """Return a web page that classifies images."""
        return start.answer(request)

    @router.head(PAGE_FOLDER + "{name:path}", include_in_schema=False)
    @router.get(PAGE_FOLDER + "{name:path}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        return files[name].answer(request)

    return router


def read_files(folder: Path) -> dict[str, _File]:
    """Return the page's files by their paths within the folder, without what editors and file managers leave there."""
    paths = [path for path in folder.rglob("*") if path.suffix in _TYPES and path.is_file()]
    return {path.relative_to(folder).as_posix(): _read(path) for path in paths}


def _read(path: Path) -> _File:
    content = path.read_bytes()
    headers = {
        "content-type": _TYPES[path.suffix],
        "cache-control": "no-cache",
        "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }
    # An SVG image may contain scripts, and is a page of its own when opened directly.
    return _File(content, headers | strict_page_headers())
