"""Which models take the same pixels of an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vit_api.checkpoints.preprocessing import Preprocessing

_ONE = Preprocessing(
    size=(8, 8), shortest_edge=None, crop=None, resample=2, scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3
)


@pytest.mark.parametrize(
    "change", [{"scale": 1.0}, {"mean": (0.4, 0.5, 0.6)}, {"std": (0.2,) * 3}, {"is_bgr": True}, {}], ids=str
)
def test_what_the_device_does_changes_no_pixels(change: dict[str, Any]) -> None:
    """Pixels are scaled and normalised there."""
    assert replace(_ONE, **change).has_pixels_of(_ONE)


@pytest.mark.parametrize(
    "change",
    [
        {"size": (16, 16)},
        {"size": None, "shortest_edge": 8, "crop": (8, 8)},
        {"crop": (8, 8)},
        {"resample": 3},
        {"has_white_background": True},
        {"first_crop": (0.9, 0.9)},
        {"has_rounded_crop": True},
    ],
    ids=str,
)
def test_what_decoding_does_changes_them(change: dict[str, Any]) -> None:
    """Also if the shape is the same."""
    assert not replace(_ONE, **change).has_pixels_of(_ONE)
    assert not _ONE.has_pixels_of(replace(_ONE, **change))
