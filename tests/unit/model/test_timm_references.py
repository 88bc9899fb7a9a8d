"""Plain ViTs of timm run in the fused form with the logits that timm gives them, without timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import timm_references
from vit_api.checkpoints.checkpoint import CheckpointError, load_checkpoint
from vit_api.checkpoints.timm_architectures import NotPlain, recognise
from vit_api.model.model import VisionModel
from vit_api.model.plain_vit import load_plain_vit, read_plain_vit
from vit_api.model.vit import FusedViT

REFERENCES: dict[str, Any] = json.loads(timm_references.PATH.read_text())
ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}
SQUARE = (64, 64)


@pytest.mark.parametrize("architecture", REFERENCES["models"])
def test_logits_equal_those_of_timm(architecture: str, tmp_path: Path) -> None:
    """Of each kind: rotary positions, gates, norms, registers, pooling, biases, layer scales."""
    reference = REFERENCES["models"][architecture]
    folder = timm_references.save_checkpoint(tmp_path, architecture, reference)
    plain = read_plain_vit(folder)
    assert plain is not None
    network = load_plain_vit(folder, plain, torch.float32, torch.device("cpu"))
    scale, shift = torch.full((3, 1, 1), 1 / 127.5), torch.full((3, 1, 1), -1.0)
    pixels = torch.from_numpy(timm_references.images(*network.config.image_size))
    expected = torch.tensor(reference["logits"])
    assert (expected[0] - expected[1]).abs().max() > 0.1
    with torch.inference_mode():
        unfused = network(pixel_values=pixels.permute(0, 3, 1, 2) * scale + shift).logits
        fused = FusedViT(network, scale, shift)(pixels)
    torch.testing.assert_close(unfused, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["eva02_base_patch16_clip_224", "vit_medium_patch16_reg4_gap_256"])
def test_a_checkpoint_is_served(architecture: str, dtype: str, tmp_path: Path) -> None:
    """In the fused form, with embeddings."""
    reference = REFERENCES["models"][architecture]
    checkpoint = load_checkpoint(str(timm_references.save_checkpoint(tmp_path, architecture, reference)))
    model = VisionModel(checkpoint, "cpu", dtype, cpu_threads=1, max_batch_size=2)
    assert isinstance(model._logits, FusedViT)
    pixels = list(timm_references.images(*checkpoint.preprocessing.crop))
    predictions = model.collect(model.launch(model.stage(pixels)))
    for prediction, logits in zip(predictions, reference["logits"], strict=True):
        found = torch.tensor(prediction.probabilities)
        expected = torch.tensor(logits).softmax(0)[list(prediction.indices)]
        torch.testing.assert_close(found, expected, atol=1e-4 if dtype == "float32" else 0.1, rtol=0)


@pytest.mark.parametrize("architecture", REFERENCES["architectures"])
def test_what_tensors_do_not_show_is_as_in_timm(architecture: str) -> None:
    """Every architecture is unknown, or has timm's heads, epsilon, activation, pooling and frequencies."""
    heads, eps, activation, pooling, temperature = REFERENCES["architectures"][architecture]
    shapes = _plain_shapes(8 * heads)
    try:
        plain = recognise({"architecture": architecture, "global_pool": pooling}, shapes, SQUARE)
    except NotPlain:
        return
    assert (plain.heads, plain.eps) == (heads, eps)
    assert plain.activation == ACTIVATIONS.get(activation, "gelu")  # with a gate, the activation is not read
    assert plain.pools_patches == (pooling == "avg")
    assert (plain.rotary.temperature if plain.rotary else None) == temperature
    assert recognise({"architecture": architecture}, shapes, SQUARE).pools_patches in (pooling == "avg", False)


def test_most_architectures_are_native() -> None:
    """The table of timm's plain ViTs is not refused by mistake."""
    native = 0
    for architecture, (heads, _, _, pooling, _) in REFERENCES["architectures"].items():
        try:
            recognise({"architecture": architecture, "global_pool": pooling}, _plain_shapes(8 * heads), SQUARE)
        except NotPlain:
            continue
        native += 1
    assert native > 100


def _plain_shapes(width: int) -> dict[str, list[int]]:
    shapes = {
        "cls_token": [1, 1, width],
        "pos_embed": [1, 17, width],
        "patch_embed.proj.weight": [width, 3, 16, 16],
        "head.weight": [12, width],
        "head.bias": [12],
        "blocks.0.attn.qkv.weight": [3 * width, width],
    }
    for name in ("norm", "blocks.0.norm1", "blocks.0.norm2"):
        shapes |= {f"{name}.weight": [width], f"{name}.bias": [width]}
    for name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        shapes |= {f"blocks.0.{name}.weight": [width, width], f"blocks.0.{name}.bias": [width]}
    return shapes


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        pytest.param("resnet50", {}, "needs the package timm; install", id="not a ViT"),
        pytest.param("vit_base_patch16_siglip_224", {"attn_pool.latent": [1, 1, 96]}, "by attention", id="map"),
        pytest.param("deit_base_distilled_patch16_224", {"dist_token": [1, 1, 96]}, "for distillation", id="distilled"),
        pytest.param("vit_base_r50_s16_224", {"patch_embed.backbone.x": [1]}, "convolutional", id="hybrid"),
        pytest.param("vit_base_patch16_rope_mixed_224", {"rope.freqs": [1]}, "are learned", id="mixed rope"),
        pytest.param("vit_pwee_patch16_reg1_gap_256", {"blocks.0.in_proj.weight": [1]}, "side by side", id="parallel"),
        pytest.param("vit_base_patch16_18x2_224", {"blocks.0.attns.0.x": [1]}, "side by side", id="18x2"),
        pytest.param("vit_dwee_patch16_reg1_gap_256", {"blocks.0.attn.lambda_q1": [1]}, "differential", id="diff"),
        pytest.param("vit_base_patch16_224", {"blocks.0.attn.q_norm.weight": [8]}, "queries and keys", id="qk norm"),
        pytest.param("vit_base_patch16_rpn_224", {}, "norms follow", id="res-post-norm"),
        pytest.param("eva02_enormous_patch14_clip_224", {}, "norms follow", id="post-norm"),
        pytest.param("vit_base_patch16_radio_v3", {}, "no last norm", id="radio"),
        pytest.param("vit_base_patch16_224", {"norm.weight": None, "norm.bias": None}, "no last norm", id="no norm"),
        pytest.param("vit_base_patch16_224", {"fc_norm.weight": [96]}, "two last norms", id="two norms"),
        pytest.param("vit_base_patch16_224", {"norm.bias": None}, "norms have no bias", id="RMS norm"),
        pytest.param("vit_base_patch16_224", {"extra": [1]}, "a tensor extra", id="extra tensor"),
        pytest.param("vit_base_patch16_224", {"blocks.0.mlp.fc2.bias": None}, "no tensor mlp.fc2.bias", id="missing"),
        pytest.param("vit_base_patch16_224", {"pos_embed": [1, 197, 96]}, "not those of 4x4 patches", id="other grid"),
        pytest.param("vit_base_patch16_224", {"model_args": {"act_layer": "relu"}}, "act_layer", id="arguments"),
        pytest.param("vit_base_patch16_224", {"model_args": {"num_heads": 7}}, "multiple of 7", id="heads"),
        pytest.param("vit_base_patch16_224", {"global_pool": "max"}, "global_pool is 'max'", id="pooling"),
        pytest.param("vit_base_patch16_224", {"cls_token": None, "pos_embed": [1, 16, 96]}, "no cls_token", id="class"),
    ],
)
def test_others_are_refused_with_the_reason(
    architecture: str, changes: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without timm, the start says what of the architecture is not plain, and what to install."""
    monkeypatch.setattr("vit_api.checkpoints.timm_format.importlib.util.find_spec", lambda _: None)
    shapes = _plain_shapes(96) | {name: shape for name, shape in changes.items() if not isinstance(shape, dict | str)}
    reference = {
        "shapes": {name: shape for name, shape in shapes.items() if shape is not None},
        "input_size": [3, *SQUARE],
        "global_pool": changes.get("global_pool", "token"),
        "model_args": changes.get("model_args"),
    }
    folder = timm_references.save_checkpoint(tmp_path, architecture, reference)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(str(folder))
    assert f"its architecture {architecture} needs the package timm" in str(caught.value)
    assert str(caught.value).endswith("install it with `pip install -r requirements-timm.txt`.")


def test_another_number_of_classes_than_labels_is_refused(tmp_path: Path) -> None:
    """Instead of labels that are missing or wrong."""
    reference = {"shapes": _plain_shapes(96), "input_size": [3, *SQUARE], "global_pool": "token", "model_args": None}
    reference["shapes"] |= {"head.weight": [11, 96], "head.bias": [11]}
    folder = timm_references.save_checkpoint(tmp_path, "vit_base_patch16_224", reference)
    with pytest.raises(CheckpointError, match=r"its weights have 11 classes, and its config\.json 12"):
        load_checkpoint(str(folder))
