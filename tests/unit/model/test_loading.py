"""Loading a network in the first dtype that represents it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from vit_api.model import precision
from vit_api.model.loading import load_network
from vit_api.model.precision import choose_dtypes

SCALE = torch.full((3, 1, 1), 1 / 127.5)
SHIFT = torch.full((3, 1, 1), -1.0)
PIXEL_SHAPE = (32, 32, 3)
AMPERE = (torch.float16, torch.bfloat16)
TURING = (torch.float16, torch.float32)


def checkpoint(folder: Path, gain: float = 1.0) -> Path:
    """Save a small ViT whose activations are multiplied by `gain` within a layer, and divided by it again."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48,
        num_attention_heads=3,
        num_hidden_layers=2,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        num_labels=7,
        initializer_range=0.1,
        hidden_act="relu",
    )
    model = ViTForImageClassification(config)
    mlp = model.vit.layers[0].mlp
    with torch.no_grad():
        mlp.fc1.weight *= gain
        mlp.fc2.weight /= gain
    model.save_pretrained(folder)
    return folder


def load(folder: Path, dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    return load_network(folder, dtypes, PIXEL_SHAPE, SCALE, SHIFT).dtype


@pytest.mark.parametrize("dtypes", [pytest.param(AMPERE, id="ampere"), pytest.param(TURING, id="turing")])
def test_float16_is_kept_where_it_is_accurate(
    tmp_path: Path, dtypes: tuple[torch.dtype, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """An ordinary checkpoint is loaded in the preferred dtype, without a warning."""
    assert load(checkpoint(tmp_path), dtypes) == torch.float16
    assert not caplog.messages


@pytest.mark.parametrize("dtypes", [pytest.param(AMPERE, id="ampere"), pytest.param(TURING, id="turing")])
def test_a_network_that_overflows_float16_is_loaded_in_the_next_dtype(
    tmp_path: Path, dtypes: tuple[torch.dtype, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Activations beyond 65,504 make its output infinite or NaN; one warning names the dtype."""
    assert load(checkpoint(tmp_path, gain=1e6), dtypes) == dtypes[1]
    (message,) = caplog.messages
    assert "torch.float16" in message


def test_a_network_that_underflows_float16_is_loaded_in_the_next_dtype(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights below 6e-8 become zero, and the output is finite but wrong."""
    assert load(checkpoint(tmp_path, gain=1e-7), AMPERE) == torch.bfloat16
    assert "differ by" in caplog.text


def test_a_single_dtype_is_not_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A dtype that the user sets is used as it is."""
    assert load(checkpoint(tmp_path, gain=1e6), (torch.float16,)) == torch.float16
    assert not caplog.messages


@pytest.mark.parametrize(
    ("has_bfloat16", "expected"), [pytest.param(True, AMPERE, id="ampere"), pytest.param(False, TURING, id="turing")]
)
def test_auto_prefers_float16_on_cuda(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, expected: tuple[torch.dtype, ...]
) -> None:
    """It rounds less than bfloat16; the following dtypes depend on native support."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has_bfloat16)
    assert choose_dtypes("auto", torch.device("cuda:0"), 768) == expected
    assert choose_dtypes("bfloat16", torch.device("cuda:0"), 768) == (torch.bfloat16,)


@pytest.mark.parametrize(
    ("flags", "width", "expected"),
    [
        pytest.param({"avx512_bf16"}, 768, torch.bfloat16, id="avx512-bf16"),
        pytest.param({"avx512_bf16"}, 64, torch.float32, id="narrow"),
        pytest.param({"avx2"}, 768, torch.float32, id="avx2"),
    ],
)
def test_auto_on_the_cpu(monkeypatch: pytest.MonkeyPatch, flags: set[str], width: int, expected: torch.dtype) -> None:
    """It selects bfloat16 if the processor supports it natively and the model is wide enough."""
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    assert choose_dtypes("auto", torch.device("cpu"), width) == (expected,)
