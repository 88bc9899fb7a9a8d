"""Products in int8 and fp8, as CUDA computes them; the CPU runs the same operations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.quantized import digit_pixels
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.checkpoints.int8 import check_quantized
from vit_api.model.model import VisionModel
from vit_api.model.scaled_products import can_scale, scale_linear
from vit_api.model.vit import FusedViT, _Linear
from vit_api.quantization.scaled import ScaledQuantizer

_DTYPES = ["int8", "fp8"]
_MAX_ERROR = {"int8": 0.01, "fp8": 0.02}
"""Of a number of a product, divided by the lengths of both factors."""


def _linear(inputs: int = 64, outputs: int = 96) -> _Linear:
    torch.manual_seed(0)
    return _Linear(torch.randn(outputs, inputs) * torch.logspace(-3, 3, outputs)[:, None], torch.randn(outputs))


@pytest.mark.parametrize("dtype", _DTYPES)
def test_a_product_is_close_to_float32s(dtype: str) -> None:
    """For channels and tokens of very different sizes, and any leading dimensions."""
    linear = _linear()
    x = torch.randn(3, 20, 64) * torch.logspace(-4, 4, 20)[:, None]
    scaled = scale_linear(linear, dtype)
    rows = x.flatten(0, 1)
    expected = F.linear(rows, linear.weight)
    lengths = rows.norm(dim=1, keepdim=True) * linear.weight.norm(dim=1)
    assert float(((scaled.product(rows).float() - expected) / lengths).abs().max()) < _MAX_ERROR[dtype]
    with_bias = scaled(x)
    assert with_bias.shape == (3, 20, 96)
    torch.testing.assert_close(with_bias, (scaled.product(rows) + linear.bias).view(3, 20, 96))


@pytest.mark.parametrize("dtype", _DTYPES)
def test_a_token_does_not_depend_on_the_others(dtype: str) -> None:
    """Each has its own scale, so an answer does not depend on the other images of its batch."""
    scaled = scale_linear(_linear(), dtype)
    x = torch.randn(32, 64)
    torch.testing.assert_close(scaled.product(x)[:17], scaled.product(x[:17]), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_zeros_and_outliers_give_numbers(dtype: str) -> None:
    """A token of zeros has no scale; the largest number of a row is not rounded to infinity."""
    scaled = scale_linear(_linear(), dtype)
    x = torch.zeros(17, 64)
    assert torch.equal(scaled.product(x).float(), torch.zeros(17, 96))
    x[0, 0] = 60_000.0
    assert scaled.product(x).isfinite().all()
    assert scaled.product(x.to(torch.bfloat16)).isfinite().all()


def test_other_sides_are_left_alone() -> None:
    """The kernels take multiples of 16 only."""
    assert can_scale(_linear(48, 32))
    assert not can_scale(_linear(40, 32))
    assert not can_scale(_linear(48, 7))


@pytest.mark.parametrize("dtype", _DTYPES)
def test_the_last_layer_and_the_classifier_stay(dtype: str) -> None:
    """As do the patch projection, and the form that it is made from."""
    model = VisionModel(load_checkpoint("digits"), "cpu", "float32", 1)
    fused = model.network
    assert isinstance(fused, FusedViT)
    form = fused.with_scaled_products(dtype)
    first, *_, last = form._blocks
    expected = torch.int8 if dtype == "int8" else torch.float8_e4m3fn
    assert {one.weight.dtype for one in (first.qkv, first.out, first.fc1, first.fc2)} == {expected}
    assert {one.weight.dtype for one in (last.qkv, last.fc2, form._patches, form._classifier)} == {torch.float32}
    assert fused._blocks[0].qkv.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", _DTYPES)
def test_the_digits_pass_the_gate_and_are_judged_for_cuda(dtype: str, tmp_path: Path) -> None:
    """A verdict for CUDA, with the figures; the copy's weights are the original ones."""
    checkpoint = load_checkpoint("digits")
    result = ScaledQuantizer(checkpoint, dtype, lambda: iter(digit_pixels()), 1000).run(tmp_path / "copy")
    assert result.failures == []
    assert 0 < result.compared.mean_difference < 0.005
    copy = load_checkpoint(str(tmp_path / "copy"))
    assert check_quantized(copy, dtype, "cuda") is None
    assert (copy.path / "model.safetensors").read_bytes() == (checkpoint.path / "model.safetensors").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", _DTYPES)
def test_cuda_graphs_record_them(dtype: str) -> None:
    """A GPU's answers are those of the emulation, but for the order of sums and the dtype of the rest."""
    if dtype == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("This GPU has no fp8.")
    checkpoint = load_checkpoint("digits")
    model = VisionModel(checkpoint, "cuda:0", dtype, None)
    model.prepare("cudagraph")
    assert (model.engine.name, model.dtype_name) == ("cudagraph", dtype)
    emulated = VisionModel(checkpoint, "cpu", dtype, 1, emulates_cuda=True)
    pixels = digit_pixels()[:32]
    found, expected = (one.collect(one.launch(one.stage(pixels))) for one in (model, emulated))
    assert [one.indices[0] for one in found] == [one.indices[0] for one in expected]
    np.testing.assert_allclose(
        [one.top_probability for one in found], [one.top_probability for one in expected], atol=0.05
    )
