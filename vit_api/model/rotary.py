"""Rotary position embeddings of a grid of patches: each pair of a head's numbers turns by an angle of the position.

Must not know files or architectures. RoFormer (arXiv 2104.09864) in two dimensions, as in EVA-02 (2303.11331).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vit_api.checkpoints.timm_architectures import Rotary


class Rotation(NamedTuple):
    """The angles of each token, for pairs of the numbers `head size / 2` apart.

    Attributes:
        cosine: [tokens, head size].
        sine: [tokens, head size]; negative in the first half.
    """

    cosine: Tensor
    sine: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Turn [..., tokens, head size], of the first tokens."""
        tokens, size = x.shape[-2:]
        return x * self.cosine[:tokens] + x.roll(size // 2, dims=-1) * self.sine[:tokens]


def make_rotation(rotary: Rotary, head_size: int, rows: int, columns: int, prefix: int) -> Rotation:
    """Return the rotation of a grid of patches after `prefix` tokens, which do not turn; float32."""
    bands = head_size // 4
    frequencies = rotary.temperature ** -(torch.arange(bands, dtype=torch.float32) / bands)
    sides = []
    for side, reference in zip((rows, columns), rotary.reference or (rows, columns), strict=True):
        steps = torch.arange(side, dtype=torch.float32)
        if rotary.is_centred:
            sides.append(2 * math.pi * (2 * (steps + 0.5) / side - 1))
        else:
            sides.append(steps / side * reference)
    grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)
    if rotary.has_columns_first:
        grid = grid.flip(-1)
    angles = (grid[..., None] * frequencies).flatten(1)
    angles = torch.cat([angles.new_zeros(prefix, 2 * bands), angles])
    sine, cosine = angles.sin(), angles.cos()
    return Rotation(torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1))


def split_pairs(rows: Tensor, heads: int) -> Tensor:
    """Return the rows of a query's or key's matrix or bias with neighbours moved `head size / 2` apart.

    Attention does not change if queries and keys are reordered alike.
    """
    by_pair = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return by_pair.transpose(1, 2).reshape(rows.shape)
