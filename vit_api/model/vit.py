"""The Vision Transformer's own forward pass, with the work that serving can spare left out.

The same function of the pixels as transformers' `ViTForImageClassification`, in fewer and larger steps. Knows nothing
of devices, batches or other architectures. See `FusedViT` for what it leaves out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification

logger = logging.getLogger(__name__)

_CENTRE = 128
"""Subtracted from pixels, so that their sums are small; the integers -128 to 127 are exact in any dtype."""
_MOST_RELATIVE_ERROR = {torch.float32: 1e-3}
_MOST_RELATIVE_ERROR_ELSE = 0.05
"""Of logits, by which the two ways may differ; orders of summation differ, and bfloat16 keeps 8 bits."""
_CHECKED_IMAGES = 2


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _Block(NamedTuple):
    """One layer's weights; query, key and value are one matrix, in this order."""

    norm_before: _Norm
    qkv: _Linear
    out: _Linear
    norm_after: _Norm
    fc1: _Linear
    fc2: _Linear


class FusedViT:
    """A ViT classifier from uint8 pixels to logits.

    Beside transformers' modules,
    - rescaling and normalisation are part of the patch projection, which is a matrix product and not a convolution,
    - query, key and value are one product,
    - the last layer computes the class token alone, which is all that the classifier looks at: 6% less of ViT-B/16,
    - there are no modules to call: two thirds of the time of a small model's single image.

    Args:
        model: Loaded, in its dtype and on its device; its weights are shared where they stay as they are.
        scale: float32 [3, 1, 1]; a normalised pixel is `pixel * scale + shift`.
        shift: float32 [3, 1, 1].

    Raises:
        AttributeError: transformers' modules have other names than those that this was written for.
    """

    def __init__(self, model: ViTForImageClassification, scale: Tensor, shift: Tensor) -> None:
        vit = model.vit
        attention = vit.layers[0].attention
        self._heads = int(attention.num_attention_heads)
        self._head_size = int(attention.head_dim)
        self._attention_scale = float(attention.scaling)
        self._activation = _activation(model)
        patches = vit.embeddings.patch_embeddings
        self._patch_height, self._patch_width = patches.projection.kernel_size
        self._patches = _normalising_projection(patches.projection, scale, shift)
        positions = vit.embeddings.position_embeddings.detach()
        self._class_token = vit.embeddings.cls_token.detach() + positions[:, :1]
        self._positions = positions[:, 1:].contiguous()
        self._blocks = [_block(layer) for layer in vit.layers]
        self._norm = _norm(vit.layernorm)
        self._classifier = _linear(model.classifier)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return logits [batch, classes] of uint8 pixels [batch, height, width, 3]."""
        x = self._embed(pixels)
        for block in self._blocks[:-1]:
            x = self._layer(block, x, x.shape[1])
        x = self._layer(self._blocks[-1], x, 1)
        return self._classifier(self._norm(x[:, 0]))

    def _embed(self, pixels: Tensor) -> Tensor:
        """Cut the picture into patches and project each; the class token comes first."""
        batch, height, width, channels = pixels.shape
        rows, columns = height // self._patch_height, width // self._patch_width
        patches = pixels.view(batch, rows, self._patch_height, columns, self._patch_width, channels)
        patches = patches.transpose(2, 3).reshape(batch, rows * columns, -1)
        x = self._patches(patches.to(self._patches.weight.dtype) - _CENTRE) + self._positions
        return torch.cat([self._class_token.expand(batch, -1, -1), x], dim=1)

    def _layer(self, block: _Block, x: Tensor, tokens: int) -> Tensor:
        """Run one layer; return its first `tokens` tokens."""
        x = x[:, :tokens] + block.out(self._attend(block, block.norm_before(x), tokens))
        return x + block.fc2(self._activation(block.fc1(block.norm_after(x))))

    def _attend(self, block: _Block, x: Tensor, tokens: int) -> Tensor:
        """Let the first `tokens` tokens attend to all; return [batch, tokens, heads * head size]."""
        batch, size = x.shape[0], self._heads * self._head_size
        if tokens == x.shape[1]:
            query, key, value = block.qkv(x).chunk(3, dim=-1)
        else:
            weight, bias = block.qkv
            query = F.linear(x[:, :tokens], weight[:size], None if bias is None else bias[:size])
            key, value = F.linear(x, weight[size:], None if bias is None else bias[size:]).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            self._by_head(query), self._by_head(key), self._by_head(value), scale=self._attention_scale
        )
        return attended.transpose(1, 2).reshape(batch, tokens, size)

    def _by_head(self, x: Tensor) -> Tensor:
        """Return [batch, heads, tokens, head size]."""
        return x.view(x.shape[0], x.shape[1], self._heads, self._head_size).transpose(1, 2)


def fuse(
    model: PreTrainedModel, scale: Tensor, shift: Tensor, reference: Callable[[Tensor], Tensor]
) -> FusedViT | None:
    """Return the fast form of a model, or None where it has none.

    Args:
        model: Any classifier.
        scale: See `FusedViT`.
        shift: See `FusedViT`.
        reference: The slow form, uint8 pixels to logits; both must agree on noise.
    """
    if type(model) is not ViTForImageClassification:
        return None
    try:
        fused = FusedViT(model, scale, shift)
    except AttributeError as error:
        logger.warning("this version of transformers is not the one that the fast ViT was written for: %s", error)
        return None
    height, width = model.vit.embeddings.image_size
    noise = torch.randint(0, 256, (_CHECKED_IMAGES, height, width, 3), dtype=torch.uint8).to(scale.device)
    expected = reference(noise).float()
    deviation = float((fused(noise).float() - expected).norm() / expected.norm())
    if not deviation <= _MOST_RELATIVE_ERROR.get(model.dtype, _MOST_RELATIVE_ERROR_ELSE):
        logger.warning("the fast ViT is off by %.2g; transformers' own is used", deviation)
        return None
    return fused


def _activation(model: ViTForImageClassification) -> Callable[[Tensor], Tensor]:
    if model.config.hidden_act == "gelu":
        return F.gelu
    activation: Callable[[Tensor], Tensor] = model.vit.layers[0].mlp.activation_fn
    return activation


def _normalising_projection(projection: torch.nn.Conv2d, scale: Tensor, shift: Tensor) -> _Linear:
    """Return the patch projection as a matrix that takes centred pixels, [height, width, channel] in each row.

    With p a pixel, c the centre, W the weights and b the bias: W (p * scale + shift) + b is
    (W * scale) (p - c) + b + W (c * scale + shift).
    """
    weight = projection.weight.detach().double()
    scale, shift = scale.double(), shift.double()
    bias = (weight * (_CENTRE * scale + shift)).sum(dim=(1, 2, 3))
    if projection.bias is not None:
        bias += projection.bias.detach().double()
    rows = (weight * scale).permute(0, 2, 3, 1).reshape(len(weight), -1)
    dtype = projection.weight.dtype
    return _Linear(rows.to(dtype).contiguous(), bias.to(dtype))


def _block(layer: Any) -> _Block:
    attention, mlp = layer.attention, layer.mlp
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    qkv = _Linear(torch.cat([part.weight.detach() for part in parts]), torch.cat(biases) if biases else None)
    return _Block(
        _norm(layer.layernorm_before),
        qkv,
        _linear(attention.o_proj),
        _norm(layer.layernorm_after),
        _linear(mlp.fc1),
        _linear(mlp.fc2),
    )


def _linear(module: torch.nn.Linear) -> _Linear:
    return _Linear(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _norm(module: torch.nn.LayerNorm) -> _Norm:
    return _Norm(module.weight.detach(), module.bias.detach(), module.eps)
