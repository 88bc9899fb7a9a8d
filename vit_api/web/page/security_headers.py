"""Security headers of the HTML pages, and the page /docs. Knows nothing of other pages' content."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

STATIC_FOLDER = "/docs/static"

_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)

# huggingface.co embeds a Space's page in a frame. X-Frame-Options can't list origins, and browsers ignore it when
# `frame-ancestors` is set (CSP Level 3, section 6.4.2), so it is not sent.
_FRAME_ANCESTORS = "'self' https://huggingface.co"


def page_headers(html: str) -> dict[str, str]:
    """Return the headers of a page that may load only from this server, and run only its own inline scripts.

    Inline scripts are allowed by their hashes (CSP Level 3, section 2.3.1), so the page must not contain anything from
    a request.
    """
    hashes = [hashlib.sha256(script.encode()).digest() for script in _INLINE_SCRIPT.findall(html)]
    scripts = " ".join(["'self'", *(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)])
    policy = {
        "default-src": "'self'",
        "script-src": scripts,
        "style-src": "'self' 'unsafe-inline'",  # Swagger UI sets style attributes
        "img-src": "'self' data: blob:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": _FRAME_ANCESTORS,
    }
    return _headers(policy)


def strict_page_headers() -> dict[str, str]:
    """Return the headers of a page that has no inline scripts or styles, and creates no HTML from strings.

    It may show images that the visitor chose (`blob:`), and send requests only to this server. The last two directives
    enable Trusted Types, with which the browser refuses `innerHTML` and the like.
    """
    return _headers(
        {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' blob:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": _FRAME_ANCESTORS,
            "require-trusted-types-for": "'script'",
            "trusted-types": "'none'",
        }
    )


def _headers(policy: dict[str, str]) -> dict[str, str]:
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "referrer-policy": "no-referrer",
    }


def docs_router(title: str, openapi_url: str) -> APIRouter:
    """Return the route of /docs: Swagger UI with the assets that fastapi-offline bundles, without a CDN.

    The page's URLs are relative, so that it works behind a proxy that strips a path prefix.

    Args:
        title: The page's title.
        openapi_url: The path of the OpenAPI description.
    """
    router = APIRouter(include_in_schema=False)
    folder = STATIC_FOLDER.removeprefix("/")
    page = get_swagger_ui_html(
        openapi_url=openapi_url.removeprefix("/"),
        title=title,
        swagger_js_url=f"{folder}/swagger-ui-bundle.js",
        swagger_css_url=f"{folder}/swagger-ui.css",
        swagger_favicon_url=f"{folder}/favicon.png",
    )
    html = bytes(page.body).decode()
    headers = page_headers(html)

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    return router
