"""A Vision Transformer classifier in plain torch: transformers' `ViTForImageClassification`, and timm's plain variants.

It is the reference of the fused form in `vit`, which takes the weights from it. Its modules and parameters have the
names of transformers 5, but importing it takes none of the seconds that the import of transformers' models takes. Must
not know files, devices or batching.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_api.model.rotary import Rotation
from vit_api.model.vit_config import ViTConfig

Activation = Callable[[Tensor], Tensor]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_tanh_gelu = functools.partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}
"""The values of `hidden_act` that are supported, by transformers' names."""


class HasLabels(Protocol):
    """A configuration, of which only the number of classes matters.

    Attributes:
        num_labels: Number of classes.
    """

    @property
    def num_labels(self) -> int: ...  # noqa: D102


class HasLogits(Protocol):
    """The output of a classifier.

    Attributes:
        logits: [batch, classes].
    """

    @property
    def logits(self) -> Tensor: ...  # noqa: D102


class ImageClassifier(Protocol):
    """What a `ViTNetwork` and each of transformers' image classifiers are.

    Attributes:
        config: Its configuration.
        dtype: The dtype of its weights.
    """

    @property
    def config(self) -> HasLabels: ...  # noqa: D102

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    def __call__(self, *, pixel_values: Tensor) -> HasLogits:
        """Classify normalised images [batch, 3, height, width]."""


class Logits(NamedTuple):
    """The output of a `ViTNetwork`.

    Attributes:
        logits: [batch, classes], in the network's dtype.
    """

    logits: Tensor


class _EmptyLinear(nn.Linear):
    def reset_parameters(self) -> None:
        """Keep the weights as they are: random ones take most of the time of making a network, even on "meta"."""


class _EmptyConv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """As `_EmptyLinear`."""


class _EmptyLayerNorm(nn.LayerNorm):
    def reset_parameters(self) -> None:
        """As `_EmptyLinear`."""


def _norm(config: ViTConfig, size: int) -> nn.LayerNorm:
    return _EmptyLayerNorm(size, eps=config.layer_norm_eps)


def _optional_norm(config: ViTConfig, size: int, *, exists: bool) -> nn.Module:
    return _norm(config, size) if exists else nn.Identity()


class _PatchEmbeddings(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.projection = _EmptyConv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        projected: Tensor = self.projection(pixel_values)
        return projected.flatten(2).transpose(1, 2)


class _Embeddings(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.cls_token = nn.Parameter(torch.empty(1, config.prefix_tokens, config.hidden_size))
        self.patch_embeddings = _PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.empty(1, config.num_tokens, config.hidden_size))
        self.norm = _optional_norm(config, config.hidden_size, exists=config.has_pre_norm)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.shape[2:] != self.image_size:
            raise ValueError(f"The images are {tuple(pixel_values.shape[2:])}, and the model takes {self.image_size}.")
        patches = self.patch_embeddings(pixel_values)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        output: Tensor = self.norm(tokens + self.position_embeddings)
        return output


class _Attention(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = _EmptyLinear(width, width, bias=config.qkv_bias)
        self.k_proj = _EmptyLinear(width, width, bias=config.qkv_bias)
        self.v_proj = _EmptyLinear(width, width, bias=config.qkv_bias)
        self.norm = _optional_norm(config, width, exists=config.has_attention_norm)
        self.o_proj = _EmptyLinear(width, width)
        biases = torch.empty(1, config.num_attention_heads, config.num_tokens, config.num_tokens)
        self.position_bias = nn.Parameter(biases) if config.has_position_bias else None

    def forward(self, tokens: Tensor, rotation: Rotation | None) -> Tensor:
        query, key, value = (
            projection(tokens).unflatten(2, (self.num_attention_heads, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        attended = F.scaled_dot_product_attention(query, key, value, self.position_bias, scale=self.scaling)
        output: Tensor = self.o_proj(self.norm(attended.transpose(1, 2).flatten(2)))
        return output


class _Mlp(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.activation_fn = ACTIVATIONS[config.hidden_act]
        self.is_gated = config.has_gated_mlp
        size = config.intermediate_size
        self.fc1 = _EmptyLinear(config.hidden_size, 2 * size if self.is_gated else size)
        self.norm = _optional_norm(config, size, exists=config.has_mlp_norm)
        self.fc2 = _EmptyLinear(size, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        if self.is_gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = self.activation_fn(gate) * hidden
        else:
            hidden = self.activation_fn(hidden)
        output: Tensor = self.fc2(self.norm(hidden))
        return output


class _Layer(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.layernorm_before = _norm(config, config.hidden_size)
        self.layernorm_after = _norm(config, config.hidden_size)
        self.mlp = _Mlp(config)

    def forward(self, tokens: Tensor, rotation: Rotation | None) -> Tensor:
        tokens = tokens + self.attention(self.layernorm_before(tokens), rotation)
        output: Tensor = tokens + self.mlp(self.layernorm_after(tokens))
        return output


class _Rotation(nn.Module):
    """The tables of a `Rotation`, among the weights so that they share the weights' device and dtype."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        shape = config.num_tokens, config.hidden_size // config.num_attention_heads
        self.cosine = nn.Parameter(torch.empty(shape))
        self.sine = nn.Parameter(torch.empty(shape))


class _ViT(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.rotary = _Rotation(config) if config.has_rotary else None
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = _norm(config, config.hidden_size)
        self._config = config

    @property
    def rotation(self) -> Rotation | None:
        return None if self.rotary is None else Rotation(self.rotary.cosine.detach(), self.rotary.sine.detach())

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens, rotation = self.embeddings(pixel_values), self.rotation
        for layer in self.layers:
            tokens = layer(tokens, rotation)
        output: Tensor
        if not self._config.pools_patches:
            output = self.layernorm(tokens[:, 0])
        elif self._config.pools_first:
            output = self.layernorm(tokens[:, self._config.prefix_tokens :].mean(1))
        else:
            output = self.layernorm(tokens[:, self._config.prefix_tokens :]).mean(1)
        return output


class ViTNetwork(nn.Module):
    """A ViT that classifies by its class token, or by the mean of its patches.

    Its weights are not initialised; see `of_weights`.

    Args:
        config: Its shape.

    Attributes:
        config: Its shape.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = _ViT(config)
        self.classifier = _EmptyLinear(config.hidden_size, config.num_labels)

    @classmethod
    def of_weights(cls, config: ViTConfig, weights: dict[str, Tensor]) -> ViTNetwork:
        """Return a network with these weights, by the names of its parameters; it shares them.

        Raises:
            RuntimeError: A weight is missing, is not one of its parameters, or has another shape.
        """
        with torch.device("meta"):  # nothing is allocated or initialised
            network = cls(config)
        network.load_state_dict(weights, strict=True, assign=True)
        return network.requires_grad_(requires_grad=False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.classifier.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return self.classifier.weight.device

    def forward(self, pixel_values: Tensor) -> Logits:
        """Classify normalised images [batch, 3, height, width] of the network's dtype.

        Raises:
            ValueError: The images have another size than the model's.
        """
        return Logits(self.classifier(self.vit(pixel_values)))
