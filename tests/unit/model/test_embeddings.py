"""Embeddings: they are what transformers' feature extraction gives, scaled to length 1, alone and in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from tests.support.classifiers import make_classifier
from tests.support.samples import make_checkpoint
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.ipc.records import ALL_CLASSES, EMBEDDING
from vit_api.model.embeddings import find_head
from vit_api.model.model import VisionModel


def _images(model: VisionModel, count: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *model.pixel_shape), np.uint8))


def _expected(folder: Path, model: VisionModel, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the pooled output of transformers' base model; of a ViT without a pooler, its class token."""
    base = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float() * model._scale + model._shift
    with torch.inference_mode():
        output = base(pixel_values=pixels)
    has_pooler = "pooler_output" in output and not isinstance(base, transformers.ViTModel)
    pooled = output.pooler_output.flatten(1) if has_pooler else output.last_hidden_state[:, 0]
    return nn.functional.normalize(pooled, dim=-1).numpy()


@pytest.mark.parametrize("family", ["vit", "convnext", "resnet", "swin", "efficientnet", "mobilenet_v2"])
def test_embeddings_are_transformers_pooled_output(tmp_path: Path, family: str) -> None:
    """Each image's is the same alone and in a batch, and together with all classes."""
    folder = tmp_path / "model"
    if family == "vit":
        make_checkpoint(folder, "vit", 30)
    else:
        make_classifier(folder, family)
    model = VisionModel(load_checkpoint(str(folder)), "cpu", "float32", cpu_threads=1, max_batch_size=8)
    images = _images(model, 3)
    found = model.collect(model.launch(model.stage(images), EMBEDDING))
    both = model.collect(model.launch(model.stage(images), EMBEDDING | ALL_CLASSES))
    plain = model.collect(model.launch(model.stage(images)))
    alone = model.collect(model.launch(model.stage(images[1:2]), EMBEDDING))
    vectors = np.array([one.embedding_values() for one in found])
    np.testing.assert_allclose(vectors, _expected(folder, model, images), atol=1e-4)
    np.testing.assert_allclose(alone[0].embedding_values(), vectors[1], atol=1e-5)
    np.testing.assert_allclose([one.embedding_values() for one in both], vectors, atol=1e-5)
    for one, other, full in zip(plain, found, both, strict=True):
        assert (one.indices, one.embedding) == (other.indices, b"")
        assert full.indices[: len(one.indices)] == one.indices
        assert len(full.indices) == len(load_checkpoint(str(folder)).labels)
        np.testing.assert_allclose(other.logits, one.logits, atol=1e-4)


def test_all_classes_by_default() -> None:
    """A model that always returns all classes needs no second way to run."""
    model = VisionModel(load_checkpoint("digits"), "cpu", "float32", 1, all_classes=True)
    (found,) = model.collect(model.launch(model.stage(_images(model, 1)), ALL_CLASSES))
    assert len(found.indices) == 10


class _TwoLayers(nn.Module):
    """A classifier without a head whose input is one vector for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x).mean(dim=(2, 3))


def test_no_head() -> None:
    """If the last layer reads more than a vector for each image, there are no embeddings."""
    network, x = _TwoLayers(), torch.zeros(1, 3, 2, 2)
    assert find_head(network, lambda: network(x)) is None
