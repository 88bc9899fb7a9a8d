"""A fused forward pass of the Vision Transformer for inference.

Computes the same function as `ViTNetwork`, in fewer and larger steps; see `FusedViT`. Must not know devices, batching
or other architectures.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_api.model.add_norm import AddNorm
from vit_api.model.scaled_products import ScaledLinear, can_scale, scale_linear
from vit_api.model.vit_network import ACTIVATIONS, ViTNetwork

_CENTRE = 128
"""Subtracted from pixels in 16 bits, to keep sums small; the integers -128 to 127 are exact in every dtype."""


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def product(self, rows: Tensor) -> Tensor:
        """Return [rows, out] of [rows, in], without the bias."""
        return torch.mm(rows, self.weight.t())

    def float(self) -> _Linear:
        """Return it in float32."""
        return _Linear(self.weight.float(), None if self.bias is None else self.bias.float())


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def float(self) -> _Norm:
        """Return it in float32."""
        return _Norm(self.weight.float(), self.bias.float(), self.eps)


Product = _Linear | ScaledLinear


class _Block(NamedTuple):
    """The weights of one layer; query, key and value are stacked in one matrix, in this order."""

    norm_before: _Norm
    qkv: Product
    position_bias: Tensor | None
    attention_norm: _Norm | None
    out: Product
    norm_after: _Norm
    fc1: Product
    mlp_norm: _Norm | None
    fc2: Product


class FusedViT:
    """A ViT classifier from uint8 pixels to logits.

    It differs from a `ViTNetwork` in five ways:
    - Rescaling and normalisation are part of the patch projection, a matrix product instead of a convolution.
    - Query, key and value are one matrix product.
    - The last layer computes only the class token, if that is the classifier's only input.
    - The last norm and the classifier compute in float32. Between 8 and 16, the logits of bfloat16 are 0.06 apart,
      which moves a probability by up to 0.016.
    - There are no nested modules to call.

    Args:
        model: The loaded model, in its dtype and on its device. Unchanged weights are shared with it.
        scale: float32 [3, 1, 1]; a normalised pixel is `pixel * scale + shift`.
        shift: float32 [3, 1, 1].
        fuse_gelu: Compute the GELU as part of the matrix product before it. On CUDA, this is its tanh approximation,
            which differs by at most 5e-4 (pytorch #104061).
        add_norm: Compute each residual sum, the bias before it and the norm after it with this kernel.
    """

    def __init__(
        self,
        model: ViTNetwork,
        scale: Tensor,
        shift: Tensor,
        *,
        fuse_gelu: bool = False,
        add_norm: AddNorm | None = None,
    ) -> None:
        vit = model.vit
        self._heads = model.config.num_attention_heads
        self._head_size = model.config.hidden_size // self._heads
        self._attention_scale = self._head_size**-0.5
        self._activation = ACTIVATIONS[model.config.hidden_act]
        self._fuse_gelu = fuse_gelu
        self._add_norm = add_norm
        self._is_gated = model.config.has_gated_mlp
        self._prefix = model.config.prefix_tokens
        self._pools_patches, self._pools_first = model.config.pools_patches, model.config.pools_first
        self._rotation = vit.rotation
        patches = vit.embeddings.patch_embeddings
        self._patch_height, self._patch_width = patches.projection.kernel_size
        self._centre = 0 if patches.projection.weight.dtype == torch.float32 else _CENTRE
        self._patches = _normalising_projection(patches.projection, scale, shift, self._centre)
        positions = vit.embeddings.position_embeddings.detach()
        self._prefix_tokens = vit.embeddings.cls_token.detach() + positions[:, : self._prefix]
        self._positions = positions[:, self._prefix :].contiguous()
        self._pre_norm = _optional_norm(vit.embeddings.norm)
        self._blocks = [_block(layer) for layer in vit.layers]
        self._norm = _norm(vit.layernorm).float()
        self._classifier = _linear(model.classifier).float()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float32 logits [batch, classes] of uint8 pixels [batch, height, width, 3]."""
        return self.classify(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """Return the normalised class token, or mean of the patches, float32 [batch, hidden size]."""
        x = self._embed(pixels)
        normed = self._blocks[0].norm_before(x)
        for block, following in itertools.pairwise(self._blocks):
            x, normed = self._layer(block, x, normed, following.norm_before)
        x = self._last_layer(self._blocks[-1], x, normed, x.shape[1] if self._pools_patches else 1)
        if not self._pools_patches:
            return self._norm(x[:, 0].float())
        patches = x[:, self._prefix :].float()
        return self._norm(patches.mean(1)) if self._pools_first else self._norm(patches).mean(1)

    def classify(self, features: Tensor) -> Tensor:
        """Return float32 logits [batch, classes] of features."""
        return self._classifier(features)

    def with_operations(self, *, fuse_gelu: bool, add_norm: AddNorm | None) -> FusedViT:
        """Return the form with these operations; it shares all weights."""
        form = copy.copy(self)
        form._fuse_gelu, form._add_norm = fuse_gelu, add_norm
        return form

    def without_kernels(self) -> FusedViT:
        """Return the form that torch.compile can read; it fuses what our kernels do automatically."""
        return self.with_operations(fuse_gelu=self._fuse_gelu, add_norm=None)

    def with_scaled_products(self, dtype: str) -> FusedViT:
        """Return the form whose matrix products are in `int8` or `fp8`; see `scaled_products` and `with_products`."""
        return self.with_products(lambda linear: scale_linear(linear, dtype) if can_scale(linear) else linear)

    def with_products(self, convert: Callable[[Product], Product]) -> FusedViT:
        """Return the form whose matrix products are converted.

        The patch projection, attention itself and the classifier are not, nor is the last layer, if it computes only
        the class token: that is little work, and all answers depend on it.
        """
        form = copy.copy(self)
        count = len(self._blocks) if self._pools_patches else len(self._blocks) - 1
        form._blocks = [_converted(block, convert) for block in self._blocks[:count]] + self._blocks[count:]
        return form

    def _embed(self, pixels: Tensor) -> Tensor:
        """Project each patch of the images, and prepend the class token and registers."""
        batch, height, width, channels = pixels.shape
        rows, columns = height // self._patch_height, width // self._patch_width
        patches = pixels.view(batch, rows, self._patch_height, columns, self._patch_width, channels).transpose(2, 3)
        # Sorts and converts in one step.
        patches = patches.to(self._patches.weight.dtype, memory_format=torch.contiguous_format)
        if self._centre:
            patches -= self._centre
        x = self._patches(patches.view(batch, rows * columns, -1)) + self._positions
        x = torch.cat([self._prefix_tokens.expand(batch, -1, -1), x], dim=1)
        return x if self._pre_norm is None else self._pre_norm(x)

    def _layer(self, block: _Block, x: Tensor, normed: Tensor, next_norm: _Norm) -> tuple[Tensor, Tensor]:
        """Run one layer on the tokens and their norm; return both for the next layer. May change `x`."""
        x, normed = self._add(x, self._attention(block, normed, x.shape[1]), block.out, block.norm_after)
        return self._add(x, self._hidden(block, normed), block.fc2, next_norm)

    def _last_layer(self, block: _Block, x: Tensor, normed: Tensor, tokens: int) -> Tensor:
        """Run the last layer; return its first `tokens` tokens."""
        x = x[:, :tokens] + block.out(self._attention(block, normed, tokens))
        return x + block.fc2(self._hidden(block, block.norm_after(x)))

    def _add(self, x: Tensor, inputs: Tensor, linear: Product, norm: _Norm) -> tuple[Tensor, Tensor]:
        """Add a projection of the inputs to the tokens; return the sum, which may be in their place, and its norm."""
        if self._add_norm is None or linear.bias is None:
            x = x + linear(inputs)
            return x, norm(x)
        added = linear.product(inputs.flatten(0, 1))
        return x, self._add_norm(x, added, linear.bias, norm)

    def _attention(self, block: _Block, normed: Tensor, tokens: int) -> Tensor:
        """Return the attention of the first `tokens` tokens, as the projection after it takes it."""
        attended = self._attend(block, normed, tokens)
        return attended if block.attention_norm is None else block.attention_norm(attended)

    def _hidden(self, block: _Block, normed: Tensor) -> Tensor:
        """Return the activations inside a layer's MLP."""
        hidden = self._expand(block.fc1, normed)
        return hidden if block.mlp_norm is None else block.mlp_norm(hidden)

    def _expand(self, linear: Product, x: Tensor) -> Tensor:
        """Return the activations of a layer's first matrix product."""
        if self._is_gated:
            gate, hidden = linear(x).chunk(2, dim=-1)
            return self._activation(gate) * hidden
        if not self._fuse_gelu or isinstance(linear, ScaledLinear):
            return self._activation(linear(x))
        assert linear.bias is not None
        rows = torch._addmm_activation(linear.bias, x.flatten(0, 1), linear.weight.t(), use_gelu=True)
        return rows.view(*x.shape[:2], -1)

    def _attend(self, block: _Block, x: Tensor, tokens: int) -> Tensor:
        """Compute attention of the first `tokens` tokens to all; return [batch, tokens, heads * head size]."""
        batch, size = x.shape[0], self._heads * self._head_size
        if tokens == x.shape[1]:
            query, key, value = block.qkv(x).chunk(3, dim=-1)
        else:
            assert isinstance(block.qkv, _Linear)  # see `with_scaled_products`
            weight, bias = block.qkv
            query = F.linear(x[:, :tokens], weight[:size], None if bias is None else bias[:size])
            key, value = F.linear(x, weight[size:], None if bias is None else bias[size:]).chunk(2, dim=-1)
        query, key, value = self._by_head(query), self._by_head(key), self._by_head(value)
        if self._rotation is not None:
            query, key = self._rotation(query), self._rotation(key)
        position_bias = None if block.position_bias is None else block.position_bias[:, :, :tokens]
        attended = F.scaled_dot_product_attention(query, key, value, position_bias, scale=self._attention_scale)
        return attended.transpose(1, 2).reshape(batch, tokens, size)

    def _by_head(self, x: Tensor) -> Tensor:
        """Return [batch, heads, tokens, head size]."""
        return x.view(x.shape[0], x.shape[1], self._heads, self._head_size).transpose(1, 2)


def _normalising_projection(projection: torch.nn.Conv2d, scale: Tensor, shift: Tensor, centre: int) -> _Linear:
    """Return the patch projection as a matrix for centred pixels, with rows ordered [height, width, channel].

    For pixel p, centre c, weights W and bias b: W (p * scale + shift) + b =
    (W * scale) (p - c) + b + W (c * scale + shift).
    """
    weight = projection.weight.detach().double()
    scale, shift = scale.double(), shift.double()
    bias = (weight * (centre * scale + shift)).sum(dim=(1, 2, 3))
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
        None if attention.position_bias is None else attention.position_bias.detach(),
        _optional_norm(attention.norm),
        _linear(attention.o_proj),
        _norm(layer.layernorm_after),
        _linear(mlp.fc1),
        _optional_norm(mlp.norm),
        _linear(mlp.fc2),
    )


def _converted(block: _Block, convert: Callable[[Product], Product]) -> _Block:
    return block._replace(
        qkv=convert(block.qkv), out=convert(block.out), fc1=convert(block.fc1), fc2=convert(block.fc2)
    )


def _linear(module: torch.nn.Linear) -> _Linear:
    return _Linear(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _optional_norm(module: torch.nn.Module) -> _Norm | None:
    return _norm(module) if isinstance(module, torch.nn.LayerNorm) else None


def _norm(module: torch.nn.LayerNorm) -> _Norm:
    return _Norm(module.weight.detach(), module.bias.detach(), module.eps)
