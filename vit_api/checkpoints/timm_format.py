"""Reads a checkpoint in timm's hub format: config.json with `architecture` and `pretrained_cfg`, model.safetensors.

Knows the defaults of timm 1.0, but never imports timm or torch. Plain ViTs, see `timm_architectures`, run without timm;
other architectures run through transformers' wrapper, which needs the package.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_api.checkpoints.preprocessing import Preprocessing, Size, UnsupportedProcessor
from vit_api.checkpoints.processor_values import read_channels, read_divisors, read_fraction
from vit_api.checkpoints.timm_architectures import NotPlain, PlainViT, Shapes, recognise

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CROP_PCT = 0.875
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

_SYNSETS_BY_CLASSES = {
    1000: "imagenet_synsets.txt",
    11221: "imagenet21k_miil_synsets.txt",
    11821: "imagenet12k_synsets.txt",
    21841: "imagenet22k_synsets.txt",
    21842: "imagenet22k_ms_synsets.txt",
    21843: "imagenet21k_goog_synsets.txt",
}


class UnsupportedTimm(Exception):
    """A checkpoint in timm's format can't be served; the message says why."""


def read_timm_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names: `label_names`, or ImageNet's if timm is installed, or LABEL_0 and so on.

    Raises:
        UnsupportedTimm: There are no classes, or not as many as names.
    """
    settings = _settings(config)
    classes = config.get("num_classes", settings.get("num_classes"))
    names = config.get("label_names", settings.get("label_names"))
    if type(classes) is not int:
        classes = len(names) if isinstance(names, list) else 0
    if classes < 1:
        raise UnsupportedTimm("it is not an image classifier (num_classes is 0)")
    if names is None:
        return _imagenet_labels(classes) or tuple(f"LABEL_{index}" for index in range(classes))
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(one, str | int) for one in names):
        raise UnsupportedTimm(f"its label_names are not a list of {classes} names")
    return tuple(map(str, names))


def _imagenet_labels(classes: int) -> tuple[str, ...]:
    """Return the descriptions of the ImageNet subset of this size from timm's files; none without them."""
    package = importlib.util.find_spec("timm")
    if classes not in _SYNSETS_BY_CLASSES or package is None or package.origin is None:
        return ()
    folder = Path(package.origin).parent / "data" / "_info"
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines if "\t" in line)
    synsets = (folder / _SYNSETS_BY_CLASSES[classes]).read_text(encoding="utf-8").splitlines()
    return tuple(lemmas[synset].strip('"') for synset in synsets)


def read_timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Read what timm's evaluation transform does: `resolve_data_config` and `transforms_imagenet_eval`.

    Raises:
        UnsupportedProcessor: It is not a resize and a centre crop to a fixed size.
    """
    settings = _settings(config)
    height, width = read_image_size(config)
    crop_pct = read_fraction("crop_pct", settings.get("crop_pct") or _CROP_PCT)
    mode = settings.get("crop_mode") or "center"
    scaled = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    if mode == "border":
        raise UnsupportedProcessor("its crop_mode is 'border', which pads with a colour")
    if mode != "squash" and height != width:
        raise UnsupportedProcessor("its input is not square, which is supported with the crop_mode 'squash' only")
    interpolation = settings.get("interpolation") or "bicubic"
    if interpolation not in _FILTERS:
        raise UnsupportedProcessor(f"its interpolation is {interpolation!r}, and not one of {', '.join(_FILTERS)}")
    return Preprocessing(
        size=scaled if mode == "squash" else None,
        shortest_edge=None if mode == "squash" else scaled[0],
        crop=(height, width),
        resample=_FILTERS[interpolation],
        scale=1 / 255,
        mean=read_channels("mean", settings.get("mean") or _MEAN),
        std=read_divisors("std", settings.get("std") or _STD),
        has_rounded_crop=True,
    )


def _input_size(value: Any) -> Size:
    if not isinstance(value, list) or len(value) != 3 or any(type(n) is not int or n < 1 for n in value):
        raise UnsupportedProcessor(f"its input_size is {value!r}, and not [3, height, width]")
    if value[0] != 3:
        raise UnsupportedProcessor(f"it takes images with {value[0]} channels, and the server provides 3")
    return value[1], value[2]


def read_image_size(config: Mapping[str, Any]) -> Size:
    """Return the input's (height, width) in pixels.

    Raises:
        UnsupportedProcessor: It is malformed, or the input has other channels than three.
    """
    return _input_size(_settings(config).get("input_size") or [3, 224, 224])


def check_runnable(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse an architecture that can't be run here.

    Args:
        config: The content of config.json.
        shapes: The shape of each tensor in the weights, by name.

    Raises:
        UnsupportedTimm: It is not a plain ViT, and timm is not installed, or has another number of classes than labels.
    """
    try:
        find_plain_vit(config, shapes)
    except NotPlain as error:
        if all(map(importlib.util.find_spec, ("timm", "torchvision"))):
            return
        reason = f" ({error})" if str(error) else ""
        raise UnsupportedTimm(
            f"its architecture {config['architecture']} needs the package timm{reason}; "
            "install it with `pip install -r requirements-timm.txt`"
        ) from error
    classes, labels = shapes["head.weight"][0], len(read_timm_labels(config))
    if classes != labels:
        raise UnsupportedTimm(f"its weights have {classes} classes, and its config.json {labels}")


def find_plain_vit(config: Mapping[str, Any], shapes: Shapes) -> PlainViT:
    """Return what the tensors of a plain ViT, which runs without timm, do not show.

    Raises:
        NotPlain: It is another model.
    """
    return recognise(config, shapes, read_image_size(config))


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `pretrained_cfg`; files of older versions have its keys at the top."""
    settings = config.get("pretrained_cfg", config)
    if not isinstance(settings, dict):
        raise UnsupportedProcessor("the pretrained_cfg in its config.json is not a JSON object")
    return settings
