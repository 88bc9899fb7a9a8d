"""A small seeded classifier of each family of transformers that is served, with a published checkpoint's processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.samples import PROCESSORS, photos

CLASSES = 12

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_CONVNEXT_224 = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    **_IMAGENET,
    "resample": 3,
    "size": 224,
}
_BIT_224 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    **_IMAGENET,
    "image_processor_type": "BitImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
_VIT_224 = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    **_IMAGENET,
    "image_processor_type": "ViTImageProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
_PVT_224 = _VIT_224 | {"image_processor_type": "PvtImageProcessor"}
_CLIP_224 = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    **_CLIP,
    "resample": 3,
    "size": 224,
}
_MOBILEVIT = {
    "crop_size": {"height": 256, "width": 256},
    "do_center_crop": True,
    "do_flip_channel_order": True,
    "do_resize": True,
    "feature_extractor_type": "MobileViTFeatureExtractor",
    "resample": 2,
    "size": {"shortest_edge": 288},
}
_PERCEIVER = {
    "crop_size": 256,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "PerceiverFeatureExtractor",
    **_IMAGENET,
    "resample": 3,
    "size": 224,
}

_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_PATCHES = {**_VIT, "image_size": 224, "patch_size": 32}
_SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 7, "image_size": 224, "patch_size": 8}
_STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
_VISION_TOWER = {"vision_config": {**_PATCHES}}
_PYRAMID = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
}
_PERCEIVER_SIZES = {
    "num_latents": 8,
    "d_latents": 32,
    "num_blocks": 1,
    "num_self_attends_per_block": 1,
    "num_cross_attention_heads": 1,
}


class Family(NamedTuple):
    """A family of classifiers.

    Attributes:
        architecture: The class in transformers.
        sizes: Arguments of its configuration that make it small.
        processor: preprocessor_config.json of a checkpoint on the hub, that of `source`.
        source: The checkpoint's id.
    """

    architecture: str
    sizes: Mapping[str, Any]
    processor: Mapping[str, Any]
    source: str


FAMILIES = {
    "beit": Family("Beit", _PATCHES, PROCESSORS["beit"], "microsoft/beit-base-patch16-224"),
    "bit": Family(
        "Bit",
        {"hidden_sizes": [16, 32], "depths": [1, 1], "embedding_size": 16, "num_groups": 4},
        _BIT_224
        | {"crop_size": {"height": 448, "width": 448}, "size": {"shortest_edge": 448}, "do_convert_rgb": None}
        | _HALF,
        "google/bit-50",
    ),
    "clip": Family("CLIP", _VISION_TOWER, _CLIP_224, "openai/clip-vit-base-patch32"),
    "convnext": Family("ConvNext", _STAGES, _CONVNEXT_224, "facebook/convnext-tiny-224"),
    "convnext-384": Family(
        "ConvNext", _STAGES, _CONVNEXT_224 | {"size": 384, "crop_pct": 1.0}, "facebook/convnext-base-384"
    ),
    "convnextv2": Family(
        "ConvNextV2",
        _STAGES,
        {
            "crop_pct": 0.875,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            **_IMAGENET,
            "image_processor_type": "ConvNextImageProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 224},
        },
        "facebook/convnextv2-tiny-1k-224",
    ),
    "cvt": Family(
        "Cvt",
        {"embed_dim": [8, 16, 32], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
        _CONVNEXT_224,
        "microsoft/cvt-13",
    ),
    "data2vec-vision": Family(
        "Data2VecVision",
        _PATCHES,
        PROCESSORS["beit"] | {"do_center_crop": False},
        "facebook/data2vec-vision-base-ft1k",
    ),
    "deit": Family("DeiT", _PATCHES, PROCESSORS["deit"], "facebook/deit-base-patch16-224"),
    "dinov2": Family("Dinov2", _PATCHES, PROCESSORS["dinov2"], "facebook/dinov2-small-imagenet1k-1-layer"),
    "dinov2_with_registers": Family(
        "Dinov2WithRegisters", _PATCHES, _BIT_224, "facebook/dinov2-with-registers-small-imagenet1k-1-layer"
    ),
    "efficientnet": Family(
        "EfficientNet",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
        {
            "crop_size": {"height": 289, "width": 289},
            "do_center_crop": False,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "EfficientNetImageProcessor",
            "image_std": [0.47853944, 0.4732864, 0.47434163],
            "include_top": True,
            "resample": 0,
            "rescale_factor": 0.00392156862745098,
            "rescale_offset": False,
            "size": {"height": 224, "width": 224},
        },
        "google/efficientnet-b0",
    ),
    "focalnet": Family(
        "FocalNet",
        {"embed_dim": 8, "depths": [1, 1], "hidden_sizes": [8, 16], "focal_levels": [1, 1], "focal_windows": [3, 3]},
        _BIT_224 | {"size": {"shortest_edge": 256}},
        "microsoft/focalnet-tiny",
    ),
    "hgnet_v2": Family(
        "HGNetV2",
        {
            "embedding_size": 8,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 16],
            "stage_mid_channels": [8, 8],
            "stage_out_channels": [16, 32],
            "stage_num_blocks": [1, 1],
            "stage_downsample": [False, True],
            "stage_light_block": [False, False],
            "stage_kernel_size": [3, 3],
            "stage_numb_of_layers": [1, 1],
        },
        _BIT_224,
        "",
    ),
    "hiera": Family(
        "Hiera",
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
        _BIT_224,
        "facebook/hiera-tiny-224-in1k-hf",
    ),
    "ijepa": Family("IJepa", _PATCHES, _VIT_224 | {"do_convert_rgb": None}, "facebook/ijepa_vith14_1k"),
    "levit": Family(
        "Levit",
        {
            "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [1, 2, 3],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        {
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "LevitFeatureExtractor",
            **_IMAGENET,
            "resample": 3,
            "size": 224,
        },
        "facebook/levit-128S",
    ),
    "metaclip_2": Family("MetaClip2", _VISION_TOWER, _CLIP_224, "facebook/metaclip-2-worldwide-huge-quickgelu"),
    "mobilenet_v1": Family(
        "MobileNetV1",
        {"depth_multiplier": 0.25},
        {
            "crop_size": {"height": 192, "width": 192},
            "do_center_crop": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "feature_extractor_type": "MobileNetV1FeatureExtractor",
            **_HALF,
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 220},
        },
        "google/mobilenet_v1_0.75_192",
    ),
    "mobilenet_v2": Family(
        "MobileNetV2",
        {"depth_multiplier": 0.25},
        {
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "MobileNetV2ImageProcessor",
            **_HALF,
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 256},
        },
        "google/mobilenet_v2_1.0_224",
    ),
    "mobilevit": Family(
        "MobileViT",
        {
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [4, 8, 8, 8, 8, 8, 16],
            "num_attention_heads": 2,
            "image_size": 256,
        },
        _MOBILEVIT,
        "apple/mobilevit-small",
    ),
    "mobilevitv2": Family(
        "MobileViTV2",
        {"width_multiplier": 0.25, "image_size": 256},
        {name: value for name, value in _MOBILEVIT.items() if name != "feature_extractor_type"}
        | {"image_processor_type": "MobileViTImageProcessor", "do_rescale": True},
        "apple/mobilevitv2-1.0-imagenet1k-256",
    ),
    # The other two Perceivers differ in the model, not in the processor, and take minutes on a CPU.
    "perceiver": Family(
        "Perceiver:ConvProcessing",
        {**_PERCEIVER_SIZES, "image_size": 224},
        _PERCEIVER,
        "deepmind/vision-perceiver-conv",
    ),
    "poolformer": Family(
        "PoolFormer",
        _STAGES,
        {
            "crop_pct": 0.9,
            "do_normalize": True,
            "do_resize_and_center_crop": True,
            "feature_extractor_type": "PoolFormerFeatureExtractor",
            **_IMAGENET,
            "resample": 3,
            "size": 224,
        },
        "sail/poolformer_s12",
    ),
    "pvt": Family("Pvt", {**_PYRAMID, "image_size": 224}, _PVT_224, "Zetatech/pvt-tiny-224"),
    "pvt_v2": Family("PvtV2", {**_PYRAMID, "image_size": 224}, _PVT_224, "OpenGVLab/pvt_v2_b0"),
    "regnet": Family(
        "RegNet", {"embedding_size": 8, **_STAGES, "groups_width": 8}, _CONVNEXT_224, "facebook/regnet-y-040"
    ),
    "resnet": Family("ResNet", {"embedding_size": 8, **_STAGES}, _CONVNEXT_224, "microsoft/resnet-50"),
    "segformer": Family(
        "Segformer",
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
        {
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "SegformerFeatureExtractor",
            **_IMAGENET,
            "reduce_labels": False,
            "resample": 2,
            "size": 512,
        },
        "nvidia/mit-b0",
    ),
    "siglip": Family(
        "Siglip",
        _VISION_TOWER,
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            **_HALF,
            "image_processor_type": "SiglipImageProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 224, "width": 224},
        },
        "google/siglip-base-patch16-224",
    ),
    "swiftformer": Family(
        "SwiftFormer",
        {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
        _VIT_224,
        "MBZUAI/swiftformer-xs",
    ),
    "swin": Family("Swin", _SWIN, PROCESSORS["swin"], "microsoft/swin-tiny-patch4-window7-224"),
    "swinv2": Family(
        "Swinv2",
        _SWIN | {"window_size": 8, "image_size": 256},
        _VIT_224 | {"resample": 3, "size": {"height": 256, "width": 256}},
        "microsoft/swinv2-tiny-patch4-window8-256",
    ),
    "vit": Family("ViT", _PATCHES, PROCESSORS["vit"], "google/vit-base-patch16-224"),
    "vit_msn": Family("ViTMSN", _PATCHES, _VIT_224, "facebook/vit-msn-small"),
}


def make_classifier(folder: Path, family: str, **config: Any) -> Path:
    """Save a small classifier whose answers differ from photo to photo.

    Args:
        folder: Where to; it is made.
        family: A key of FAMILIES.
        config: What else goes to its configuration, such as `problem_type`.
    """
    import torch
    import transformers

    architecture, sizes, processor, _ = FAMILIES[family]
    prefix, _, suffix = architecture.partition(":")
    model_class = getattr(transformers, f"{prefix}ForImageClassification{suffix}")
    names = {index: f"class {index}" for index in range(config.pop("classes", CLASSES))}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**sizes, num_labels=len(names), id2label=names, **config)).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({k: v for k, v in processor.items() if v is not None}))
    _spread(model, transformers.AutoImageProcessor.from_pretrained(folder), len(names))
    model.save_pretrained(folder)
    return folder


def _spread(model: Any, processor: Any, classes: int) -> None:
    """Make the logits differ between photos, which those of random weights hardly do.

    Batch norms get the statistics of the photos, and the last layer is scaled and shifted.
    """
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    last = [m for m in model.modules() if getattr(m, "out_features", None) == classes and m.weight.shape[0] == classes]
    with torch.inference_mode():
        inputs = processor(images=list(photos().values()), return_tensors="pt")
        for norm in norms:
            norm.train().momentum = 1.0
        model(**inputs)
        for norm in norms:
            norm.eval()
        logits = model(**inputs).logits
        scale = 2 / logits.std(dim=0).mean()
        for layer in last:
            layer.weight.mul_(scale)
            if layer.bias is not None:
                layer.bias.mul_(scale).sub_(scale * logits.mean(dim=0))
