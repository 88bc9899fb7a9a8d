"""The network and its fused form, compared with transformers' implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import BeitConfig, BeitForImageClassification, ViTConfig, ViTForImageClassification

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.environment.cores import available_cores
from vit_api.model import fusing, vit_network
from vit_api.model.add_norm import AddNorm, Norm
from vit_api.model.fusing import fuse
from vit_api.model.model import VisionModel
from vit_api.model.precision import choose_threads
from vit_api.model.vit import FusedViT
from vit_api.model.vit_network import ACTIVATIONS, ViTNetwork

SCALE = torch.tensor([1 / 127.5, 1 / 100, 1 / 60]).view(3, 1, 1)
SHIFT = torch.tensor([-1.0, -0.7, 0.3]).view(3, 1, 1)


def model_of(**config: Any) -> ViTForImageClassification:
    torch.manual_seed(0)
    defaults = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 96}
    defaults |= {"image_size": 32, "patch_size": 8, "num_labels": 7, "initializer_range": 0.3}
    return ViTForImageClassification(ViTConfig(**(defaults | config))).eval()


def network_of(model: ViTForImageClassification) -> ViTNetwork:
    """Return the network with a model's weights, in the model's dtype."""
    config = model.config
    shape = vit_network.ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        image_size=model.vit.embeddings.image_size,
        patch_size=model.vit.embeddings.patch_embeddings.patch_size,
        num_labels=config.num_labels,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        qkv_bias=config.qkv_bias,
    )
    return ViTNetwork.of_weights(shape, model.state_dict())


def reference(model: ViTForImageClassification | ViTNetwork, pixels: torch.Tensor) -> torch.Tensor:
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
        *(pytest.param({"hidden_act": name}, id=name) for name in ACTIVATIONS),
        pytest.param({"layer_norm_eps": 0.1}, id="another epsilon"),
        pytest.param({"num_hidden_layers": 1}, id="one layer"),
        pytest.param({"image_size": (32, 48)}, id="wide"),
        pytest.param({"patch_size": 16}, id="four patches"),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
@torch.inference_mode()
def test_fused_logits_equal_those_of_transformers(config: dict[str, Any], batch: int) -> None:
    """In float32, they agree up to the order of summation, for each shape and option; so do the network's own."""
    model = model_of(**config)
    network = network_of(model)
    pixels = noise(batch, *model.vit.embeddings.image_size)
    expected = reference(model, pixels)
    torch.testing.assert_close(reference(network, pixels), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(FusedViT(network, SCALE, SHIFT)(pixels), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_the_error_in_16_bits_is_bounded(dtype: torch.dtype) -> None:
    """The error against float32 is at most 1.5 times that of transformers' forward pass."""
    pixels = noise(64)
    exact = reference(model_of(), pixels)
    model = model_of().to(dtype)
    own = (reference(model, pixels).float() - exact).norm()
    network = network_of(model)
    assert (reference(network, pixels).float() - exact).norm() <= 1.5 * own
    assert (FusedViT(network, SCALE, SHIFT)(pixels).float() - exact).norm() <= 1.5 * own


@torch.inference_mode()
def test_a_fused_form_that_differs_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """If the two disagree on noise, the unfused one is used, with a log message."""
    model = network_of(model_of())
    assert fuse(model, SCALE, SHIFT, lambda pixels: reference(model, pixels)) is not None
    assert fuse(model, SCALE, SHIFT, lambda pixels: reference(model, pixels) + 1) is None
    assert "the unfused one is used" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@torch.inference_mode()
def test_logits_are_float32(dtype: torch.dtype) -> None:
    """They are not rounded to the dtype, in which several would be equal."""
    model = network_of(model_of(num_labels=500).to(dtype))
    logits = FusedViT(model, SCALE, SHIFT)(noise(8))
    assert logits.dtype == torch.float32
    assert dtype == torch.float32 or not torch.equal(logits, logits.to(dtype).float())


@pytest.mark.parametrize("layers", [1, 3])
@torch.inference_mode()
def test_gelu_fused_into_the_matrix_product_gives_the_same_logits(layers: int) -> None:
    """On the CPU, torch's fused GELU is exact; tested with and without the shortcut of the last layer."""
    model = model_of(num_hidden_layers=layers)
    pixels = noise(5)
    logits = FusedViT(network_of(model), SCALE, SHIFT, fuse_gelu=True)(pixels)
    torch.testing.assert_close(logits, reference(model, pixels), rtol=1e-3, atol=1e-3)


def _tanh_gelu(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, use_gelu: bool) -> torch.Tensor:
    """Compute the tanh approximation that CUDA uses."""
    assert use_gelu
    return F.gelu(torch.addmm(bias, x, weight), approximate="tanh")


def _relu(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, use_gelu: bool) -> torch.Tensor:
    return torch.addmm(bias, x, weight).relu()


def _unsupported(*_: Any, **__: Any) -> torch.Tensor:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul")


@pytest.mark.parametrize(
    ("operation", "is_used"),
    [
        pytest.param(_tanh_gelu, True, id="tanh approximation"),
        pytest.param(_relu, False, id="another function"),
        pytest.param(_unsupported, False, id="unsupported"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_gelu_is_fused_only_where_it_is_as_accurate(
    monkeypatch: pytest.MonkeyPatch, operation: Any, is_used: bool, dtype: torch.dtype
) -> None:
    """Otherwise the fused ViT computes the GELU separately."""
    monkeypatch.setattr(fusing, "_may_fuse_gelu", lambda model: True)
    monkeypatch.setattr(torch, "_addmm_activation", operation)
    model = network_of(model_of().to(dtype))
    fused = fuse(model, SCALE, SHIFT, lambda pixels: reference(model, pixels))
    assert fused is not None
    assert fused._fuse_gelu is is_used


@pytest.mark.parametrize(
    ("config", "device", "dtype", "is_tried"),
    [
        pytest.param({}, "cuda", torch.float16, True, id="16 bits on CUDA"),
        pytest.param({}, "cuda", torch.float32, False, id="float32"),
        pytest.param({}, "cpu", torch.bfloat16, False, id="CPU"),
        pytest.param({"hidden_act": "gelu_new"}, "cuda", torch.float16, False, id="another activation"),
    ],
)
def test_when_a_fused_gelu_is_tried(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], device: str, dtype: torch.dtype, is_tried: bool
) -> None:
    """It is tried where it saves memory traffic and its approximation error is below the dtype's rounding."""
    model = network_of(model_of(**config).to(dtype))
    monkeypatch.setattr(type(model), "device", torch.device(device))
    assert fusing._may_fuse_gelu(model) is is_tried


def _add_norm(x: torch.Tensor, added: torch.Tensor, bias: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Compute what the CUDA kernel computes."""
    weight, shift, eps = norm
    x += added.view_as(x) + bias
    return F.layer_norm(x, weight.shape, weight, shift, eps)


def _without_bias(x: torch.Tensor, added: torch.Tensor, bias: torch.Tensor, norm: Norm) -> torch.Tensor:
    return _add_norm(x, added, 0 * bias, norm)


def _refused(*_: Any) -> torch.Tensor:
    raise RuntimeError("CUDA error: invalid argument")


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.inference_mode()
def test_residual_sums_fused_with_the_norms_give_the_same_logits(layers: int) -> None:
    """So does the form without them, which torch.compile gets."""
    model = model_of(num_hidden_layers=layers)
    pixels = noise(5)
    fused = FusedViT(network_of(model), SCALE, SHIFT, add_norm=_add_norm)
    for form in (fused, fused.without_kernels(), fused):
        torch.testing.assert_close(form(pixels), reference(model, pixels), rtol=1e-3, atol=1e-3)
    assert fused.without_kernels()._add_norm is None


@pytest.mark.parametrize(
    ("kernel", "is_used"),
    [
        pytest.param(_add_norm, True, id="as the norm"),
        pytest.param(_without_bias, False, id="another sum"),
        pytest.param(_refused, False, id="refused"),
        pytest.param(None, False, id="none"),
    ],
)
@torch.inference_mode()
def test_residual_sums_are_fused_only_if_the_logits_agree(
    monkeypatch: pytest.MonkeyPatch, kernel: AddNorm | None, is_used: bool
) -> None:
    """Otherwise torch's own operations compute them."""
    monkeypatch.setattr(fusing, "_add_norm_for", lambda model: kernel)
    model = model_of()
    torch.nn.init.normal_(model.vit.layers[0].attention.o_proj.bias)
    network = network_of(model)
    fused = fuse(network, SCALE, SHIFT, lambda pixels: reference(network, pixels))
    assert fused is not None
    assert (fused._add_norm is kernel) is (is_used or kernel is None)
    pixels = noise(2)
    torch.testing.assert_close(fused(pixels), reference(network, pixels), rtol=1e-3, atol=1e-3)


def test_another_architecture_has_no_fused_form() -> None:
    """BEiT uses transformers' implementation."""
    config = BeitConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, image_size=32)
    assert fuse(BeitForImageClassification(config), SCALE, SHIFT, lambda pixels: pixels) is None


def test_threads_by_width_and_device() -> None:
    """Narrow models and models on a GPU use one thread, others one per core."""
    cpu, cores = torch.device("cpu"), available_cores()
    assert [choose_threads(cpu, width) for width in (64, 768, 0)] == [1, cores, cores]
    assert choose_threads(torch.device("cuda:0"), 768) == 1


def test_the_embedded_model_is_fused() -> None:
    """The benchmarks measure the form that is served."""
    model = VisionModel(load_checkpoint("digits"), "cpu", "auto", 1)
    assert isinstance(model._logits, FusedViT)
    assert model.dtype == torch.float32, "bfloat16 is no faster for a model that is 64 wide"
