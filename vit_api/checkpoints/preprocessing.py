"""Reads from an image processor's JSON file what happens to the pixels before the model.

Knows the settings and defaults of transformers' image processors, but never imports transformers, torch or PIL: it runs
in the main process, which is forked into the HTTP processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Size = tuple[int, int]
Channels = tuple[float, float, float]

_HALF: Channels = (0.5, 0.5, 0.5)
_IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
_IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
_CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
_BILINEAR = 2
_BICUBIC = 3
_LAST_FILTER = 5  # PIL.Image.Resampling has the numbers 0 (nearest) to 5 (Hamming)


class UnsupportedProcessor(Exception):
    """The checkpoint's image processor is not supported; the message says why."""


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an RGB image: resize, centre crop, rescale, normalise.

    Attributes:
        size: (height, width) of the resize, ignoring the aspect ratio, or None.
        shortest_edge: The length of the shorter edge after a resize that keeps the aspect ratio, or None.
        crop: (height, width) of the centre crop after the resize, or None.
        resample: The number of PIL's resampling filter.
        scale: The factor for each pixel value; 1.0 if the processor does not rescale.
        mean: Subtracted from each channel after scaling; zeros if the processor does not normalise.
        std: The divisor of each channel; ones if the processor does not normalise.
        has_white_background: Whether the single transparent colour of an image becomes white.
    """

    size: Size | None
    shortest_edge: int | None
    crop: Size | None
    resample: int
    scale: float
    mean: Channels
    std: Channels
    has_white_background: bool = False

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """The shape (height, width, 3) of the model's input pixels."""
        shape = self.crop or self.size
        if shape is None:
            raise ValueError("A resize that keeps the aspect ratio needs a crop.")
        return (*shape, 3)


@dataclass(frozen=True)
class _Defaults:
    """The defaults of a processor class of transformers, for what its JSON file leaves out."""

    size: int | Mapping[str, int]
    resample: int = _BICUBIC
    mean: Channels = _HALF
    std: Channels = _HALF
    crop_size: int | None = None
    do_center_crop: bool = False
    default_to_square: bool = True
    do_convert_rgb: bool = False


# The class attributes in transformers 5.24, models/*/image_processing_pil_*.py; a test compares them. Every class here
# runs the plain `PilBackend._preprocess`: resize, centre crop, rescale, normalise, and nothing else.
_CLASSES = {
    "ViTImageProcessor": _Defaults(size=224, resample=_BILINEAR),
    "DeiTImageProcessor": _Defaults(size=256, crop_size=224, do_center_crop=True),
    "BeitImageProcessor": _Defaults(size=224, crop_size=224),
    "BitImageProcessor": _Defaults(
        size={"shortest_edge": 224},
        crop_size=224,
        do_center_crop=True,
        mean=_CLIP_MEAN,
        std=_CLIP_STD,
        default_to_square=False,
        do_convert_rgb=True,
    ),
    "CLIPImageProcessor": _Defaults(
        size={"shortest_edge": 224},
        crop_size=224,
        do_center_crop=True,
        mean=_CLIP_MEAN,
        std=_CLIP_STD,
        default_to_square=False,
        do_convert_rgb=True,
    ),
    "SiglipImageProcessor": _Defaults(size={"height": 224, "width": 224}, default_to_square=False, do_convert_rgb=True),
    "PvtImageProcessor": _Defaults(size=224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
}

# For files that name no class: the part of transformers' IMAGE_PROCESSOR_MAPPING_NAMES for the classes above.
_CLASS_BY_MODEL_TYPE = {
    "beit": "BeitImageProcessor",
    "bit": "BitImageProcessor",
    "clip": "CLIPImageProcessor",
    "data2vec-vision": "BeitImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinat": "ViTImageProcessor",
    "dinov2": "BitImageProcessor",
    "focalnet": "BitImageProcessor",
    "hiera": "BitImageProcessor",
    "ijepa": "ViTImageProcessor",
    "metaclip_2": "CLIPImageProcessor",
    "pvt": "PvtImageProcessor",
    "pvt_v2": "PvtImageProcessor",
    "siglip": "SiglipImageProcessor",
    "swiftformer": "ViTImageProcessor",
    "swin": "ViTImageProcessor",
    "swinv2": "ViTImageProcessor",
    "vit": "ViTImageProcessor",
    "vit_msn": "ViTImageProcessor",
}

# Options of other processors that change pixels. transformers ignores most of them in the classes above, but a file
# that has one was not written for these classes, so its author expects different pixels.
_REFUSED_OPTIONS = (
    "crop_pct",
    "do_align_long_axis",
    "do_flip_channel_order",
    "do_grayscale",
    "do_pad",
    "do_thumbnail",
    "input_data_format",
    "rescale_offset",
    "size_divisor",
    "use_square_size",
)


def read_preprocessing(processor: Mapping[str, Any], model: Mapping[str, Any]) -> Preprocessing:
    """Read an image processor's settings as transformers would.

    Args:
        processor: The content of preprocessor_config.json.
        model: The content of config.json, which decides if the former names no class.

    Raises:
        UnsupportedProcessor: The processor is not a resize to a known size, an optional centre crop, a rescale and a
            normalisation of three channels; the message says why.
    """
    defaults = _CLASSES[_class_name(processor, model)]
    for option in _REFUSED_OPTIONS:
        if processor.get(option) not in (None, False, "channels_last"):
            raise UnsupportedProcessor(f"its image processor uses {option}, which is not supported")
    if not _flag(processor, "do_resize", True):
        raise UnsupportedProcessor("its image processor does not resize (do_resize is false), so sizes would differ")
    size, shortest_edge = _resize(processor, defaults)
    crop = _crop(processor, defaults)
    if size is None and crop is None:
        raise UnsupportedProcessor(
            "its image processor resizes by the shortest edge without a crop, so sizes would differ"
        )
    mean, std = _normalisation(processor, defaults)
    return Preprocessing(
        size=size,
        shortest_edge=shortest_edge,
        crop=crop,
        resample=_resample(processor, defaults),
        scale=_scale(processor),
        mean=mean,
        std=std,
        has_white_background=_flag(processor, "do_convert_rgb", defaults.do_convert_rgb),
    )


def _class_name(processor: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Return the processor class that AutoImageProcessor would choose, without a backend's suffix (Fast, Pil)."""
    remote = processor.get("auto_map")
    name = processor.get("image_processor_type")
    if name is None and not (isinstance(remote, Mapping) and "AutoImageProcessor" in remote):
        name = str(processor.get("feature_extractor_type") or "").replace("FeatureExtractor", "ImageProcessor")
    name = name or model.get("image_processor_type") or _CLASS_BY_MODEL_TYPE.get(str(model.get("model_type")))
    known = str(name).removesuffix("Fast").removesuffix("Pil")
    if known in _CLASSES:
        return known
    if remote:
        raise UnsupportedProcessor("its image processor is code from its repository, and remote code is never run")
    if name is None:
        raise UnsupportedProcessor(f"no image processor is known for its model type, {model.get('model_type')!r}")
    raise UnsupportedProcessor(
        f"its image processor is {name}, and only these are supported: {', '.join(sorted(_CLASSES))}"
    )


def _flag(processor: Mapping[str, Any], key: str, default: bool) -> bool:
    """Read a switch. If absent, it has the class's default; null means off, as in transformers."""
    value = processor.get(key, default)
    if not isinstance(value, bool | None):
        raise UnsupportedProcessor(f"its image processor's {key} is {value!r}, which is neither true nor false")
    return bool(value)


def _resize(processor: Mapping[str, Any], defaults: _Defaults) -> tuple[Size | None, int | None]:
    """Return (size, shortest_edge), one of which is None."""
    square = _flag(processor, "default_to_square", defaults.default_to_square)
    edges = _edges("size", processor.get("size", defaults.size), square)
    if set(edges) == {"shortest_edge"}:
        return None, edges["shortest_edge"]
    return _height_width("size", edges), None


def _crop(processor: Mapping[str, Any], defaults: _Defaults) -> Size | None:
    if not _flag(processor, "do_center_crop", defaults.do_center_crop):
        return None
    crop_size = processor.get("crop_size", defaults.crop_size)
    if crop_size is None:
        raise UnsupportedProcessor("its image processor crops (do_center_crop) but has no crop_size")
    return _height_width("crop_size", _edges("crop_size", crop_size, square=True))


def _edges(key: str, value: Any, square: bool) -> dict[str, int]:
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


def _height_width(key: str, edges: Mapping[str, int]) -> Size:
    if set(edges) != {"height", "width"}:
        raise UnsupportedProcessor(
            f"its image processor's {key} has {', '.join(sorted(edges))}; "
            "only height with width is supported" + (", or shortest_edge" * (key == "size"))
        )
    return edges["height"], edges["width"]


def _resample(processor: Mapping[str, Any], defaults: _Defaults) -> int:
    resample = processor.get("resample", defaults.resample)
    if type(resample) is not int or not 0 <= resample <= _LAST_FILTER:
        raise UnsupportedProcessor(f"its image processor's resample is {resample!r}, and not a filter of PIL (0 to 5)")
    return resample


def _scale(processor: Mapping[str, Any]) -> float:
    if not _flag(processor, "do_rescale", True):
        return 1.0
    return _number("rescale_factor", processor.get("rescale_factor", 1 / 255))


def _normalisation(processor: Mapping[str, Any], defaults: _Defaults) -> tuple[Channels, Channels]:
    """Return (mean, std)."""
    if not _flag(processor, "do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean = _channels("image_mean", processor.get("image_mean", defaults.mean))
    std = _channels("image_std", processor.get("image_std", defaults.std))
    if 0.0 in std:
        raise UnsupportedProcessor("its image processor's image_std contains a zero")
    return mean, std


def _channels(key: str, value: Any) -> Channels:
    values = value if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3:
        raise UnsupportedProcessor(f"its image processor's {key} has {len(values)} values, and images have 3 channels")
    red, green, blue = (_number(key, number) for number in values)
    return red, green, blue


def _number(key: str, value: Any) -> float:
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond the range of a float
        pass
    raise UnsupportedProcessor(f"its image processor's {key} has {value!r}, which is not a number")
