"""Photos, image files and tiny checkpoints for the tests, made from data that installed packages contain."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# As in the repositories on the hub, without options that are the class's defaults.
PROCESSORS: dict[str, dict[str, Any]] = {
    # google/vit-base-patch16-224 names no class, so the model_type of config.json decides.
    "vit": {
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": 224,
    },
    # facebook/deit-base-distilled-patch16-224
    "deit": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "DeiTFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 256,
    },
    # microsoft/beit-base-patch16-224
    "beit": {
        "crop_size": 224,
        "do_center_crop": False,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "BeitFeatureExtractor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": 224,
    },
    # microsoft/swin-tiny-patch4-window7-224
    "swin": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 224,
    },
    # facebook/dinov2-small-imagenet1k-1-layer
    "dinov2": {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "BitImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 256},
    },
}

_SMALL_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", _SMALL_VIT),
    "deit": ("DeiTForImageClassificationWithTeacher", _SMALL_VIT),
    "beit": ("BeitForImageClassification", _SMALL_VIT),
    "swin": (
        "SwinForImageClassification",
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32, "patch_size": 4},
    ),
    "dinov2": ("Dinov2ForImageClassification", _SMALL_VIT),
}


@functools.cache
def photos() -> dict[str, Image.Image]:
    """Return RGB photos by name, with sides of about 300 to 640 pixels. Do not modify them in place."""
    sklearn_images = _folder_of("sklearn") / "datasets" / "images"
    skimage_images = _folder_of("skimage") / "data"
    files = [sklearn_images / "china.jpg", sklearn_images / "flower.jpg"]
    files += [skimage_images / name for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]
    loaded = {}
    for file in files:
        with Image.open(file) as image:
            loaded[file.stem] = image.convert("RGB")
    return loaded


def _folder_of(package: str) -> Path:
    """Return a package's folder without importing it: scikit-learn takes a second."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def photo(size: tuple[int, int] = (120, 90), name: str = "china") -> Image.Image:
    """Return a photo scaled to (width, height)."""
    return photos()[name].resize(size, Image.Resampling.LANCZOS)


def encode(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """Save an image to bytes."""
    # PIL stores the JPEG encoder's settings in the images that it saves, so it gets copies.
    if "append_images" in options:
        options["append_images"] = [other.copy() for other in options["append_images"]]
    file = io.BytesIO()
    image.copy().save(file, image_format, **options)
    return file.getvalue()


def orientation_exif(orientation: int) -> Image.Exif:
    """Return EXIF data with an orientation, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@functools.cache
def image_files() -> dict[str, bytes]:
    """Return small image files of every format and mode that can be decoded, by name."""
    rgb = photo()
    rgba = rgb.copy()
    rgba.putalpha(rgb.convert("L"))
    palette = rgb.quantize(64)
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    second = rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    frames = {"save_all": True, "append_images": [second, rgb], "duration": 100}
    return {
        "jpeg": encode(rgb, "JPEG", quality=90),
        "jpeg progressive": encode(rgb, "JPEG", quality=90, progressive=True),
        "jpeg grey": encode(rgb.convert("L"), "JPEG"),
        "jpeg cmyk": encode(rgb.convert("CMYK"), "JPEG"),
        "mpo": encode(rgb, "MPO", save_all=True, append_images=[second]),
        "png": encode(rgb),
        "png rgba": encode(rgba),
        "png la": encode(rgba.convert("LA")),
        "png 1-bit": encode(rgb.convert("1")),
        "png 16-bit": encode(deep),
        "png palette": encode(palette),
        "png palette with a transparent colour": encode(palette, transparency=3),
        "png palette with alpha": encode(palette, transparency=bytes(range(0, 256, 4))),
        "png rgb with a transparent colour": encode(rgb, transparency=rgb.getpixel((0, 0))),
        "png grey with a transparent value": encode(rgb.convert("L"), transparency=128),
        "apng": encode(rgb, **frames),
        "gif": encode(palette, "GIF"),
        "gif transparent": encode(palette, "GIF", transparency=3),
        "gif animated": encode(rgb, "GIF", **frames),
        "webp": encode(rgb, "WEBP", quality=90),
        "webp lossless rgba": encode(rgba, "WEBP", lossless=True),
        "webp animated": encode(rgb, "WEBP", **frames),
        "bmp": encode(rgb, "BMP"),
        "bmp palette": encode(palette, "BMP"),
        "tiff": encode(rgb, "TIFF"),
        "tiff lzw": encode(rgb, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encode(rgb, "TIFF", compression="jpeg"),
        "tiff cmyk": encode(rgb.convert("CMYK"), "TIFF"),
        "tiff 16-bit": encode(deep, "TIFF"),
        "tiff float": encode(rgb.convert("F"), "TIFF"),
        "tiff pages": encode(rgb, "TIFF", save_all=True, append_images=[second]),
        "tiff turned": encode(rgb, "TIFF", exif=orientation_exif(6)),
        "avif": encode(rgb, "AVIF", speed=10),
        "avif rgba": encode(rgba, "AVIF", speed=10),
        "avif turned": encode(rgb, "AVIF", speed=10, exif=orientation_exif(6)),
    }


def small(processor: dict[str, Any]) -> dict[str, Any]:
    """Return the same processor for a model of 32 pixels instead of 224."""
    lengths = {224: 32, 256: 36}

    def shrink(value: Any) -> Any:
        return {key: shrink(edge) for key, edge in value.items()} if isinstance(value, dict) else lengths[value]

    return {key: shrink(value) if key in ("size", "crop_size") else value for key, value in processor.items()}


def make_checkpoint(
    folder: Path, kind: str = "vit", classes: int = 10, layers: int | None = None, **saving: Any
) -> Path:
    """Save a tiny seeded classifier with transformers, and the scaled-down processor of a real one.

    Args:
        folder: The target, which is created.
        kind: A key of PROCESSORS.
        classes: The number of classes, named `class 0` and so on.
        layers: The number of layers, unless it is the kind's own; not for Swin.
        saving: Further arguments of save_pretrained, such as max_shard_size.
    """
    import torch
    import transformers

    architecture, sizes = _MODELS[kind]
    if layers is not None:
        sizes = sizes | {"num_hidden_layers": layers}
    model_class = getattr(transformers, architecture)
    names = {index: f"class {index}" for index in range(classes)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(model_class.config_class(**sizes, id2label=names)).save_pretrained(folder, **saving)
    (folder / "preprocessor_config.json").write_text(json.dumps(small(PROCESSORS[kind])))
    return folder


def sharpen(folder: Path) -> Path:
    """Scale a random model's classifier, so that its probabilities are not all about the same."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("classifier.weight"):
            weights[name] *= 100
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = {**(json.loads(path.read_text()) if path.is_file() else {}), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
