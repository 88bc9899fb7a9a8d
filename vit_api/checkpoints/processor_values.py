"""Reads single values of an image processor's JSON file, checked. Knows no processor class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_api.checkpoints.preprocessing import Channels, Size, UnsupportedProcessor

_LAST_FILTER = 5  # PIL.Image.Resampling has the numbers 0 (nearest) to 5 (Hamming)


def read_flag(file: Mapping[str, Any], key: str, default: bool) -> bool:
    """Read a switch. If absent, it has the class's default; null means off, as in transformers."""
    value = file.get(key, default)
    if not isinstance(value, bool | None):
        raise UnsupportedProcessor(f"its image processor's {key} is {value!r}, which is neither true nor false")
    return bool(value)


def read_filter(file: Mapping[str, Any], default: int) -> int:
    """Read the number of PIL's resampling filter."""
    resample = file.get("resample", default)
    if type(resample) is not int or not 0 <= resample <= _LAST_FILTER:
        raise UnsupportedProcessor(f"its image processor's resample is {resample!r}, and not a filter of PIL (0 to 5)")
    return resample


def read_edges(key: str, value: Any, square: bool) -> dict[str, int]:
    """Convert a size to a dictionary, as transformers' get_size_dict does.

    An integer is the side of a square, or the shortest edge if the class says so; a list is (height, width).
    """
    if isinstance(value, int):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    edges = {edge: length for edge, length in value.items() if length is not None} if isinstance(value, dict) else {}
    if not edges or any(type(length) is not int or length < 1 for length in edges.values()):
        raise UnsupportedProcessor(f"its image processor's {key} is {value!r}, and not lengths in pixels")
    return edges


def height_width(key: str, edges: Mapping[str, int]) -> Size:
    """Return (height, width) of what `read_edges` returned."""
    if set(edges) != {"height", "width"}:
        raise UnsupportedProcessor(
            f"its image processor's {key} has {', '.join(sorted(edges))}; "
            "only height with width is supported" + (", or shortest_edge" * (key == "size"))
        )
    return edges["height"], edges["width"]


def read_channels(key: str, value: Any) -> Channels:
    """Return one number for each channel; a single number is for all."""
    values = value if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3:
        raise UnsupportedProcessor(f"its image processor's {key} has {len(values)} values, and images have 3 channels")
    red, green, blue = (read_number(key, number) for number in values)
    return red, green, blue


def read_divisors(key: str, value: Any) -> Channels:
    """Return what each channel is divided by."""
    divisors = read_channels(key, value)
    if 0.0 in divisors:
        raise UnsupportedProcessor(f"its image processor's {key} contains a zero")
    return divisors


def read_number(key: str, value: Any) -> float:
    """Return a finite number."""
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond the range of a float
        pass
    raise UnsupportedProcessor(f"its image processor's {key} has {value!r}, which is not a number")


def read_fraction(key: str, value: Any) -> float:
    """Return a number above 0 and at most 1."""
    number = read_number(key, value)
    if not 0 < number <= 1:
        raise UnsupportedProcessor(f"its image processor's {key} is {value!r}, and not above 0 and at most 1")
    return number
