"""Schemathesis hooks that generate valid image bodies for this API; loaded by its command line."""

from __future__ import annotations

import base64

import schemathesis
from hypothesis import strategies as st
from schemathesis.transport.serialization import Binary

from tests.support.samples import image_files

_IMAGES = st.sampled_from([content for _, content in sorted(image_files().items())])

schemathesis.openapi.format("binary", _IMAGES.map(Binary))
schemathesis.openapi.format("byte", _IMAGES.map(lambda content: base64.b64encode(content).decode()))
schemathesis.openapi.format(
    "data-url", _IMAGES.map(lambda content: f"data:image/png;base64,{base64.b64encode(content).decode()}")
)
for media_type in ("application/octet-stream", "image/*"):
    schemathesis.openapi.media_type(media_type, _IMAGES)
