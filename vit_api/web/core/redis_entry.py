"""What Redis remembers of one image: a prediction, sealed so that nothing else is ever taken for one.

Knows nothing of Redis itself.
"""

from __future__ import annotations

import struct
import zlib

from vit_api.ipc.records import Prediction

_FORMAT = b"ViT2"
"""The entries' format and its version; change it with `Prediction.pack`."""

_HEAD = struct.Struct("<4sI")


def pack_entry(key: bytes, prediction: Prediction) -> bytes:
    """Return what Redis remembers: format and version, a checksum of key and prediction, the prediction."""
    packed = prediction.pack()
    return _HEAD.pack(_FORMAT, zlib.crc32(packed, zlib.crc32(key))) + packed


def unpack_entry(key: bytes, entry: bytes, classes: int) -> Prediction:
    """Return the prediction in an entry.

    Args:
        key: What the entry was stored under.
        entry: What Redis remembers.
        classes: How many the model knows.

    Raises:
        ValueError: It is of another format or version, belongs to another key, is damaged, or makes no sense.
    """
    packed = entry[_HEAD.size :]
    if entry[: _HEAD.size] != _HEAD.pack(_FORMAT, zlib.crc32(packed, zlib.crc32(key))):
        raise ValueError("another format, or damaged")
    prediction = Prediction.unpack(packed)
    if not prediction.indices or max(prediction.indices) >= classes:
        raise ValueError("classes that the model doesn't know")
    top, certainty = prediction.logits[0], prediction.top_probability
    # Rounding may lift a probability above one.
    if not (prediction.is_finite and 0 <= certainty <= 1 + 1e-6 and all(logit <= top for logit in prediction.logits)):
        raise ValueError("not what a model says")
    return prediction
