"""The CUDA kernel that adds to the residual stream and normalises it, and what happens without it."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

from vit_api.model.add_norm import make_add_norm


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        pytest.param(torch.float32, 768, id="float32"),
        pytest.param(torch.float16, 20, id="a width that is no multiple of 8"),
        pytest.param(torch.float16, 16384, id="too wide"),
    ],
)
def test_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int) -> None:
    """None is compiled for these."""
    monkeypatch.setattr("vit_api.model.add_norm._compile", lambda *_: pytest.fail("it was compiled"))
    assert make_add_norm(dtype, width) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_log_says_why_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """Torch's own operations are used; nothing fails."""
    caplog.set_level(logging.INFO)
    assert make_add_norm(torch.float16, 768) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("The residual sums are not fused with the norms: ")


def test_torch_has_what_the_compiler_needs() -> None:
    """These are internals of the pinned torch; without them the kernel would be missing on every GPU."""
    assert callable(torch.cuda._utils._get_nvrtc_library)
    assert callable(torch.cuda._utils._cuda_load_module)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("width", [8, 64, 192, 384, 768, 1000, 1408, 8192])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernel_adds_and_normalises(dtype: torch.dtype, width: int) -> None:
    """The sum is that of float32, rounded once; the norm is that of the rounded sum."""
    torch.manual_seed(0)
    x, added = torch.randn((2, 3, 5, width), dtype=dtype, device="cuda")
    bias, weight, shift = torch.randn((3, width), dtype=dtype, device="cuda")
    add_norm = make_add_norm(dtype, width)
    assert add_norm is not None
    expected = (x.float() + added.float() + bias.float()).to(dtype)
    found = add_norm(x, added.flatten(0, 1), bias, (weight, shift, 1e-5))
    assert torch.equal(x, expected)
    exact = F.layer_norm(expected.float(), (width,), weight.float(), shift.float(), 1e-5)
    torch.testing.assert_close(found.float(), exact, rtol=8e-3, atol=8e-3)
