"""Reads from an image processor's JSON file what happens to the pixels before the model.

Knows the settings and defaults of transformers' image processors, but never imports transformers, torch or PIL: it runs
in the main process, which is forked into the HTTP processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_api.checkpoints.preprocessing import Channels, Preprocessing, UnsupportedProcessor
from vit_api.checkpoints.processor_geometry import read_steps
from vit_api.checkpoints.processor_values import read_channels, read_divisors, read_filter, read_flag, read_number
from vit_api.checkpoints.processors import CLASS_BY_MODEL_TYPE, PROCESSORS, REFUSED, Processor

# Options of other processors that change pixels. transformers ignores most of them in classes that do not have them,
# but a file that has one was not written for such a class, so its author expects different pixels.
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


def read_preprocessing(file: Mapping[str, Any], model: Mapping[str, Any]) -> Preprocessing:
    """Read an image processor's settings as transformers would.

    Args:
        file: The content of preprocessor_config.json.
        model: The content of config.json, which decides if the former names no class.

    Raises:
        UnsupportedProcessor: The processor is not a resize to a known size, an optional centre crop, a rescale and a
            normalisation of three channels; the message says why.
    """
    processor = PROCESSORS[_class_name(file, model)]
    for option in _REFUSED_OPTIONS:
        if option not in (processor.options or ()) and file.get(option) not in (None, False, "channels_last"):
            raise UnsupportedProcessor(f"its image processor uses {option}, which is not supported")
    steps = read_steps(file, processor)
    scale, mean, std = _normalisation(file, processor)
    return Preprocessing(
        size=steps.size,
        shortest_edge=steps.shortest_edge,
        crop=steps.crop,
        resample=read_filter(file, processor.resample),
        scale=scale,
        mean=mean,
        std=std,
        has_white_background=read_flag(file, "do_convert_rgb", processor.do_convert_rgb),
        first_crop=steps.first_crop,
        is_bgr=_option(file, processor, "do_flip_channel_order"),
    )


def _class_name(file: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Return the processor class that AutoImageProcessor would choose, without a backend's suffix (Fast, Pil)."""
    remote = file.get("auto_map")
    name = file.get("image_processor_type")
    if name is None and not (isinstance(remote, Mapping) and "AutoImageProcessor" in remote):
        name = str(file.get("feature_extractor_type") or "").replace("FeatureExtractor", "ImageProcessor")
    model_type = str(model.get("model_type"))
    name = name or model.get("image_processor_type") or CLASS_BY_MODEL_TYPE.get(model_type)
    known = str(name).removesuffix("Fast").removesuffix("Pil")
    if known in PROCESSORS:
        return known
    if remote:
        raise UnsupportedProcessor("its image processor is code from its repository, and remote code is never run")
    if name is None:
        raise UnsupportedProcessor(f"no image processor is known for its model type, {model_type!r}")
    if known in REFUSED:
        raise UnsupportedProcessor(f"its image processor is {name}, which {REFUSED[known]}")
    raise UnsupportedProcessor(
        f"its image processor is {name}, and only these are supported: {', '.join(sorted(PROCESSORS))}"
    )


def _option(file: Mapping[str, Any], processor: Processor, key: str) -> bool:
    """Read a switch that only some classes have."""
    options = processor.options or {}
    return key in options and read_flag(file, key, bool(options[key]))


def _normalisation(file: Mapping[str, Any], processor: Processor) -> tuple[float, Channels, Channels]:
    """Return (scale, mean, std), which also cover EfficientNet's offset and its second division."""
    rescales = read_flag(file, "do_rescale", True)
    scale = read_number("rescale_factor", file.get("rescale_factor", 1 / 255)) if rescales else 1.0
    offset = 1.0 if rescales and _option(file, processor, "rescale_offset") else 0.0
    mean: Channels = (0.0, 0.0, 0.0)
    divisions = int(_option(file, processor, "include_top"))
    if read_flag(file, "do_normalize", True) and not processor.ignores_normalisation:
        mean = read_channels("image_mean", file.get("image_mean", processor.mean))
        divisions += 1
    red, green, blue = mean
    std: Channels = (1.0, 1.0, 1.0)
    if divisions:
        std = read_divisors("image_std", file.get("image_std", processor.std))
        std = (std[0] ** divisions, std[1] ** divisions, std[2] ** divisions)
    return scale, (red + offset, green + offset, blue + offset), std
