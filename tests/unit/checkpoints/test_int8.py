"""Int8 checkpoints: which are served, by their verdict and their files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vit_api.checkpoints import int8
from vit_api.checkpoints.checkpoint import EMBEDDED, Checkpoint, CheckpointError, load_checkpoint


@pytest.fixture
def quantized(tmp_path: Path) -> Checkpoint:
    """Return a checkpoint with the files of a quantized network, and no verdict."""
    folder = tmp_path / "digits-int8"
    shutil.copytree(EMBEDDED["digits"], folder)
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_bytes(name.encode())
    return load_checkpoint(str(folder))


def test_what_passed_is_served(quantized: Checkpoint) -> None:
    """The verdict passed, and is on these files."""
    int8.write_verdict(quantized.path, [], {})
    assert int8.check_quantized(quantized) is None


@pytest.mark.parametrize("name", ["openvino_model.bin", "openvino_model.xml", "config.json", "model.safetensors"])
def test_a_changed_file_is_refused(quantized: Checkpoint, name: str) -> None:
    """The error names it."""
    int8.write_verdict(quantized.path, [], {})
    with (quantized.path / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=rf"its {name} is not the file that passed the gate"):
        int8.check_quantized(quantized)


def test_a_new_processor_file_is_refused(quantized: Checkpoint) -> None:
    """It would take precedence over the one whose normalisation the network has."""
    int8.write_verdict(quantized.path, [], {})
    (quantized.path / "processor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"its processor_config\.json is not the file"):
        int8.check_quantized(quantized)


def test_what_failed_is_refused_with_the_reason(quantized: Checkpoint) -> None:
    """The reason is that of the gate."""
    int8.write_verdict(quantized.path, ["Only 3 images were judged."], {})
    with pytest.raises(CheckpointError, match=r"it failed its gate\. Only 3 images were judged\. .*ALLOW_UNVERIFIED"):
        int8.check_quantized(quantized)


def test_a_slow_model_is_served_with_a_warning(quantized: Checkpoint) -> None:
    """The warning has the figures of the machine that it was quantized on; a refusal is about accuracy only."""
    speed = {"images_per_s": 9.04, "default_dtype": "bfloat16", "default_images_per_s": 8.0, "is_worth_it": False}
    int8.write_verdict(quantized.path, [], {"speed": speed})
    assert "it did 9.0 images/s, and in bfloat16 8.0" in str(int8.check_quantized(quantized))
    int8.write_verdict(quantized.path, [], {"speed": speed | {"is_worth_it": True}})
    assert int8.check_quantized(quantized) is None


@pytest.mark.parametrize(("judged_with", "served_with"), [(True, True), (False, True), (False, False)])
def test_a_verdict_holds_on_cpus_as_exact(
    quantized: Checkpoint, monkeypatch: pytest.MonkeyPatch, *, judged_with: bool, served_with: bool
) -> None:
    """VNNI cuts off nothing."""
    int8.write_verdict(quantized.path, [], {"has_vnni": judged_with})
    monkeypatch.setattr(int8, "has_vnni", lambda: served_with)
    assert int8.check_quantized(quantized) is None


def test_a_verdict_of_a_cpu_with_vnni_does_not_hold_without_it(
    quantized: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without VNNI, OpenVINO's sums of products can be cut off."""
    int8.write_verdict(quantized.path, [], {"has_vnni": True})
    monkeypatch.setattr(int8, "has_vnni", lambda: False)
    with pytest.raises(CheckpointError, match="it passed its gate on a CPU with VNNI"):
        int8.check_quantized(quantized)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param("{", id="not JSON"),
        pytest.param("[]", id="a list"),
        pytest.param('{"verdict": "passed"}', id="without files"),
        pytest.param('{"verdict": "passed", "failures": [], "sha256": 3}', id="files are a number"),
    ],
)
def test_without_a_readable_verdict_it_is_refused(quantized: Checkpoint, content: str | None) -> None:
    """The error names the file; the setting makes it a warning."""
    if content is not None:
        (quantized.path / int8.VERDICT).write_text(content)
    with pytest.raises(CheckpointError, match=r"quantization\.json"):
        int8.check_quantized(quantized)
    assert "without a valid verdict" in str(int8.check_quantized(quantized, allow_unverified=True))


def test_a_verdict_without_any_file_does_not_pass(quantized: Checkpoint) -> None:
    """Files that it does not name were not judged."""
    (quantized.path / int8.VERDICT).write_text('{"verdict": "passed", "failures": [], "sha256": {}}')
    with pytest.raises(CheckpointError, match="is not the file that passed"):
        int8.check_quantized(quantized)


def test_a_checkpoint_that_is_not_quantized_is_refused() -> None:
    """The setting does not help: there is nothing to serve."""
    with pytest.raises(CheckpointError, match=r"'digits' can't be used in int8: it has no openvino_model\.xml"):
        int8.check_quantized(load_checkpoint("digits"), allow_unverified=True)


@pytest.mark.parametrize("dtype", ["auto", "int8", "fp8"])
def test_openvino_is_refused_on_a_gpu(dtype: str) -> None:
    """It runs on the CPU only here."""
    with pytest.raises(CheckpointError, match="openvino runs on the CPU only"):
        int8.check_served(load_checkpoint("digits"), dtype, "openvino", ["cuda:0"], allow_unverified=False)


def test_fp8_needs_a_gpu() -> None:
    """The CPU only emulates it."""
    with pytest.raises(CheckpointError, match="fp8 runs on a GPU only"):
        int8.check_served(load_checkpoint("digits"), "fp8", "auto", ["cpu"], allow_unverified=True)


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_a_gpu_needs_a_verdict_of_its_own(quantized: Checkpoint, dtype: str) -> None:
    """That of OpenVINO says nothing about it, nor does that of another dtype."""

    def check() -> str | None:
        return int8.check_served(quantized, dtype, "auto", ["cuda:0"], allow_unverified=False)

    for judged in ({}, {"dtype": dtype}, {"dtype": "int8" if dtype == "fp8" else "fp8", "device": "cuda"}):
        int8.write_verdict(quantized.path, [], judged)
        with pytest.raises(CheckpointError, match=rf"it was judged in .*, not in {dtype} on cuda"):
            check()
    int8.write_verdict(quantized.path, [], {"dtype": dtype, "device": "cuda"})
    assert check() is None
    with pytest.raises(CheckpointError, match="it was judged in"):
        int8.check_quantized(quantized, "int8", "cpu")


@pytest.mark.parametrize(("dtype", "engine"), [("int8", "auto"), ("auto", "openvino")])
def test_without_openvino_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, dtype: str, engine: str) -> None:
    """It is an extra, which few need."""
    monkeypatch.setattr(int8, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"openvino is not installed.*vit-api\[openvino\]"):
        int8.check_served(load_checkpoint("digits"), dtype, engine, ["cpu"], allow_unverified=False)


def test_other_dtypes_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither OpenVINO nor a verdict."""
    monkeypatch.setattr(int8, "find_spec", lambda name: None)
    checkpoint = load_checkpoint("digits")
    assert int8.check_served(checkpoint, "auto", "auto", ["cuda:0"], allow_unverified=False) is None


def test_int8_answers_have_an_identity_of_their_own(quantized: Checkpoint) -> None:
    """So a shared cache does not mix them with float32's, nor with those of other int8 weights."""
    before = int8.identity_of(quantized, "int8")
    assert before != int8.identity_of(quantized, "auto") == quantized.identity()
    assert before != int8.identity_of(quantized, "fp8")
    int8.model_file(quantized.path).write_text("other")
    assert int8.identity_of(quantized, "int8") != before
