"""Chooses the fused form of a Vision Transformer: what its checkpoint and its device allow, if the results agree."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from vit_api.model.add_norm import AddNorm, make_add_norm
from vit_api.model.vit import FusedViT
from vit_api.model.vit_network import ImageClassifier, ViTNetwork

logger = logging.getLogger(__name__)

_MAX_RELATIVE_ERROR = {torch.float32: 1e-3}
_MAX_RELATIVE_ERROR_ELSE = 0.05
"""Maximum relative error of the logits: the order of summation differs, and bfloat16 has 8 significant bits."""
_CHECKED_IMAGES = 2
_FUSION_ERROR_RATIO = 1.5
"""How much more than the plain form one with fused operations may deviate."""


def fuse(
    model: ImageClassifier, scale: Tensor, shift: Tensor, reference: Callable[[Tensor], Tensor]
) -> FusedViT | None:
    """Return the fused form of a model, or None if it is not available.

    Args:
        model: Any classifier.
        scale: See `FusedViT`.
        shift: See `FusedViT`.
        reference: The original function, uint8 pixels to logits; both must agree on noise.
    """
    if not isinstance(model, ViTNetwork):
        return None
    fused = FusedViT(model, scale, shift)
    height, width = model.vit.embeddings.image_size
    noise = torch.randint(0, 256, (_CHECKED_IMAGES, height, width, 3), dtype=torch.uint8).to(scale.device)
    expected = reference(noise).float()

    def deviation_of(candidate: FusedViT) -> float:
        found = torch.cat([candidate(noise[:1]), candidate(noise)]).float()
        return float((found - torch.cat([expected[:1], expected])).norm() / expected.norm())

    deviation = deviation_of(fused)
    if not deviation <= _MAX_RELATIVE_ERROR.get(model.dtype, _MAX_RELATIVE_ERROR_ELSE):
        logger.warning("The fused ViT deviates by %.2g; the unfused one is used", deviation)
        return None

    def is_as_good(candidate: FusedViT, otherwise: str) -> bool:
        return _is_as_good(lambda: deviation_of(candidate), deviation, otherwise)

    best = fused
    if _may_fuse_gelu(model):
        with_gelu = fused.with_operations(fuse_gelu=True, add_norm=None)
        best = with_gelu if is_as_good(with_gelu, "GELU is not fused") else best
    if add_norm := _add_norm_for(model):
        with_sums = fused.with_operations(fuse_gelu=best is not fused, add_norm=add_norm)
        best = with_sums if is_as_good(with_sums, "The residual sums are not fused with the norms") else best
    return best


def _is_as_good(find_deviation: Callable[[], float], deviation: float, otherwise: str) -> bool:
    """Return whether a form runs, and deviates about as little as the plain one; if not, log why."""
    try:
        found = find_deviation()
    except RuntimeError as error:
        logger.info("%s: %s", otherwise, str(error).partition("\n")[0])
        return False
    if not found <= _FUSION_ERROR_RATIO * deviation:
        logger.info("%s: the logits would deviate by %.2g instead of %.2g", otherwise, found, deviation)
        return False
    return True


def _add_norm_for(model: ViTNetwork) -> AddNorm | None:
    """Return the kernel for a model's residual sums, if there is one; there is none for the CPU."""
    return make_add_norm(model.dtype, model.config.hidden_size) if model.device.type == "cuda" else None


def _may_fuse_gelu(model: ViTNetwork) -> bool:
    """Return whether the fused GELU is worth a try.

    In float32 its approximation would show, and on the CPU it saves nothing.
    """
    return (
        model.device.type == "cuda"
        and model.dtype != torch.float32
        and model.config.hidden_act == "gelu"
        and not model.config.has_gated_mlp
    )
