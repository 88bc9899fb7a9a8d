"""Networks exported to OpenVINO."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.model.model import VisionModel

pytest.importorskip("openvino", reason="needs .venv-openvino: make openvino-test")


def test_the_engine_openvino_returns_what_the_eager_one_does() -> None:
    """It is kept, so it passed the check of engines; batches of any size run without padding."""
    models = {}
    for engine in ("eager", "openvino"):
        models[engine] = VisionModel(load_checkpoint("digits"), "cpu", "float32", 1, max_batch_size=4)
        models[engine].prepare(engine)
        assert (models[engine].engine.name, models[engine].engine.sizes) == (engine, ())
    noise = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    ours, other = (
        [prediction.logits for prediction in model.collect(model.launch(model.stage(noise)))]
        for model in models.values()
    )
    np.testing.assert_allclose(ours, other, atol=1e-3)


def test_an_exported_network_has_logits_and_features() -> None:
    """They are those of the network, for another number of images than it was traced with."""
    from vit_api.model.openvino_network import OpenVINONetwork

    model = VisionModel(load_checkpoint("digits"), "cpu", "float32", 1)
    network = OpenVINONetwork(model.export(), 1)
    pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.forward(pixels)
    for found, wanted in zip(network.run(pixels), expected, strict=True):
        assert found is not None
        assert wanted is not None
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
