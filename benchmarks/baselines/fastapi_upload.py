"""How a form's upload is read with FastAPI, and nothing else: the file is hashed."""

from __future__ import annotations

import hashlib

from fastapi import FastAPI, UploadFile

app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, str]:
    """Hash a form's field `file`."""
    return {"sha256": hashlib.sha256(await file.read()).hexdigest()}
