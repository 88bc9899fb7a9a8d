"""The minimum for a form in FastAPI: read the upload and hash it."""

from __future__ import annotations

import hashlib

from fastapi import FastAPI, UploadFile

app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, str]:
    """Hash a form's field `file`."""
    return {"sha256": hashlib.sha256(await file.read()).hexdigest()}
