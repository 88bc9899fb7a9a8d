"""From a folder of images to a model that the server can run, with thresholds: a script to start from.

    python examples/first_model.py photos --out my-model

`photos` has a folder for each label, with its images. All layers of the base model stay as they are but the last, a
linear classifier, which is trained on the features of the others (linear probing): minutes on a CPU, a few dozen images
per label. A fifth of the images is held out: for the accuracy that is printed, and for the thresholds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, logging

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_BATCH = 32
_STEPS = 300
_HELD_OUT = 5
"""One image in so many is held out."""

Labelled = tuple[Path, int]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, and write the model's folder."""
    options = _options(arguments)
    logging.set_verbosity_error()  # otherwise a table says that the last layer is new, which is the point
    logging.disable_progress_bar()
    labels, images = find_images(options.images)
    random.Random(0).shuffle(images)
    held_out, training = images[::_HELD_OUT], [one for n, one in enumerate(images) if n % _HELD_OUT]
    processor = AutoImageProcessor.from_pretrained(options.base, revision=options.revision)
    model = AutoModelForImageClassification.from_pretrained(
        options.base,
        revision=options.revision,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
    ).eval()
    print(f"{len(training)} images of {len(labels)} labels to train on, {len(held_out)} held out.")
    train(model.classifier, *features(model, processor, training))
    found, expected = features(model, processor, held_out)
    with torch.no_grad():
        probabilities = model.classifier(found).softmax(-1)
    right = (probabilities.argmax(-1) == expected).float().mean().item()
    print(f"Accuracy on the images that were held out: {right:.1%}.")
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    thresholds = {
        label: threshold(probabilities[:, number], expected == number, options.precision)
        for number, label in enumerate(labels)
    }
    (options.out / "thresholds.json").write_text(json.dumps(thresholds, indent=1) + "\n")
    print(f"Wrote {options.out}, with thresholds of {options.precision:.0%} precision in thresholds.json.")


def find_images(folder: Path) -> tuple[list[str], list[Labelled]]:
    """Return the labels, and each image with the number of its label."""
    labels = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    images = [
        (path, number)
        for number, label in enumerate(labels)
        for path in sorted((folder / label).rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    if len({number for _, number in images}) < 2 or len(images) < 2 * _HELD_OUT:
        sys.exit(f"error: {folder} needs a folder for each of two labels or more, with {2 * _HELD_OUT} images in all.")
    return labels, images


@torch.no_grad()
def features(model: Any, processor: Any, images: Sequence[Labelled]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the classifier of the model gets for each image, float [images, features], and the labels."""
    inputs: list[torch.Tensor] = []
    hook = model.classifier.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    for start in range(0, len(images), _BATCH):
        pictures = [Image.open(path).convert("RGB") for path, _ in images[start : start + _BATCH]]
        model(**processor(images=pictures, return_tensors="pt"))
    hook.remove()
    return torch.cat(inputs), torch.tensor([number for _, number in images])


def train(classifier: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Train the last layer; labels with few images weigh as much as those with many."""
    torch.manual_seed(0)
    counts = labels.bincount().clamp(min=1)
    loss = torch.nn.CrossEntropyLoss(weight=counts.sum() / counts / len(counts), label_smoothing=0.05)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss(classifier(inputs), labels).backward()
        optimizer.step()


def threshold(probabilities: torch.Tensor, is_label: torch.Tensor, precision: float) -> float:
    """Return the lowest threshold at which this share of the flagged images has the label; 1 if there is none.

    Args:
        probabilities: Of the label, float [images].
        is_label: Whether the image has it, bool [images].
        precision: The share, 0 to 1.
    """
    order = probabilities.argsort(descending=True)
    shares = is_label[order].float().cumsum(0) / torch.arange(1, len(order) + 1)
    enough = (shares >= precision).nonzero()
    return round(float(probabilities[order[enough[-1]]]) - 5e-5, 4) if len(enough) else 1.0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("images", type=Path, help="folder with a folder of images for each label")
    add("--out", type=Path, required=True, help="folder of the new model")
    add("--base", default="google/vit-base-patch16-224", help="hub id or folder of a ViT (default: %(default)s)")
    add("--revision", help="commit of a base on the hub; use one to repeat a training")
    add("--precision", type=float, default=0.95, help="share of flagged images that have the label (default: 0.95)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
