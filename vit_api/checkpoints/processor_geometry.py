"""Reads from an image processor's JSON file how it resizes and crops, for each kind of `processors.Geometry`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_api.checkpoints.preprocessing import Size, UnsupportedProcessor
from vit_api.checkpoints.processor_values import height_width, read_edges, read_flag, read_fraction
from vit_api.checkpoints.processors import Geometry, Processor

_CONVNEXT_UNCROPPED_FROM = 384
_LEVIT_RATIO = 256 / 224


class Steps(NamedTuple):
    """A resize and the crops around it; the fields of `Preprocessing` with the same names."""

    size: Size | None = None
    shortest_edge: int | None = None
    crop: Size | None = None
    first_crop: tuple[float, float] | None = None


def read_steps(file: Mapping[str, Any], processor: Processor) -> Steps:
    """Read how an image is resized and cropped.

    Raises:
        UnsupportedProcessor: The result has no fixed size, or two steps can't be combined to one resize and crop.
    """
    if not read_flag(file, "do_resize", True):
        raise UnsupportedProcessor("its image processor does not resize (do_resize is false), so sizes would differ")
    square = read_flag(file, "default_to_square", processor.default_to_square)
    edges = read_edges("size", file.get("size", processor.size), square)
    steps = _RESIZES[processor.geometry](file, processor, edges)
    if steps.size is None and steps.crop is None:
        raise UnsupportedProcessor(
            "its image processor resizes by the shortest edge without a crop, so sizes would differ"
        )
    return steps


def _plain(file: Mapping[str, Any], processor: Processor, edges: Mapping[str, int]) -> Steps:
    return _resized(edges)._replace(crop=_crop(file, processor))


def _uncropped(_file: Mapping[str, Any], _processor: Processor, edges: Mapping[str, int]) -> Steps:
    return _resized(edges)


def _convnext(file: Mapping[str, Any], processor: Processor, edges: Mapping[str, int]) -> Steps:
    if set(edges) != {"shortest_edge"}:
        raise UnsupportedProcessor(
            f"its image processor's size has {', '.join(sorted(edges))}; this class takes shortest_edge only"
        )
    edge = edges["shortest_edge"]
    second_crop = _crop(file, processor)
    if edge >= _CONVNEXT_UNCROPPED_FROM:
        return Steps(size=(edge, edge), crop=second_crop)
    if second_crop not in (None, (edge, edge)):
        raise UnsupportedProcessor("its image processor crops twice, by crop_pct and by do_center_crop")
    return Steps(shortest_edge=int(edge / _crop_pct(file, processor)), crop=(edge, edge))


def _levit(file: Mapping[str, Any], processor: Processor, edges: Mapping[str, int]) -> Steps:
    if set(edges) == {"shortest_edge"}:
        edges = {"shortest_edge": int(_LEVIT_RATIO * edges["shortest_edge"])}
    return _plain(file, processor, edges)


def _poolformer(file: Mapping[str, Any], processor: Processor, edges: Mapping[str, int]) -> Steps:
    assert processor.options is not None
    if file.get("crop_pct", processor.options["crop_pct"]) is None:
        return _plain(file, processor, edges)
    crop_pct = _crop_pct(file, processor)
    scaled = {edge: int(length / crop_pct) for edge, length in edges.items()}
    if set(edges) == {"height", "width"} and edges["height"] == edges["width"]:
        scaled = {"shortest_edge": scaled["height"]}
    return _plain(file, processor, scaled)


def _perceiver(file: Mapping[str, Any], processor: Processor, edges: Mapping[str, int]) -> Steps:
    height, width = height_width("size", edges)
    crop = _crop(file, processor)
    if crop is None:
        return Steps(size=(height, width))
    parts = (read_fraction("size / crop_size", height / crop[0]), read_fraction("size / crop_size", width / crop[1]))
    return Steps(size=(height, width), first_crop=parts)


_RESIZES = {
    Geometry.PLAIN: _plain,
    Geometry.UNCROPPED: _uncropped,
    Geometry.CONVNEXT: _convnext,
    Geometry.LEVIT: _levit,
    Geometry.POOLFORMER: _poolformer,
    Geometry.PERCEIVER: _perceiver,
}


def _resized(edges: Mapping[str, int]) -> Steps:
    if set(edges) == {"shortest_edge"}:
        return Steps(shortest_edge=edges["shortest_edge"])
    return Steps(size=height_width("size", edges))


def _crop(file: Mapping[str, Any], processor: Processor) -> Size | None:
    if not read_flag(file, "do_center_crop", processor.do_center_crop):
        return None
    crop_size = file.get("crop_size", processor.crop_size)
    if crop_size is None:
        raise UnsupportedProcessor("its image processor crops (do_center_crop) but has no crop_size")
    return height_width("crop_size", read_edges("crop_size", crop_size, square=True))


def _crop_pct(file: Mapping[str, Any], processor: Processor) -> float:
    assert processor.options is not None
    return read_fraction("crop_pct", file.get("crop_pct", processor.options["crop_pct"]))
