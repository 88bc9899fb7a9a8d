"""Loads a checkpoint's network in the first of several dtypes that represents it well enough.

A ViT is run by our own network; every other architecture is transformers'. Must not know engines or batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vit_api.model.plain_vit import load_plain_vit, read_config, read_plain_vit
from vit_api.model.vit_network import ImageClassifier
from vit_api.model.vit_weights import load_vit, read_vit_config

logger = logging.getLogger(__name__)

_MAX_DIFFERENCE = 0.01
"""Maximum difference of a probability from float32's: half of what the accuracy gate of benchmarks.accuracy allows."""
_NOISE_IMAGES = 3
_SMOOTH_SIDE = 4


def read_width(path: Path) -> int:
    """Return the hidden size of the network in a checkpoint's folder, or 0 if it has several or none."""
    plain = read_plain_vit(path)
    config = read_vit_config(path) if plain is None else read_config(path, plain)
    if config is not None:
        return config.hidden_size
    from vit_api.model import transformers_network

    width = getattr(transformers_network.read_config(path), "hidden_size", 0)
    return width if isinstance(width, int) else 0


def load_network(
    path: Path,
    dtypes: Sequence[torch.dtype],
    pixel_shape: tuple[int, int, int],
    scale: Tensor,
    shift: Tensor,
    *,
    sigmoid: bool = False,
) -> ImageClassifier:
    """Load an image classifier from safetensors, with our own code or transformers', never the checkpoint's.

    With several dtypes, its probabilities for a few synthetic images are compared with those in float32. The last dtype
    is used unchecked.

    Args:
        path: The checkpoint's folder.
        dtypes: The dtypes to try, in order of preference.
        pixel_shape: (height, width, 3) of an image.
        scale: float32 [3, 1, 1] on the device to load it on; a normalised pixel is `pixel * scale + shift`.
        shift: float32 [3, 1, 1] on the device.
        sigmoid: Whether its probabilities are sigmoids, and not a softmax: that of a single class is always 1.
    """
    device = scale.device
    *checked, last = dtypes
    if checked:
        inputs = _synthetic_images(pixel_shape).to(device) * scale + shift
        expected = _probabilities(_load(path, torch.float32, device), inputs, sigmoid=sigmoid)
    for dtype in checked:
        network = _load(path, dtype, device)
        difference = float((_probabilities(network, inputs, sigmoid=sigmoid) - expected).abs().max())
        if difference <= _MAX_DIFFERENCE:
            return network
        logger.warning(
            "In %s, probabilities of synthetic images differ by %.2g from float32's (maximum %g); using another dtype.",
            dtype,
            difference,
            _MAX_DIFFERENCE,
        )
    return _load(path, last, device)


def _load(path: Path, dtype: torch.dtype, device: torch.device) -> ImageClassifier:
    plain = read_plain_vit(path)
    if plain is not None:
        return load_plain_vit(path, plain, dtype, device)
    network = load_vit(path, dtype, device)
    if network is not None:
        return network
    from vit_api.model.transformers_network import load_classifier

    classifier: ImageClassifier = load_classifier(path, dtype, device)
    return classifier


def _synthetic_images(pixel_shape: tuple[int, int, int]) -> Tensor:
    """Return black, white, noise and large patches: float32 [images, 3, height, width], from 0 to 255."""
    height, width, _ = pixel_shape
    generator = torch.Generator().manual_seed(0)

    def noise(height: int, width: int) -> Tensor:
        return torch.randint(0, 256, (_NOISE_IMAGES, 3, height, width), generator=generator).float()

    plain = torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, height, width)
    smooth = torch.nn.functional.interpolate(noise(_SMOOTH_SIDE, _SMOOTH_SIDE), (height, width))
    return torch.cat([plain, noise(height, width), smooth])


@torch.inference_mode()
def _probabilities(network: ImageClassifier, inputs: Tensor, *, sigmoid: bool) -> Tensor:
    """Return float32 probabilities [images, classes]; NaN where a logit is infinite."""
    logits = network(pixel_values=inputs.to(network.dtype)).logits
    return logits.float().sigmoid() if sigmoid else logits.float().softmax(dim=-1)
