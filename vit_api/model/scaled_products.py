"""Matrix products in int8 and fp8, with torch's own kernels on CUDA. On the CPU, the same products in float32.

Weights are rounded once, with a scale for each output channel; activations at each call, with a scale for each token:
its largest number becomes the largest of the dtype. So nothing is calibrated, and no image depends on another one of
its batch. Must not know the network.

- `int8` sums in int32, exactly. CUDA takes any number of tokens above 16.
- `fp8` is e4m3: 3 bits of mantissa, numbers up to 448. CUDA has it from compute capability 8.9.

Scales are in float32. There is no synchronisation, so CUDA graphs can record it. Rounding an activation and scaling a
product are kernels of their own, which torch.compile fuses.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

INT8, FP8 = "int8", "fp8"
MIN_FP8_CAPABILITY = (8, 9)
FLOAT_DTYPES = {INT8: None, FP8: torch.bfloat16}
"""The dtype of the rest; None for that of `auto`. fp8's scaled product returns bfloat16 on CUDA."""

_MULTIPLE = 16
"""torch's kernels take matrices with sides that are multiples of it."""
_SMALLEST = 1e-12
"""A token of zeros has this scale."""
_LARGEST_INT8, _LARGEST_FP8 = 127.0, 448.0


class Weighted(Protocol):
    """A linear layer."""

    @property
    def weight(self) -> Tensor:
        """[out, in]."""

    @property
    def bias(self) -> Tensor | None:
        """[out]."""


class ScaledLinear(NamedTuple):
    """A linear layer that rounds both factors of its product.

    Attributes:
        weight: int8 or float8_e4m3fn [out, in].
        scale: float32 [1, out]; the original weight is about `weight * scale.T`.
        bias: [out], or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return [..., out] of [..., in], in the dtype of `x`."""
        rows = self.product(x.flatten(0, -2))
        if self.bias is not None:
            rows = rows + self.bias
        return rows.view(*x.shape[:-1], -1)

    def product(self, rows: Tensor) -> Tensor:
        """Return [rows, out] of [rows, in], without the bias."""
        largest = _LARGEST_INT8 if self.weight.dtype == torch.int8 else _LARGEST_FP8
        scale = _scale(rows, largest)
        if not rows.is_cuda:
            return self._product_in_float32(rows, scale)
        if self.weight.dtype == torch.int8:
            rounded = (rows / scale).round_().to(torch.int8)
            sums = torch._int_mm(rounded, self.weight.t())
            return (sums * scale).mul_(self.scale).to(rows.dtype)
        rounded = (rows / scale).to(self.weight.dtype)
        return torch._scaled_mm(
            rounded, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16
        ).to(rows.dtype)

    def _product_in_float32(self, rows: Tensor, scale: Tensor) -> Tensor:
        """Return the product of rounded factors, each of which float32 holds exactly.

        The kernels for these dtypes are many times as slow on most CPUs. Sums have float32's own rounding error.
        """
        rounded = rows.float() / scale
        rounded = rounded.round_() if self.weight.dtype == torch.int8 else rounded.to(self.weight.dtype).float()
        product = (rounded @ self.weight.t().float()).mul_(scale).mul_(self.scale)
        return product.to(torch.bfloat16 if self.weight.dtype != torch.int8 else rows.dtype).to(rows.dtype)


def can_scale(linear: Weighted) -> bool:
    """Return whether torch's kernels take a layer's matrix."""
    return all(side % _MULTIPLE == 0 for side in linear.weight.shape)


def scale_linear(linear: Weighted, dtype: str) -> ScaledLinear:
    """Return a layer with its weights rounded to `int8` or `fp8`."""
    weight = linear.weight.float()
    scale = _scale(weight, _LARGEST_INT8 if dtype == INT8 else _LARGEST_FP8)
    rounded = (weight / scale).round().to(torch.int8) if dtype == INT8 else (weight / scale).to(torch.float8_e4m3fn)
    return ScaledLinear(rounded, scale.t().contiguous(), linear.bias)


def _scale(rows: Tensor, largest: float) -> Tensor:
    """Return float32 [rows, 1]: a row's largest number divided by that of the dtype."""
    return (rows.abs().amax(dim=-1, keepdim=True).float() / largest).clamp_(min=_SMALLEST)
