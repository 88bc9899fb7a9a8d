"""Plain ViTs in timm's format give timm's answers, in the fused form, without timm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.samples import encode, photos
from tests.support.timm_files import forward, make_plain_vit
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.decoding.images import decode
from vit_api.model.model import VisionModel
from vit_api.model.vit import FusedViT


@pytest.mark.parametrize("size", [(224, 224), (96, 160)], ids=str)
@pytest.mark.parametrize(
    "architecture",
    ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit3_tiny_patch16_224", "vit_tiny_patch16_224_miil"],
)
def test_answers_equal_a_forward_pass_step_by_step(architecture: str, size: tuple[int, int], tmp_path: Path) -> None:
    """With layer scales, a class token without a position, and no bias of queries, keys and values."""
    mode = "center" if size[0] == size[1] else "squash"
    folder = make_plain_vit(tmp_path / "model", architecture, input_size=[3, *size], crop_mode=mode)
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.labels[3] == "class 3"
    model = VisionModel(checkpoint, "cpu", "float32", cpu_threads=1, max_batch_size=8)
    assert isinstance(model._logits, FusedViT)
    pixels = [decode(encode(photo), checkpoint.preprocessing, exact=True) for photo in photos().values()]
    inputs = (torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    expected = forward(load_file(folder / "model.safetensors"), inputs).softmax(dim=-1).numpy()
    found = np.zeros_like(expected)
    for row, prediction in zip(found, model.collect(model.launch(model.stage(pixels))), strict=True):
        row[list(prediction.indices)] = prediction.probabilities
    assert np.ptp(expected, axis=0).max() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        pytest.param("vit_tiny_patch16_224", {}, id="vit"),
        pytest.param("vit_tiny_patch16_224", {"crop_mode": "squash", "crop_pct": 1.0}, id="squash"),
        pytest.param("vit_tiny_patch16_224", {"interpolation": "bilinear", "crop_pct": 0.95}, id="bilinear"),
        pytest.param("vit_tiny_patch16_224", {"crop_pct": None, "mean": None, "std": None}, id="defaults"),
        pytest.param("deit3_small_patch16_224", {}, id="deit3"),
        pytest.param("deit_tiny_distilled_patch16_224", {}, id="distilled"),
        pytest.param("vit_small_patch32_224", {}, id="patches of 32"),
        pytest.param("resnet10t", {}, id="resnet"),
        pytest.param("eva02_tiny_patch14_224", {}, id="eva"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_answers_equal_timm(architecture: str, changes: dict[str, object], tmp_path: Path) -> None:
    """Its own transform and forward pass, with the optional package; also architectures that need it."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(architecture, num_classes=12).eval()
    model.pretrained_cfg |= changes
    names = [f"class {index}" for index in range(12)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name:
                parameter.fill_(0.5)
    timm.models.save_for_hf(model, tmp_path, {"label_names": names}, safe_serialization=True)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.labels == tuple(names)
    settings = timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    transform = timm.data.create_transform(**settings, is_training=False)
    ours = VisionModel(checkpoint, "cpu", "float32", cpu_threads=1, max_batch_size=8)
    for photo in photos().values():
        picture = photo.crop((0, 0, photo.width - 1, photo.height - 2))
        pixels = decode(encode(picture), checkpoint.preprocessing, exact=True)
        inputs = transform(picture)[None]
        preprocessing = checkpoint.preprocessing
        normalised = (pixels * preprocessing.scale - preprocessing.mean) / preprocessing.std
        np.testing.assert_allclose(np.moveaxis(normalised, -1, 0), inputs[0], atol=1e-5)
        with torch.inference_mode():
            expected = model(inputs).softmax(dim=-1)[0].numpy()
        (prediction,) = ours.collect(ours.launch(ours.stage([pixels])))
        np.testing.assert_allclose(prediction.probabilities, expected[list(prediction.indices)], atol=1e-3)
