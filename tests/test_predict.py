"""`/predict/batch` when the classifier turns images away: what the whole request's answer is."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from vit_api.classifier import Classification
from vit_api.errors import BadImage, Overloaded
from vit_api.records import Prediction
from vit_api.routes.api import create_app
from vit_api.routes.predict import PredictRoutes
from vit_api.routes.uploads import Uploads


class Scripted:
    """A classifier whose upload says what becomes of it; also the encoder."""

    async def classify(self, upload: bytes, deadline: float) -> Classification:
        if upload == b"full":
            raise Overloaded("planted")
        if upload == b"bad":
            raise BadImage("planted")
        return Classification(Prediction((0,), (1.0,)), 1, 0.0, 0.0)

    def encode_response(self, output: Prediction, *, top_k: int) -> dict[str, Any]:
        return {"predictions": []}


@pytest.mark.parametrize(
    ("uploads", "status", "codes"),
    [
        pytest.param(["good", "full"], 200, [None, "overloaded"], id="one answered: a list"),
        pytest.param(["bad", "bad"], 200, ["bad_image", "bad_image"], id="only bad images: a list"),
        pytest.param(["full", "full"], 503, "overloaded", id="none answered, our fault: a failure"),
        pytest.param(["bad", "full"], 503, "overloaded", id="none answered, partly our fault: a failure"),
    ],
)
def test_batch_status(uploads: list[str], status: int, codes: object) -> None:
    """A request of which nothing was answered for the server's fault is a 503 that says when to come back."""
    scripted: Any = Scripted()
    limits = Uploads(max_bytes=1000, max_count=32, max_total_bytes=10_000)
    routes = PredictRoutes(scripted, scripted, limits, model_name="m", request_timeout_s=30)
    app = create_app(routes, APIRouter(), start=lambda: None, stop=lambda: None)

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            files = [("files", upload.encode()) for upload in uploads]
            return await client.post("/predict/batch", files=files)

    response = asyncio.run(send())
    body = response.json()
    assert response.status_code == status
    assert ([item.get("code") for item in body] if isinstance(body, list) else body["code"]) == codes
    assert ("retry-after" in response.headers) == (status == 503)
