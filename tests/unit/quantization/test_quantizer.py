"""An int8 copy of the embedded model, made and run by OpenVINO and NNCF."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from tests.support.quantized import CALIBRATION, digit_pngs, quantize_digits
from vit_api.__main__ import main
from vit_api.checkpoints.checkpoint import EMBEDDED, load_checkpoint
from vit_api.checkpoints.int8 import VERDICT, check_quantized, model_file
from vit_api.decoding.images import decode
from vit_api.environment.cpu_flags import has_vnni
from vit_api.ipc.records import ALL_CLASSES, EMBEDDING, Prediction
from vit_api.model import int8
from vit_api.model.int8 import quantized_products
from vit_api.model.model import VisionModel
from vit_api.model.openvino_network import has_native_bfloat16
from vit_api.model.vit_weights import read_vit_config
from vit_api.quantization.gate import Comparison, Probabilities, compare

pytest.importorskip("openvino", reason="needs .venv-openvino: make openvino-test")
pytest.importorskip("nncf", reason="needs .venv-openvino: make openvino-test")

_OUTLIER = 1000.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the int8 copy."""
    out = tmp_path_factory.mktemp("quantized") / "digits-int8"
    assert quantize_digits(out) == []
    return out


def _predict(model: VisionModel, images: int | slice, parts: int = 0) -> list[Prediction]:
    """Return the predictions of some of the scans."""
    checkpoint = load_checkpoint("digits")
    chosen = digit_pngs()[images if isinstance(images, slice) else slice(images)]
    pixels = [decode(png, checkpoint.preprocessing, exact=False) for png in chosen]
    batches = [pixels[start : start + 8] for start in range(0, len(pixels), 8)]
    return [one for batch in batches for one in model.collect(model.launch(model.stage(batch), parts))]


def test_the_copy_passes_and_is_served(folder: Path) -> None:
    """Its verdict has the figures, and says what it is about."""
    verdict = json.loads((folder / VERDICT).read_text())
    assert verdict["verdict"] == "passed"
    assert verdict["comparison"]["images"] >= 1000
    assert verdict["speed"]["ratio"] > 0
    assert verdict["has_vnni"] is has_vnni()
    warning = check_quantized(load_checkpoint(str(folder)))
    assert (warning is None) is verdict["speed"]["is_worth_it"]


@pytest.mark.parametrize("images", [1, 3, 8])
def test_the_server_runs_it_in_batches_of_any_size(folder: Path, images: int) -> None:
    """The answers are close to float32's, but not the same: it is not float32 that runs."""
    model = VisionModel(load_checkpoint(str(folder)), "cpu", "int8", 1, max_batch_size=8)
    model.prepare("auto")
    assert (model.engine.name, str(model.dtype)) == ("openvino", "torch.int8")
    reference = VisionModel(load_checkpoint("digits"), "cpu", "float32", 1, max_batch_size=8)
    found, expected = _predict(model, images), _predict(reference, images)
    assert [one.indices[0] for one in found] == [one.indices[0] for one in expected]
    assert [one.logits for one in found] != [one.logits for one in expected]


def test_embeddings(folder: Path) -> None:
    """They are those of the int8 network, and have length 1."""
    model = VisionModel(load_checkpoint(str(folder)), "cpu", "int8", 1, max_batch_size=8)
    reference = VisionModel(load_checkpoint("digits"), "cpu", "float32", 1, max_batch_size=8)
    for ours, other in zip(_predict(model, 3, EMBEDDING), _predict(reference, 3, EMBEDDING), strict=True):
        found, expected = (np.frombuffer(one.embedding or b"", "<f4") for one in (ours, other))
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-4)
        assert found @ expected > 0.95


@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_that_int8_breaks_is_left_out(tmp_path: Path, layer: int) -> None:
    """Only this one: every row of its matrix has an outlier, beside which the other weights round to zero.

    It is that of a hidden unit that is always zero, so float32's answers are as good as before.
    """
    model = tmp_path / "outliers"
    shutil.copytree(EMBEDDED["digits"], model)
    weights = load_file(model / "model.safetensors")
    name = f"vit.encoder.layer.{layer}"
    weights[f"{name}.intermediate.dense.bias"][7] = -1000  # the GELU of which is 0
    weights[f"{name}.output.dense.weight"][:, 7] = _OUTLIER
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert quantize_digits(tmp_path / "out", model=str(model)) == []
    (left_out,) = json.loads((tmp_path / "out" / VERDICT).read_text())["left_out"]
    assert _largest_weight(model_file(tmp_path / "out"), left_out) > _OUTLIER / 2  # SmoothQuant scales it


def _largest_weight(file: Path, name: str) -> float:
    """Return the largest weight of a matrix product that is not quantized."""
    import openvino

    operations = openvino.Core().read_model(file).get_ordered_ops()
    product = next(one for one in operations if one.get_friendly_name() == name)
    return float(product.input_value(1).get_node().data.max())


def test_the_rest_runs_in_the_dtype_that_was_judged(folder: Path) -> None:
    """It is in the network's file, whose digest the verdict has."""
    verdict = json.loads((folder / VERDICT).read_text())
    model = VisionModel(load_checkpoint(str(folder)), "cpu", "int8", 1)
    assert verdict["float_dtype"] == model.float_dtype
    assert model.float_dtype == ("bfloat16" if has_native_bfloat16() else "float32")


def test_a_cpu_without_bfloat16_runs_the_rest_in_float32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are those of the same classes."""
    monkeypatch.setattr("vit_api.model.openvino_network.has_native_bfloat16", lambda: False)
    model = VisionModel(load_checkpoint(str(folder)), "cpu", "int8", 1, max_batch_size=8)
    assert model.float_dtype == "float32"
    expected = _predict(VisionModel(load_checkpoint("digits"), "cpu", "float32", 1, max_batch_size=8), 8)
    assert [one.indices[0] for one in _predict(model, 8)] == [one.indices[0] for one in expected]


def test_the_patch_projection_and_the_classifier_stay_out_of_int8(folder: Path) -> None:
    """The other products of the four layers are quantized."""
    import openvino

    network = openvino.Core().read_model(model_file(folder))
    products = [one.get_friendly_name() for one in network.get_ordered_ops() if one.get_type_name() == "MatMul"]
    quantized = quantized_products(network)
    assert set(products) - set(quantized) == {products[0], products[-1]}


def test_where_bfloat16_fails_the_gate_the_rest_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of both are judged, as they are served."""
    judged: list[str] = []

    def first_fails(self: Comparison, min_images: int = 0) -> list[str]:
        judged.append(str(self))
        return ["It differs too much."] if len(judged) == 1 else []

    monkeypatch.setattr(Comparison, "failures", first_fails)
    monkeypatch.setattr("vit_api.model.openvino_network.has_native_bfloat16", lambda: True)
    quantize_digits(tmp_path / "out", judged=32)
    verdict = json.loads((tmp_path / "out" / VERDICT).read_text())
    assert (verdict["float_dtype"], verdict["left_out"]) == ("float32", [])
    assert VisionModel(load_checkpoint(str(tmp_path / "out")), "cpu", "int8", 1).float_dtype == "float32"


def test_a_multi_label_model_is_judged_by_its_sigmoids(tmp_path: Path) -> None:
    """The figures are those of the probabilities that are served."""
    model = tmp_path / "multi-label"
    shutil.copytree(EMBEDDED["digits"], model)
    config = json.loads((model / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (model / "config.json").write_text(json.dumps(config))
    assert quantize_digits(tmp_path / "out", model=str(model)) == []
    verdict = json.loads((tmp_path / "out" / VERDICT).read_text())["comparison"]
    sigmoids = [
        _sigmoids(VisionModel(load_checkpoint(str(path)), "cpu", dtype, 1))
        for path, dtype in ((model, "float32"), (tmp_path / "out", "int8"))
    ]
    found = compare(*sigmoids)
    assert found.mean_difference == pytest.approx(verdict["mean_difference"], rel=0.05)
    assert found.largest_difference == pytest.approx(verdict["largest_difference"], rel=0.05)


def _sigmoids(model: VisionModel) -> Probabilities:
    """Return the probabilities [images, classes] of the scans that are judged."""
    rows = []
    for prediction in _predict(model, slice(CALIBRATION, None), ALL_CLASSES):
        row = np.empty(len(prediction.indices))
        row[list(prediction.indices)] = prediction.logits
        rows.append(1 / (1 + np.exp(-row)))
    return np.stack(rows)


def test_in_float32_the_copy_is_the_original(folder: Path) -> None:
    """config.json says how the network beside the weights is quantized; the weights are the original ones."""
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "openvino", "bits": 8, "verdict": VERDICT}
    assert read_vit_config(folder) == read_vit_config(EMBEDDED["digits"]) is not None
    pixels = torch.rand((2, 3, 32, 32))
    models = [AutoModelForImageClassification.from_pretrained(path) for path in (folder, EMBEDDED["digits"])]
    with torch.inference_mode():
        copy, original = (model(pixels).logits for model in models)
    torch.testing.assert_close(copy, original, rtol=0, atol=0)


@pytest.mark.parametrize("is_there", [True, False])
def test_without_vnni_weights_take_half_the_range(monkeypatch: pytest.MonkeyPatch, *, is_there: bool) -> None:
    """A sum of two products in 16 bits then cuts off nothing, at the price of a bit of the weights."""
    import nncf

    chosen: list[nncf.AdvancedQuantizationParameters] = []
    monkeypatch.setattr(nncf, "quantize", lambda *_, advanced_parameters, **__: chosen.append(advanced_parameters))
    monkeypatch.setattr(int8, "has_vnni", lambda: is_there)
    int8.quantize(VisionModel(load_checkpoint("digits"), "cpu", "float32", 1).export(), [])
    assert chosen[0].overflow_fix is (nncf.OverflowFix.FIRST_LAYER if is_there else nncf.OverflowFix.ENABLE)


def test_too_few_images_fail(tmp_path: Path) -> None:
    """Though the answers agree, the verdict is "failed"."""
    failures = quantize_digits(tmp_path / "out", judged=200)
    assert failures[0].startswith("Only 200 images were judged")
    assert json.loads((tmp_path / "out" / VERDICT).read_text())["verdict"] == "failed"


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["vit-api", "quantize", *map(str, arguments)])
    return main()


def test_the_command_says_how_many_images_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usage error, before anything is loaded."""
    (tmp_path / "one.png").write_bytes(digit_pngs()[0])
    assert _call(monkeypatch, "--model", "digits", "--images", tmp_path, "--out", tmp_path / "out") == 2
    assert "has 1 files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory with files is refused."""
    (tmp_path / "one.png").write_bytes(digit_pngs()[0])
    assert _call(monkeypatch, "--model", "digits", "--images", tmp_path, "--out", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
