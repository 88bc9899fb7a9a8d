"""Train the small Vision Transformer for digits that the server ships; write its folder and the example images."""

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel
from transformers import ViTConfig, ViTForImageClassification

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
IMAGE_SIZE = 32
PATCH_SIZE = 8
INIT_RANGE = 0.1
EPOCHS = 320
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARMUP_SHARE = 0.05
RAMP_SHARE = 0.3
AUGMENTED_SHARE = 0.9
LABEL_SMOOTHING = 0.05
EMA_DECAY = 0.998
EXAMPLE_DIGITS = (3, 7)
EXAMPLE_SIZE = (256, 256)

Scans = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


class Split(NamedTuple):
    """The scans (n, 8, 8) with values 0..16 and their digits, split into a training and a held-out set."""

    train_scans: Scans
    held_out_scans: Scans
    train_labels: Labels
    held_out_labels: Labels


def load_split() -> Split:
    """Return scikit-learn's digits, with the same stratified fifth held out on every call."""
    digits = load_digits()
    return Split(
        *train_test_split(digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=SEED)
    )


def scan_to_image(scan: Scans) -> Image.Image:
    """Return a scan as an image: dark ink on white paper, one pixel per scan value."""
    return Image.fromarray((255 - np.round(scan * 255 / 16)).astype(np.uint8), mode="L")


def image_to_pixels(image: Image.Image) -> Tensor:
    """Return an image as the model's input (3, 32, 32), exactly as the server does."""
    resized = image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    array = np.asarray(resized, dtype=np.float32) / np.float32(255)
    return torch.from_numpy((array - np.float32(0.5)) / np.float32(0.5)).permute(2, 0, 1).contiguous()


def scans_to_pixels(scans: Scans) -> Tensor:
    """Return a stack of scans as the model's input (n, 3, 32, 32)."""
    return torch.stack([image_to_pixels(scan_to_image(scan)) for scan in scans])


def build_model() -> Any:
    """Return the untrained classifier."""
    names = {index: str(index) for index in range(10)}
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        encoder_stride=PATCH_SIZE,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        initializer_range=INIT_RANGE,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    return ViTForImageClassification(config)


def uniform(count: int, low: float, high: float) -> Tensor:
    """Return one random value per image, shaped to broadcast over (n, 1, height, width)."""
    return torch.empty(count, 1, 1, 1).uniform_(low, high)


def chance(count: int, share: float) -> Tensor:
    """Return a mask that has each image with the given probability, shaped to broadcast over (n, 1, height, width)."""
    return torch.rand(count, 1, 1, 1) < share


def warp(ink: Tensor) -> Tensor:
    """Shift, rotate, scale and shear each image; the area outside it is blank paper."""
    count = len(ink)
    angle, shear = uniform(count, -0.22, 0.22), uniform(count, -0.2, 0.2)
    # The grid maps output to input, so a factor above one shrinks the digit: users leave margins, the scans do not.
    scale, stretch = torch.exp(uniform(count, -0.1, 0.45)), torch.exp(uniform(count, -0.1, 0.1))
    wide, high = scale * stretch, scale / stretch
    # A small digit has more room to be off-centre than one that fills the image.
    room = 0.12 + (scale - 1).clamp(min=0) * 0.6
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.cat([wide * cos, wide * (shear * cos - sin), room * uniform(count, -1, 1)], dim=-1)
    row_y = torch.cat([high * sin, high * (shear * sin + cos), room * uniform(count, -1, 1)], dim=-1)
    grid = F.affine_grid(torch.cat([row_x, row_y], dim=2).squeeze(1), list(ink.shape), align_corners=False)
    return F.grid_sample(ink, grid, align_corners=False)


def restroke(ink: Tensor) -> Tensor:
    """Make some images look drawn at a higher resolution: crisp edges, thinner or thicker strokes, or blur."""
    count = len(ink)
    # A steep curve turns the soft scan into a crisp stroke, and its threshold decides how thick that stroke is.
    crisp = torch.sigmoid((ink - uniform(count, 0.25, 0.65)) * uniform(count, 8, 24))
    ink = torch.where(chance(count, 0.4), crisp, ink)
    thick = F.max_pool2d(ink, 3, stride=1, padding=1)
    ink = torch.where(chance(count, 0.15), torch.lerp(ink, thick, uniform(count, 0, 1)), ink)
    soft = F.avg_pool2d(ink, 3, stride=1, padding=1)
    return torch.where(chance(count, 0.4), torch.lerp(ink, soft, uniform(count, 0, 1)), ink)


def colour(ink: Tensor) -> Tensor:
    """Paint ink (n, 1, h, w) with random pens on random papers, some light on dark, as pixels from -1 to 1."""
    count = len(ink)
    vivid = chance(count, 0.5)
    paper = torch.where(vivid, 1 - 0.4 * torch.rand(count, 3, 1, 1) * uniform(count, 0, 1), 1.0)
    pen = torch.where(vivid, 0.5 * torch.rand(count, 3, 1, 1) * uniform(count, 0, 1), 0.0)
    swap = chance(count, 0.3)
    paper, pen = torch.where(swap, pen, paper), torch.where(swap, paper, pen)
    painted = paper + ink * (pen - paper)
    grain = torch.randn_like(painted) * uniform(count, 0, 0.06) * chance(count, 0.5)
    return (painted + grain).clamp(0, 1) * 2 - 1


def augment(pixels: Tensor, share: float = 1.0) -> Tensor:
    """Vary the given share of a batch of training images at random."""
    ink = (1 - pixels[:, :1]) / 2
    # Hard 8x8 blocks are how an enlarged pixel drawing arrives.
    blocks = F.interpolate(F.avg_pool2d(ink, IMAGE_SIZE // 8), scale_factor=IMAGE_SIZE // 8)
    varied = colour(restroke(warp(torch.where(chance(len(ink), 0.1), blocks, ink))))
    return torch.where(chance(len(ink), share), varied, pixels)


def train(pixels: Tensor, labels: Tensor, epochs: int) -> Any:
    """Train for a fixed number of epochs; return the model with its averaged weights."""
    torch.manual_seed(SEED)
    model = build_model().train()
    average = AveragedModel(model, avg_fn=lambda old, new, _: torch.lerp(old, new, 1 - EMA_DECAY))
    batches = math.ceil(len(labels) / BATCH_SIZE)
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, epochs * batches, pct_start=WARMUP_SHARE, cycle_momentum=False)
    for epoch in range(epochs):
        # Easy images first: a transformer this small stalls for long when every image is varied from the start.
        share = AUGMENTED_SHARE * min(1.0, epoch / (epochs * RAMP_SHARE))
        for batch in torch.randperm(len(labels)).chunk(batches):
            logits = model(pixel_values=augment(pixels[batch], share)).logits
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
        if (epoch + 1) % 20 == 0:
            print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    return average.module.eval()


@torch.inference_mode()
def probabilities(model: Any, pixels: Tensor) -> Tensor:
    """Classify images in the model's dtype; return the class probabilities in float32."""
    logits: Tensor = model(pixel_values=pixels.to(model.dtype)).logits
    return logits.float().softmax(dim=-1)


def measure(model: Any, split: Split) -> list[tuple[str, int]]:
    """Return the number of correctly classified held-out scans, by the name of the condition."""
    dark, light = scans_to_pixels(split.held_out_scans), scans_to_pixels(16 - split.held_out_scans)
    half = copy.deepcopy(model).to(torch.bfloat16)
    light_name = "light ink on dark paper"
    trials = [("float32", model, dark), ("bfloat16", half, dark)]
    trials += [(f"float32, {light_name}", model, light), (f"bfloat16, {light_name}", half, light)]
    labels = torch.from_numpy(split.held_out_labels)
    return [(name, int((probabilities(tried, x).argmax(dim=-1) == labels).sum())) for name, tried, x in trials]


def write_examples(model: Any, split: Split, folder: Path) -> None:
    """Write the most confidently classified held-out scan of each example digit, enlarged."""
    folder.mkdir(parents=True, exist_ok=True)
    for digit in EXAMPLE_DIGITS:
        scans = split.held_out_scans[split.held_out_labels == digit]
        images = [scan_to_image(scan).resize(EXAMPLE_SIZE, Image.Resampling.BILINEAR) for scan in scans]
        scores = probabilities(model, torch.stack([image_to_pixels(image) for image in images]))[:, digit]
        images[int(scores.argmax())].save(folder / f"digit-{digit}.png", optimize=True)
        print(f"example digit-{digit}.png: probability {float(scores.max()):.4f}")


def write_checkpoint(model: Any, card: str, folder: Path) -> None:
    """Write the folder that the server loads: configuration, weights, preprocessing and model card."""
    model.save_pretrained(folder)
    # The weights are saved readable by their owner only, but the server may run as another user.
    (folder / "model.safetensors").chmod(0o644)
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": int(Image.Resampling.BILINEAR),
        "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


CARD = """\
---
library_name: transformers
pipeline_tag: image-classification
tags: [vision-transformer, handwritten-digits]
metrics: [accuracy]
---

# Digits

A small Vision Transformer ({parameters:,} parameters) that names the handwritten digit, 0 to 9, in an image.

## Data

The {total:,} scans of 8x8 pixels in scikit-learn's `load_digits`, a part of "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, <https://doi.org/10.24432/C50P49>, CC BY 4.0). A stratified
fifth ({held_out} scans) was held out; the other {trained:,} scans were used for training.

## Training

{epochs} epochs from scratch with AdamW, warm-up and cosine decay, label smoothing and averaged weights. The images were
varied at random: shift, rotation, scale, shear, stroke width, blur, blocks, colour, noise and light ink on dark paper.
The epochs were fixed beforehand, and the held-out scans had no part in choosing the weights. To train it again, install
the development requirements and run `python scripts/train_digits.py`.

## Held-out accuracy

| Condition | Right | Accuracy |
|---|---|---|
{rows}

Each scan was classified as an upload is: one image pixel per scan value (dark ink on white paper unless stated), made
RGB, resized to 32x32 (bilinear) and normalised with mean 0.5 and standard deviation 0.5.

## Limits

- It always answers with a digit, even for an image that shows none, or several.
- The digit should fill most of the image; one in a corner of a large page is too small once the page is resized.
- The split is by scan and not by writer, so the held-out scans are from people whose other digits were trained on.
  Accuracy on new writers, photographs and drawings was not measured.
"""


def fill_card(results: list[tuple[str, int]], split: Split, parameters: int, epochs: int) -> str:
    """Return the model card with the figures of this run."""
    trained, held_out = len(split.train_labels), len(split.held_out_labels)
    return CARD.format(
        parameters=parameters,
        total=trained + held_out,
        held_out=held_out,
        trained=trained,
        epochs=epochs,
        rows="\n".join(f"| {name} | {right} of {held_out} | {right / held_out:.2%} |" for name, right in results),
    )


def main() -> None:
    """Train and measure the model; write the checkpoint folder and the examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "vit_api" / "checkpoints" / "digits")
    parser.add_argument("--examples", type=Path, default=ROOT / "examples")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    # One thread always sums in the same order, so a run is reproducible; so small a model gains little from more.
    torch.set_num_threads(1)
    split = load_split()
    started = time.perf_counter()
    model = train(scans_to_pixels(split.train_scans), torch.from_numpy(split.train_labels), options.epochs)
    print(f"trained {model.num_parameters():,} parameters in {time.perf_counter() - started:.0f} s")
    results = measure(model, split)
    print("\n".join(f"{name}: {right} of {len(split.held_out_labels)} held-out correct" for name, right in results))
    write_checkpoint(model, fill_card(results, split, model.num_parameters(), options.epochs), options.checkpoint)
    write_examples(model, split, options.examples)


if __name__ == "__main__":
    main()
