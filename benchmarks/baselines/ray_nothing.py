"""A replica of Ray Serve that answers at once: what Ray itself takes. Runs in the environment of `make ray`.

Arguments: port. The variables are those of `ray_replica`.
"""

from __future__ import annotations

import sys
from typing import Any

from ray import serve

from benchmarks.baselines.ray_replica import serve_until_stopped
from deploy.ray_serve import live

_BODY = b'{"predictions": []}'.ljust(400)
"""As long as an answer of our server."""


@serve.deployment(max_ongoing_requests=256)
@serve.ingress()
class Nothing:
    """Reads each request and answers it."""

    def __serve_build_asgi_app__(self) -> Any:
        """Return the ASGI application."""

        async def handle(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                while (await receive()).get("more_body"):
                    pass
                headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": _BODY})
            elif scope["type"] == "lifespan":
                await live(receive, send)

        return handle


if __name__ == "__main__":
    serve_until_stopped(int(sys.argv[1]), Nothing.bind())  # type: ignore[attr-defined]
