"""A Vision Transformer classifier in plain torch: what transformers' `ViTForImageClassification` computes.

It is the reference of the fused form in `vit`, which takes the weights from it. Its modules and parameters have the
names of transformers 5, but importing it takes none of the seconds that the import of transformers' models takes. Must
not know files, devices or batching.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a network, by the keys of transformers' config.json.

    Attributes:
        hidden_size: Width of a token.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of heads, which divides the width.
        intermediate_size: Width between the two matrices of a layer's MLP.
        image_size: (height, width) of an image, in pixels.
        patch_size: (height, width) of a patch, in pixels.
        num_labels: Number of classes.
        hidden_act: A key of `ACTIVATIONS`.
        layer_norm_eps: Added to the variance in each norm.
        qkv_bias: Whether queries, keys and values have biases.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    num_labels: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size[0] // self.patch_size[0]) * (self.image_size[1] // self.patch_size[1])


class Logits(NamedTuple):
    """The output of a `ViTNetwork`.

    Attributes:
        logits: [batch, classes], in the network's dtype.
    """

    logits: Tensor


class _PatchEmbeddings(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        projected: Tensor = self.projection(pixel_values)
        return projected.flatten(2).transpose(1, 2)


class _Embeddings(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.patch_embeddings = _PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.empty(1, config.num_patches + 1, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.shape[2:] != self.image_size:
            raise ValueError(f"The images are {tuple(pixel_values.shape[2:])}, and the model takes {self.image_size}.")
        patches = self.patch_embeddings(pixel_values)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self.position_embeddings


class _Attention(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            projection(tokens).unflatten(2, (self.num_attention_heads, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        output: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return output


class _Mlp(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.activation_fn = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.fc2(self.activation_fn(self.fc1(tokens)))
        return output


class _Layer(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _Mlp(config)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.layernorm_before(tokens))
        output: Tensor = tokens + self.mlp(self.layernorm_after(tokens))
        return output


class _ViT(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.embeddings(pixel_values)
        for layer in self.layers:
            tokens = layer(tokens)
        output: Tensor = self.layernorm(tokens)
        return output


class ViTNetwork(nn.Module):
    """A ViT that classifies by its class token.

    Args:
        config: Its shape.

    Attributes:
        config: Its shape.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = _ViT(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

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
        return Logits(self.classifier(self.vit(pixel_values)[:, 0]))
