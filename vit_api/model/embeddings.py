"""The embedding of an image: what the classifier's last layer reads, scaled to length 1.

For a ViT this is the class token of transformers' `last_hidden_state`, for a convolutional network its `pooler_output`.
Must not know devices, batching or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_api.ipc.records import MAX_EMBEDDING

_TOLERANCE = 1e-3


def normalise(features: Tensor) -> Tensor:
    """Return features [batch, dimensions] of any dtype in float32, each image's of length 1."""
    return F.normalize(features.float(), dim=-1)


class Head:
    """Read what the last layer of a classifier gets, during its forward pass.

    Args:
        module: The layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def run(self, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Run a forward pass; return the features [batch, dimensions], and the logits."""
        seen: list[Tensor] = []
        hook = self._module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = forward()
        finally:
            hook.remove()
        return seen[0].flatten(1), logits


def find_head(network: nn.Module, forward: Callable[[], Tensor]) -> Head | None:
    """Return the last layer of a classifier: the linear one, or 1x1 convolution, that returns its logits.

    Of a classifier with several such layers, as a distilled DeiT, whose logits are their average, it is the first.

    Args:
        network: The classifier.
        forward: Runs it on a batch and returns its logits [batch, classes].

    Returns:
        None if there is none, or its input is not one vector for each image.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, inputs[0], output))

    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        logits = forward()
    finally:
        for hook in hooks:
            hook.remove()
    shaped = [(module, x, y) for module, x, y in calls if y.numel() == logits.numel() and y.shape[0] == logits.shape[0]]
    same = [call for call in shaped if _is_close(call[2].flatten(1), logits)]
    named = [name for name, _ in network.named_modules() if "classifier" in name or "head" in name]
    of_head = [call for call in shaped if any(network.get_submodule(name) is call[0] for name in named)]
    for module, x, _ in [*reversed(same), *of_head]:
        dimensions = x[0].numel()
        if dimensions <= MAX_EMBEDDING and dimensions in x.shape[1:]:
            return Head(module)
    return None


def _is_close(output: Tensor, logits: Tensor) -> bool:
    difference = (output.float() - logits.float()).norm()
    return bool(difference <= _TOLERANCE * (1 + logits.float().norm()))


@torch.inference_mode()
def black(pixel_shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return a batch of one black image: uint8 [1, height, width, 3]."""
    return torch.zeros((1, *pixel_shape), dtype=torch.uint8, device=device)
