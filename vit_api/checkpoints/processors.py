"""The image processor classes of transformers that are supported: their defaults, and what each does to an image.

A table only; `preprocessing` reads a checkpoint's file by it. docs/models.md lists the classes that are refused.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from vit_api.checkpoints.preprocessing import Channels

_HALF: Channels = (0.5, 0.5, 0.5)
_IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
_IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
_CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
_BILINEAR = 2
_BICUBIC = 3


class Geometry(enum.Enum):
    """How a class resizes and crops."""

    PLAIN = enum.auto()
    """Resize, then centre crop."""
    CONVNEXT = enum.auto()
    """Below 384 pixels: shortest edge to size / crop_pct, then a square crop to size. From 384: resize to a square."""
    LEVIT = enum.auto()
    """The shortest edge is 256/224 of what the file says."""
    POOLFORMER = enum.auto()
    """With crop_pct, the edges of the resize are divided by it."""
    PERCEIVER = enum.auto()
    """Centre crop first, to size / crop_size of the shorter side, then resize."""
    UNCROPPED = enum.auto()
    """Resize only, whatever the file says about a crop."""


@dataclass(frozen=True)
class Processor:
    """A processor class of transformers: the defaults of what its JSON file leaves out, and its steps.

    Attributes:
        size: Default of `size`.
        geometry: How it resizes and crops.
        options: The keys that it has in addition to the common ones, with their defaults.
        ignores_normalisation: Whether it never normalises, whatever the file says.
    """

    size: int | Mapping[str, int]
    resample: int = _BICUBIC
    mean: Channels = _HALF
    std: Channels = _HALF
    crop_size: int | None = None
    do_center_crop: bool = False
    default_to_square: bool = True
    do_convert_rgb: bool = False
    geometry: Geometry = Geometry.PLAIN
    options: Mapping[str, float | bool] | None = None
    ignores_normalisation: bool = False


def _shortest_edge(edge: int) -> dict[str, int]:
    return {"shortest_edge": edge}


_CLIP = Processor(
    size=_shortest_edge(224),
    crop_size=224,
    do_center_crop=True,
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
    default_to_square=False,
    do_convert_rgb=True,
)
_MOBILENET = Processor(
    size=_shortest_edge(256), resample=_BILINEAR, crop_size=224, do_center_crop=True, default_to_square=False
)

# The class attributes in transformers 5.24, models/*/image_processing_pil_*.py; a test compares them.
PROCESSORS = {
    "ViTImageProcessor": Processor(size=224, resample=_BILINEAR),
    "DeiTImageProcessor": Processor(size=256, crop_size=224, do_center_crop=True),
    "BeitImageProcessor": Processor(size=224, crop_size=224),
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "BlipImageProcessor": Processor(size=384, mean=_CLIP_MEAN, std=_CLIP_STD, do_convert_rgb=True),
    "SiglipImageProcessor": Processor(size={"height": 224, "width": 224}, default_to_square=False, do_convert_rgb=True),
    "PvtImageProcessor": Processor(size=224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "MobileNetV1ImageProcessor": _MOBILENET,
    "MobileNetV2ImageProcessor": _MOBILENET,
    "ConvNextImageProcessor": Processor(
        size=_shortest_edge(384),
        default_to_square=False,
        geometry=Geometry.CONVNEXT,
        options={"crop_pct": 224 / 256},
    ),
    "LevitImageProcessor": Processor(
        size=_shortest_edge(224),
        crop_size=224,
        do_center_crop=True,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        default_to_square=False,
        geometry=Geometry.LEVIT,
    ),
    "PoolFormerImageProcessor": Processor(
        size=_shortest_edge(224),
        crop_size=224,
        do_center_crop=True,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        default_to_square=False,
        geometry=Geometry.POOLFORMER,
        options={"crop_pct": 0.9},
    ),
    "EfficientNetImageProcessor": Processor(
        size=346, crop_size=289, options={"rescale_offset": False, "include_top": True}
    ),
    "MobileViTImageProcessor": Processor(
        size=_shortest_edge(224),
        crop_size=256,
        do_center_crop=True,
        default_to_square=False,
        options={"do_flip_channel_order": True},
        ignores_normalisation=True,
    ),
    "SegformerImageProcessor": Processor(
        size=512, resample=_BILINEAR, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, geometry=Geometry.UNCROPPED
    ),
    "PerceiverImageProcessor": Processor(
        size=224,
        crop_size=256,
        do_center_crop=True,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        geometry=Geometry.PERCEIVER,
    ),
}

CLASS_BY_MODEL_TYPE = {
    "beit": "BeitImageProcessor",
    "bit": "BitImageProcessor",
    "clip": "CLIPImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "cvt": "ConvNextImageProcessor",
    "data2vec-vision": "BeitImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "efficientnet": "EfficientNetImageProcessor",
    "focalnet": "BitImageProcessor",
    "hiera": "BitImageProcessor",
    "ijepa": "ViTImageProcessor",
    "levit": "LevitImageProcessor",
    "metaclip_2": "CLIPImageProcessor",
    "mobilenet_v1": "MobileNetV1ImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    "mobilevit": "MobileViTImageProcessor",
    "mobilevitv2": "MobileViTImageProcessor",
    "perceiver": "PerceiverImageProcessor",
    "poolformer": "PoolFormerImageProcessor",
    "pvt": "PvtImageProcessor",
    "pvt_v2": "PvtImageProcessor",
    "regnet": "ConvNextImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "segformer": "SegformerImageProcessor",
    "siglip": "SiglipImageProcessor",
    "swiftformer": "ViTImageProcessor",
    "swin": "ViTImageProcessor",
    "swinv2": "ViTImageProcessor",
    "vit": "ViTImageProcessor",
    "vit_msn": "ViTImageProcessor",
}
"""For files that name no class: the part of transformers' IMAGE_PROCESSOR_MAPPING_NAMES for the classes above."""

REFUSED = {
    "DonutImageProcessor": "resizes twice and pads",
    "ImageGPTImageProcessor": "turns pixels into a sequence of colour clusters",
    "Siglip2ImageProcessor": "cuts each image into a number of patches that depends on its shape",
    "TextNetImageProcessor": "rounds the sides to a multiple of a number without a crop, so sizes would differ",
    "Gemma3ImageProcessor": "is for a language model that needs a prompt",
    "TimmWrapperImageProcessor": "is read from a config.json in the format of timm, which this one is not",
    "PPLCNetImageProcessor": "needs torchvision and has no equivalent in Pillow",
}
"""Processor classes of image classifiers that are not supported, with the rest of the sentence that says why."""
