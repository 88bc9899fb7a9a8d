"""Image processor files give the settings that transformers would use, or are rejected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from tests.support import samples
from vit_api.checkpoints.preprocessing import Preprocessing, UnsupportedProcessor
from vit_api.checkpoints.processor_file import read_preprocessing
from vit_api.checkpoints.processors import CLASS_BY_MODEL_TYPE, PROCESSORS, REFUSED, Geometry
from vit_api.decoding.images import decode

VIT = {"model_type": "vit"}
PLAIN_CLASSES = sorted(
    name for name, processor in PROCESSORS.items() if processor.geometry is Geometry.PLAIN and not processor.options
)


def as_transformers_reads(class_name: str, processor: dict[str, Any]) -> Preprocessing:
    """Return the settings as transformers resolves them."""
    theirs = getattr(transformers, f"{class_name}Pil")(**processor)
    size = dict(theirs.size)
    return Preprocessing(
        size=(size["height"], size["width"]) if "height" in size else None,
        shortest_edge=size.get("shortest_edge"),
        crop=(theirs.crop_size.height, theirs.crop_size.width) if theirs.do_center_crop else None,
        resample=int(theirs.resample),
        scale=theirs.rescale_factor if theirs.do_rescale else 1.0,
        mean=tuple(theirs.image_mean) if theirs.do_normalize else (0.0, 0.0, 0.0),
        std=tuple(theirs.image_std) if theirs.do_normalize else (1.0, 1.0, 1.0),
        has_white_background=bool(theirs.do_convert_rgb),
    )


@pytest.mark.parametrize("class_name", PLAIN_CLASSES)
def test_absent_keys_have_the_defaults_of_the_class(class_name: str) -> None:
    """An empty file gives the settings of an instance without arguments."""
    ours = read_preprocessing({"image_processor_type": class_name}, VIT)
    assert ours == as_transformers_reads(class_name, {})


@pytest.mark.parametrize("class_name", PLAIN_CLASSES)
@pytest.mark.parametrize(
    "processor",
    [
        pytest.param({"size": 96, "do_center_crop": True, "crop_size": 64}, id="integers"),
        pytest.param({"size": [80, 96]}, id="list"),
        pytest.param(
            {"size": {"shortest_edge": 96}, "do_center_crop": True, "crop_size": [64, 60]}, id="shortest edge"
        ),
        pytest.param({"size": 96, "default_to_square": True}, id="default_to_square"),
        pytest.param({"do_rescale": False, "do_normalize": False}, id="no rescale, no normalise"),
        pytest.param({"rescale_factor": 1 / 127.5, "image_mean": [0.1, 0.2, 0.3], "resample": 1}, id="numbers"),
        pytest.param(
            {"size": [9, 9], "do_center_crop": None, "do_normalize": None, "do_rescale": None, "crop_size": None},
            id="null switches are off",
        ),
        pytest.param({"do_convert_rgb": True}, id="a white background"),
        pytest.param({"do_convert_rgb": False}, id="no white background"),
        pytest.param({"data_format": "channels_first", "do_pad": None}, id="no effect"),
    ],
)
def test_given_keys_mean_what_they_mean_in_transformers(class_name: str, processor: dict[str, Any]) -> None:
    """Each key is read as transformers reads it; an integer size is a square or a shortest edge, by class."""
    ours = read_preprocessing({"image_processor_type": class_name, **processor}, VIT)
    assert ours == as_transformers_reads(class_name, processor)


@pytest.mark.parametrize("kind", samples.PROCESSORS)
def test_real_processors_are_read(kind: str) -> None:
    """Legacy and current files of five model families give 224 x 224 pixels."""
    shape = read_preprocessing(samples.PROCESSORS[kind], {"model_type": kind}).pixel_shape
    assert shape == (224, 224, 3)


@pytest.mark.parametrize("model_type", sorted(CLASS_BY_MODEL_TYPE))
def test_a_file_without_a_class_gets_the_class_of_its_model(model_type: str) -> None:
    """Our table of classes by model type agrees with transformers'."""
    expected = IMAGE_PROCESSOR_MAPPING_NAMES[model_type]["torchvision"]
    assert CLASS_BY_MODEL_TYPE[model_type] == expected


@pytest.mark.parametrize("name", ["DeiTImageProcessor", "DeiTImageProcessorFast", "DeiTImageProcessorPil"])
def test_the_backend_suffix_of_a_class_does_not_matter(name: str) -> None:
    """Files saved by the torchvision backend name another class for the same settings."""
    assert read_preprocessing({"image_processor_type": name}, VIT).crop == (224, 224)


def test_remote_code_of_a_built_in_class_is_ignored() -> None:
    """The built-in class is used, as in transformers without trust_remote_code."""
    remote = {"AutoImageProcessor": "processing.MyProcessor"}
    assert read_preprocessing({"image_processor_type": "ViTImageProcessor", "auto_map": remote}, {}).size == (224, 224)
    assert read_preprocessing({"auto_map": remote}, VIT).size == (224, 224)


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        pytest.param({"image_processor_type": "YolosImageProcessor"}, "YolosImageProcessor", id="other class"),
        pytest.param({"image_processor_type": "ImageGPTImageProcessor"}, "colour clusters", id="known class"),
        pytest.param(
            {"image_processor_type": "ConvNextImageProcessor", "size": [224, 224]}, "shortest_edge only", id="square"
        ),
        pytest.param(
            {"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": None}, "crop_pct", id="null pct"
        ),
        pytest.param(
            {"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0}, "crop_pct is 0", id="no pct"
        ),
        pytest.param(
            {"image_processor_type": "ConvNextImageProcessor", "size": 224, "do_center_crop": True, "crop_size": 99},
            "crops twice",
            id="two crops",
        ),
        pytest.param(
            {"image_processor_type": "PerceiverImageProcessor", "size": 300}, "size / crop_size", id="crop by padding"
        ),
        pytest.param(
            {"image_processor_type": "SegformerImageProcessor", "size": {"shortest_edge": 9}, "do_center_crop": True},
            "without a crop",
            id="a crop that is never done",
        ),
        pytest.param(
            {"image_processor_type": "X", "auto_map": {"AutoImageProcessor": "x.X"}}, "never run", id="remote"
        ),
        pytest.param({"crop_pct": 0.9}, "crop_pct", id="crop_pct"),
        pytest.param({"do_pad": True, "pad_size": {"height": 9, "width": 9}}, "do_pad", id="padding"),
        pytest.param({"do_resize": False}, "do_resize", id="no resize"),
        pytest.param({"size": {"longest_edge": 224}}, "longest_edge", id="longest edge"),
        pytest.param({"size": {"shortest_edge": 224, "longest_edge": 300}}, "longest_edge", id="two edges"),
        pytest.param({"size": {"shortest_edge": 224}}, "without a crop", id="no fixed size"),
        pytest.param({"size": None}, "size is None", id="null as size"),
        pytest.param({"resample": None}, "resample is None", id="null as filter"),
        pytest.param({"image_mean": None}, "image_mean", id="null as mean"),
        pytest.param({"size": "224"}, "size is '224'", id="text as size"),
        pytest.param({"size": {"height": 0, "width": 224}}, "lengths in pixels", id="no height"),
        pytest.param({"size": True}, "lengths in pixels", id="boolean as size"),
        pytest.param({"do_center_crop": True}, "crop_size", id="crop without size"),
        pytest.param({"do_center_crop": True, "crop_size": {"shortest_edge": 9}}, "crop_size", id="crop by edge"),
        pytest.param({"image_mean": [0.5]}, "3 channels", id="one channel"),
        pytest.param({"image_std": [0.5, 0.5, 0]}, "zero", id="zero std"),
        pytest.param({"image_mean": [0.5, "x", 0.5]}, "not a number", id="text as mean"),
        pytest.param({"rescale_factor": float("nan")}, "not a number", id="nan"),
        pytest.param({"rescale_factor": 10**400}, "not a number", id="beyond floats"),
        pytest.param({"resample": 9}, "resample", id="unknown filter"),
        pytest.param({"do_normalize": "yes"}, "do_normalize", id="text as flag"),
    ],
)
def test_unsupported_settings_are_rejected(processor: dict[str, Any], reason: str) -> None:
    """Settings that we can't reproduce are rejected with the reason."""
    with pytest.raises(UnsupportedProcessor, match=reason):
        read_preprocessing(processor, VIT)


def test_an_unknown_model_without_a_class_is_rejected() -> None:
    """Neither file defines the preprocessing."""
    with pytest.raises(UnsupportedProcessor, match="'hgnet_v2'"):
        read_preprocessing({"size": 224}, {"model_type": "hgnet_v2"})


def test_the_refused_classes_are_those_of_other_classifiers() -> None:
    """Each class that transformers has for a classifier is either supported, or rejected with a reason."""
    of_classifiers = {
        classes.get("torchvision", "TimmWrapperImageProcessor")
        for model_type, classes in IMAGE_PROCESSOR_MAPPING_NAMES.items()
        if model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and classes
    }
    assert of_classifiers <= {*PROCESSORS, *REFUSED}
    assert not PROCESSORS.keys() & REFUSED.keys()


_CROPPED = {"do_center_crop": True, "crop_size": {"height": 60, "width": 72}}


@pytest.mark.parametrize("size", [(121, 90), (77, 200), (40, 39), (300, 31)], ids=str)
@pytest.mark.parametrize(
    ("class_name", "file"),
    [
        pytest.param("ConvNextImageProcessor", {"size": 64}, id="convnext"),
        pytest.param("ConvNextImageProcessor", {"size": 65, "crop_pct": 0.95}, id="convnext crop_pct"),
        pytest.param("ConvNextImageProcessor", {"size": 384, "crop_pct": None}, id="convnext large"),
        pytest.param("ConvNextImageProcessor", {"size": 384, **_CROPPED}, id="convnext large cropped"),
        pytest.param("LevitImageProcessor", {"size": 56, "crop_size": 56}, id="levit"),
        pytest.param("LevitImageProcessor", {"size": [70, 80], **_CROPPED}, id="levit size"),
        pytest.param("PoolFormerImageProcessor", {"size": 56, "crop_size": 56}, id="poolformer"),
        pytest.param("PoolFormerImageProcessor", {"size": 80, "crop_pct": None, **_CROPPED}, id="poolformer no pct"),
        pytest.param("PoolFormerImageProcessor", {"size": [60, 60], **_CROPPED}, id="poolformer square"),
        pytest.param("PoolFormerImageProcessor", {"size": [60, 80], **_CROPPED}, id="poolformer size"),
        pytest.param("EfficientNetImageProcessor", {"size": 64, "resample": 0}, id="efficientnet"),
        pytest.param("EfficientNetImageProcessor", {"size": 64, "include_top": False}, id="efficientnet without top"),
        pytest.param(
            "EfficientNetImageProcessor",
            {"size": 64, "rescale_offset": True, "rescale_factor": 1 / 127.5, "image_std": [0.2, 0.3, 0.4]},
            id="efficientnet offset",
        ),
        pytest.param(
            "EfficientNetImageProcessor", {"size": 64, "do_normalize": False}, id="efficientnet without normalising"
        ),
        pytest.param(
            "EfficientNetImageProcessor",
            {"size": 64, "do_rescale": False, "rescale_offset": True, **_CROPPED},
            id="efficientnet without rescaling",
        ),
        pytest.param("MobileViTImageProcessor", {"size": 80, "crop_size": 64}, id="mobilevit"),
        pytest.param("MobileViTImageProcessor", {"size": 40, "crop_size": 64}, id="mobilevit padded"),
        pytest.param(
            "MobileViTImageProcessor", {"size": 80, "do_flip_channel_order": False, **_CROPPED}, id="mobilevit rgb"
        ),
        pytest.param("MobileViTImageProcessor", {"size": 80, "do_normalize": True, **_CROPPED}, id="mobilevit mean"),
        pytest.param("SegformerImageProcessor", {"size": 64, **_CROPPED}, id="segformer"),
        pytest.param("MobileNetV2ImageProcessor", {"size": 80, **_CROPPED}, id="mobilenet"),
        pytest.param("PerceiverImageProcessor", {"size": 56, "crop_size": 64}, id="perceiver"),
        pytest.param("PerceiverImageProcessor", {"size": [40, 60], "crop_size": [64, 72]}, id="perceiver sides"),
        pytest.param("PerceiverImageProcessor", {"size": 56, "do_center_crop": False}, id="perceiver uncropped"),
    ],
)
def test_pixels_are_those_of_the_processor(class_name: str, file: dict[str, Any], size: tuple[int, int]) -> None:
    """Of the classes with steps of their own, from the file to the normalised pixels."""
    photo = samples.photo(size)
    theirs = getattr(transformers, f"{class_name}Pil")(**file)(photo, return_tensors="np")["pixel_values"][0]
    preprocessing = read_preprocessing({"image_processor_type": class_name, **file}, VIT)
    pixels = decode(samples.encode(photo), preprocessing, exact=True)
    ours = (pixels * preprocessing.scale - preprocessing.mean) / preprocessing.std
    ours = ours[..., ::-1] if preprocessing.is_bgr else ours
    np.testing.assert_allclose(np.moveaxis(ours, -1, 0), theirs, atol=1e-4)
    fast = decode(samples.encode(photo), preprocessing, exact=False)
    assert np.abs(fast.astype(int) - pixels).mean() < 1
