"""The same LitAPI behind an ordinary FastAPI endpoint, without batching.

The endpoint runs on the event loop: on few cores that is faster than FastAPI's threads, which compete for the GIL.
Arguments: port, model.
"""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from benchmarks.baselines.command_line import arguments, lit_api
from vit_api.lit_api import ViTAPI


def application(api: ViTAPI) -> FastAPI:
    """Return the application."""
    app = FastAPI()

    @app.get("/")
    async def ready() -> str:
        return "ready"

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        upload = await request.body()
        output = api.predict(api.batch([api.decode_request(upload)]))
        return api.encode_response(api.unbatch(output)[0])

    return app


if __name__ == "__main__":
    options = arguments()
    lit = lit_api(options, max_batch_size=1)
    lit.setup("cpu")
    uvicorn.run(application(lit), host="127.0.0.1", port=options.port, access_log=False, log_level="warning")
