"""The format of an entry in Redis: a packed prediction with a version and a checksum. Knows nothing of Redis itself."""

from __future__ import annotations

import struct
import zlib

from vit_api.ipc.records import Prediction

_FORMAT = b"ViT2"
"""The format and its version; to be changed with `Prediction.pack`."""

_HEAD = struct.Struct("<4sI")


def pack_entry(key: bytes, prediction: Prediction) -> bytes:
    """Return an entry: format and version, a checksum of key and prediction, the packed prediction."""
    packed = prediction.pack()
    return _HEAD.pack(_FORMAT, zlib.crc32(packed, zlib.crc32(key))) + packed


def unpack_entry(key: bytes, entry: bytes, classes: int) -> Prediction:
    """Return the prediction in an entry.

    Args:
        key: The key under which the entry was stored.
        entry: The entry.
        classes: The model's number of classes.

    Raises:
        ValueError: It has another format or version, belongs to another key, is corrupt, or has impossible values.
    """
    packed = entry[_HEAD.size :]
    if entry[: _HEAD.size] != _HEAD.pack(_FORMAT, zlib.crc32(packed, zlib.crc32(key))):
        raise ValueError("another format, or corrupt")
    prediction = Prediction.unpack(packed)
    if not prediction.indices or max(prediction.indices) >= classes:
        raise ValueError("classes that the model doesn't know")
    top, certainty = prediction.logits[0], prediction.top_probability
    # Rounding may raise a probability slightly above one.
    if not (prediction.is_finite and 0 <= certainty <= 1 + 1e-6 and all(logit <= top for logit in prediction.logits)):
        raise ValueError("impossible logits or probability")
    return prediction
