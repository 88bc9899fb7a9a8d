"""Image processor files give the settings that transformers would use, or are rejected."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from tests.support import samples
from vit_api.checkpoints import preprocessing
from vit_api.checkpoints.preprocessing import Preprocessing, UnsupportedProcessor, read_preprocessing

VIT = {"model_type": "vit"}
KNOWN_CLASSES = sorted(preprocessing._CLASSES)


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


@pytest.mark.parametrize("class_name", KNOWN_CLASSES)
def test_absent_keys_have_the_defaults_of_the_class(class_name: str) -> None:
    """An empty file gives the settings of an instance without arguments."""
    ours = read_preprocessing({"image_processor_type": class_name}, VIT)
    assert ours == as_transformers_reads(class_name, {})


@pytest.mark.parametrize("class_name", KNOWN_CLASSES)
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


@pytest.mark.parametrize("model_type", sorted(preprocessing._CLASS_BY_MODEL_TYPE))
def test_a_file_without_a_class_gets_the_class_of_its_model(model_type: str) -> None:
    """Our table of classes by model type agrees with transformers'."""
    expected = IMAGE_PROCESSOR_MAPPING_NAMES[model_type]["torchvision"]
    assert preprocessing._CLASS_BY_MODEL_TYPE[model_type] == expected


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
        pytest.param({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor", id="other class"),
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
    with pytest.raises(UnsupportedProcessor, match="'resnet'"):
        read_preprocessing({"size": 224}, {"model_type": "resnet"})
