"""What HTML pages of ours may do in a browser, and the page /docs. Knows nothing of other pages' content."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

STATIC_FOLDER = "/docs/static"

_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)

# A Space of Hugging Face shows the server's page within one of huggingface.co's. X-Frame-Options knows no list of
# origins, and browsers ignore it beside `frame-ancestors` (CSP Level 3, section 6.4.2), so it is not sent.
_FRAME_ANCESTORS = "'self' https://huggingface.co"


def page_headers(html: str) -> dict[str, str]:
    """Return the headers of a page: it runs and loads what comes from this server, and the scripts within it.

    Those are named by their hashes (CSP Level 3, section 2.3.1), so a page has to be made without anything of a
    request in it.
    """
    hashes = [hashlib.sha256(script.encode()).digest() for script in _INLINE_SCRIPT.findall(html)]
    scripts = " ".join(["'self'", *(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)])
    policy = {
        "default-src": "'self'",
        "script-src": scripts,
        "style-src": "'self' 'unsafe-inline'",  # Swagger UI sets styles by attributes
        "img-src": "'self' data: blob:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": _FRAME_ANCESTORS,
    }
    return _headers(policy)


def strict_page_headers() -> dict[str, str]:
    """Return the headers of a page that has nothing inline: no script, no style, and no HTML made from strings.

    It shows images that its visitor chose (`blob:`), and sends what it sends to this server alone. The last two names
    are of Trusted Types, which make the browser refuse `innerHTML` and its like.
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
    """Return the route of /docs, which needs no other host: Swagger UI with what fastapi-offline brings.

    The page's addresses are relative to its own, for proxies that serve it below a path that the server never sees.

    Args:
        title: The page's.
        openapi_url: The path of the API's description.
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
