"""The fused ViT compared with transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BeitConfig, BeitForImageClassification, ViTConfig, ViTForImageClassification

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.cores import available_cores
from vit_api.model.model import VisionModel, choose_threads
from vit_api.model.vit import FusedViT, fuse

SCALE = torch.tensor([1 / 127.5, 1 / 100, 1 / 60]).view(3, 1, 1)
SHIFT = torch.tensor([-1.0, -0.7, 0.3]).view(3, 1, 1)


def model_of(**config: Any) -> ViTForImageClassification:
    torch.manual_seed(0)
    defaults = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 96}
    defaults |= {"image_size": 32, "patch_size": 8, "num_labels": 7, "initializer_range": 0.3}
    return ViTForImageClassification(ViTConfig(**(defaults | config))).eval()


def reference(model: ViTForImageClassification, pixels: torch.Tensor) -> torch.Tensor:
    inputs = pixels.permute(0, 3, 1, 2).to(torch.float32) * SCALE + SHIFT
    logits: torch.Tensor = model(pixel_values=inputs.to(model.dtype)).logits
    return logits


def noise(batch: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="plain"),
        pytest.param({"qkv_bias": False}, id="no bias in the attention"),
        pytest.param({"hidden_act": "gelu_new"}, id="another activation"),
        pytest.param({"num_hidden_layers": 1}, id="one layer"),
        pytest.param({"image_size": (32, 48)}, id="wide"),
        pytest.param({"patch_size": 16}, id="four patches"),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
@torch.inference_mode()
def test_it_is_the_same_function(config: dict[str, Any], batch: int) -> None:
    """In float32, logits agree up to the order of summation, for each shape and option."""
    model = model_of(**config)
    pixels = noise(batch, *model.vit.embeddings.image_size)
    logits = FusedViT(model, SCALE, SHIFT)(pixels)
    torch.testing.assert_close(logits, reference(model, pixels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_it_is_as_exact_as_transformers_in_few_bits(dtype: torch.dtype) -> None:
    """Its error against float32 is at most 1.5 times that of transformers' own forward pass."""
    pixels = noise(64)
    exact = reference(model_of(), pixels)
    model = model_of().to(dtype)
    own = (reference(model, pixels).float() - exact).norm()
    fused = (FusedViT(model, SCALE, SHIFT)(pixels).float() - exact).norm()
    assert fused <= 1.5 * own


@torch.inference_mode()
def test_a_fused_form_that_differs_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """If both disagree on noise, transformers' own is used, and the log says so."""
    model = model_of()
    assert fuse(model, SCALE, SHIFT, lambda pixels: reference(model, pixels)) is not None
    assert fuse(model, SCALE, SHIFT, lambda pixels: reference(model, pixels) + 1) is None
    assert "transformers' own is used" in caplog.text


@torch.inference_mode()
def test_modules_of_another_version_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """A transformers version with other names costs speed, not correctness."""
    model = model_of()
    del model.vit.layers[0].attention.q_proj
    assert fuse(model, SCALE, SHIFT, lambda pixels: reference(model, pixels)) is None
    assert "q_proj" in caplog.text


def test_another_architecture_has_no_fused_form() -> None:
    """BEiT is not fused."""
    config = BeitConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, image_size=32)
    assert fuse(BeitForImageClassification(config), SCALE, SHIFT, lambda pixels: pixels) is None


def test_threads_by_width_and_device() -> None:
    """Narrow models, and those on a GPU, use one thread; others one per core."""
    cpu, cores = torch.device("cpu"), available_cores()
    assert [choose_threads(cpu, width) for width in (64, 768, 0)] == [1, cores, cores]
    assert choose_threads(torch.device("cuda:0"), 768) == 1


def test_the_embedded_model_is_fused() -> None:
    """Benchmarks measure the form that is served."""
    model = VisionModel(load_checkpoint("digits"), "cpu", "auto", 1)
    assert isinstance(model._logits, FusedViT)
    assert model.dtype == torch.float32, "64 wide: bfloat16 would be no faster"
