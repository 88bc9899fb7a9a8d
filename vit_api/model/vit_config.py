"""The shape of a Vision Transformer, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a network, by the keys of transformers' config.json; what follows `qkv_bias` is timm's.

    Attributes:
        hidden_size: Width of a token.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of heads, which divides the width.
        intermediate_size: Width between the two matrices of a layer's MLP.
        image_size: (height, width) of an image, in pixels.
        patch_size: (height, width) of a patch, in pixels.
        num_labels: Number of classes.
        hidden_act: A key of `vit_network.ACTIVATIONS`.
        layer_norm_eps: Added to the variance in each norm.
        qkv_bias: Whether queries, keys and values have biases.
        prefix_tokens: Number of tokens before the patches: the class token, if there is one, and registers.
        pools_patches: Whether the classifier reads the mean of the patches, and not the first token.
        pools_first: Whether the last norm is that of the mean, and not of each patch.
        has_pre_norm: Whether a norm precedes the first layer, as in CLIP.
        has_gated_mlp: Whether the first half of the MLP's hidden numbers is the gate of the second (SwiGLU).
        has_attention_norm: Whether a norm follows the attention, before its output matrix.
        has_mlp_norm: Whether a norm precedes the second matrix of the MLP.
        has_rotary: Whether queries and keys are turned by the positions of their patches.
        has_position_bias: Whether the scores of attention have a bias, as in BEiT.
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
    prefix_tokens: int = 1
    pools_patches: bool = False
    pools_first: bool = False
    has_pre_norm: bool = False
    has_gated_mlp: bool = False
    has_attention_norm: bool = False
    has_mlp_norm: bool = False
    has_rotary: bool = False
    has_position_bias: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of an image's patches."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        rows, columns = self.grid
        return rows * columns

    @property
    def num_tokens(self) -> int:
        """Number of tokens of an image."""
        return self.prefix_tokens + self.num_patches
