"""Engines: selection, batch sizes, padding, and the fallback to eager."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.samples import make_checkpoint
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.ipc.records import Prediction
from vit_api.lit_api import ViTAPI
from vit_api.model import cuda_graphs, engines
from vit_api.model.compile_cache import keep_compiled_code
from vit_api.model.engines import Engine, batch_sizes, deviation, make_engine, pack, warmed_batch_sizes
from vit_api.model.model import VisionModel
from vit_api.model.precision import disable_cudnn_attention

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler: g++")


def arithmetic(pixels: torch.Tensor) -> torch.Tensor:
    """A fake network: the logits of the classes are the first pixels."""
    logits = pixels.flatten(1)[:, :12].to(torch.float32) / 64
    return pack(logits, 3)


def inputs(images: int) -> torch.Tensor:
    return torch.zeros((images, 2, 2, 3), dtype=torch.uint8)


def make(wanted: str, compiled: Callable[[], engines.Network], max_batch_size: int = 8) -> Engine:
    sizes = batch_sizes("compile", max_batch_size)
    return make_engine(wanted, arithmetic, compiled, inputs, sizes=sizes, max_deviation=1e-3)


def noise(batch: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 2, 2, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("engine", "most", "sizes"),
    [
        ("cudagraph", 1, (1,)),
        ("cudagraph", 9, (1, 2, 3, 4, 6, 8, 9)),
        ("cudagraph", 32, (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32)),
        ("cudagraph", 33, (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 33)),
        ("compile", 12, (1, 2, 4, 8, 12)),
        ("compile", 40, (1, 2, 4, 8, 16, 24, 32, 40)),
        ("compile", 256, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)),
    ],
)
def test_sizes_end_with_the_largest_batch(engine: str, most: int, sizes: tuple[int, ...]) -> None:
    """The maximum batch size is always one of the sizes."""
    assert batch_sizes(engine, most) == sizes


def test_padding_is_bounded() -> None:
    """Batches of 3 or more images are padded by at most a quarter."""
    sizes = batch_sizes("cudagraph", 256)
    assert all((-batch + min(size for size in sizes if size >= batch)) / batch <= 0.25 for batch in range(3, 257))


@pytest.mark.parametrize(
    ("device", "most", "sizes"),
    [("cuda", 256, (1, 2, 4, 8, 16, 24, 32)), ("cuda", 12, (1, 2, 4, 8, 12)), ("cpu", 64, (1, 32)), ("cpu", 1, (1,))],
)
def test_only_cuda_is_warmed_up_for_many_sizes(device: str, most: int, sizes: tuple[int, ...]) -> None:
    """On the CPU, where a large batch takes seconds, one shows that the memory suffices."""
    assert warmed_batch_sizes(torch.device(device), most) == sizes


def test_auto_is_eager_on_the_cpu_and_graphs_on_cuda() -> None:
    """Any other setting is used unchanged."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    assert [engines.choose_engine("auto", device) for device in (cpu, cuda)] == ["eager", "cudagraph"]
    assert [engines.choose_engine("compile", device) for device in (cpu, cuda)] == ["compile", "compile"]


def test_padding_does_not_change_results() -> None:
    """Each batch size gives the results of the eager engine, after batches of other sizes, without the padding."""
    seen: list[int] = []

    def network(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return arithmetic(pixels)

    engine = make("compile", lambda: network, max_batch_size=12)
    assert engine.name == "compile"
    seen.clear()
    for size in (12, 1, 11, 3, 9, 2, 5, 4):
        pixels = noise(size)
        torch.testing.assert_close(engine.run(pixels), arithmetic(pixels))
    assert seen == [12, 1, 12, 4, 12, 2, 8, 4]


def test_a_batch_above_the_maximum_runs_eagerly() -> None:
    """The loop never sends one, but it would be run correctly."""
    pixels = noise(9)
    torch.testing.assert_close(make("compile", lambda: arithmetic).run(pixels), arithmetic(pixels))


def _fail() -> engines.Network:
    raise RuntimeError("no compiler\nand a hundred lines more")


def _scale_by_batch(pixels: torch.Tensor) -> torch.Tensor:
    """A network whose images influence each other, which is not allowed."""
    return arithmetic(pixels - pixels.float().mean(dim=0).to(torch.uint8))


def _out_of_memory(pixels: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("wanted", "compiled", "why"),
    [
        pytest.param("compile", _fail, "no compiler", id="fails to compile"),
        pytest.param("compile", lambda: _out_of_memory, "out of memory", id="out of memory"),
        pytest.param("compile", lambda: lambda pixels: arithmetic(pixels) * 1.5, "results deviate", id="wrong results"),
        pytest.param("compile", lambda: lambda pixels: arithmetic(pixels) * torch.nan, "deviate by nan", id="nan"),
        pytest.param("compile", lambda: lambda pixels: arithmetic(pixels)[:, :4], "deviate by nan", id="wrong shape"),
        pytest.param("compile", lambda: _scale_by_batch, "results deviate", id="padding matters"),
        pytest.param("cudagraph", _fail, "no CUDA device", id="no CUDA"),
    ],
)
def test_an_engine_that_fails_or_disagrees_is_not_used(
    wanted: str, compiled: Callable[[], engines.Network], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The eager engine is used, and one warning gives the reason."""
    engine = make(wanted, compiled)
    assert (engine.name, engine.run, engine.sizes) == ("eager", arithmetic, ())
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert why in warning.getMessage()
    assert wanted in warning.getMessage()
    assert "\n" not in warning.getMessage()


def test_the_check_covers_full_batches_and_two_at_once() -> None:
    """It detects results that are overwritten by the next batch, or wrong only in the largest one."""
    seen: list[int] = []
    output = torch.zeros(8, 7)

    def network(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return arithmetic(pixels)

    assert make("compile", lambda: network).name == "compile"
    assert seen == [1, 2, 4, 8, 8, 1]

    def wrong_if_full(pixels: torch.Tensor) -> torch.Tensor:
        packed = arithmetic(pixels)
        packed[7:] *= 1.5
        return packed

    assert make("compile", lambda: wrong_if_full).name == "eager"

    def late(pixels: torch.Tensor) -> torch.Tensor:
        """Return the previous batch's results, as if the copy had not been awaited."""
        before = output[: len(pixels)].clone()
        output[: len(pixels)] = arithmetic(pixels)
        return output[: len(pixels)] if not before.any() else before

    assert make("compile", lambda: late).name == "eager"


def test_the_first_error_of_a_failed_capture_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ending the capture raises a second error that hides the cause."""

    def fail(*_: object) -> Any:
        try:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(engines, "_padded", fail)
    assert make("cudagraph", _fail).name == "eager"
    assert "eager instead: RuntimeError: CUDA error: operation not permitted when stream is capturing" in caplog.text


def test_deviation_ignores_ties() -> None:
    """Classes with equal logits may be swapped, also with one outside the top k; a wrong class counts."""
    expected = torch.tensor([[2.0, 1.0, 1.0, -0.5, 3, 1, 7, 2, 0.5]])
    assert deviation(expected, torch.tensor([[2.0, 1.0, 1.0, -0.5, 3, 7, 1, 9, 0.5]])) == 0
    assert deviation(expected, torch.tensor([[2.0, 1.0, 1.0, -0.5, 1, 3, 7, 2, 0.5]])) > 0.2
    assert deviation(expected, torch.tensor([[2.0, 1.0, 1.0, -0.5, 3, 1, 7, 0, 0.5]])) == 0
    assert deviation(expected, torch.tensor([[2.0, 1.0, 1.0, -0.5, 3, 1, 7, 2, 0.25]])) > 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_keeps_exact_logits(dtype: torch.dtype) -> None:
    """Logits are unchanged, and probabilities equal a softmax in float64, even below the range of float32."""
    logits = torch.tensor([[-400.0, 3.5, 21.25, -0.001], [0.0, 0.0, 0.0, 0.0]]).to(dtype)
    (peaked, flat), indices, top_probabilities = (part.tolist() for part in engines.unpack(pack(logits, 4)))
    assert peaked == logits.to(torch.float32)[0].sort(descending=True).values.tolist()
    first = Prediction((2, 1, 3, 0), tuple(peaked), top_probabilities[0][0])
    expected = logits[0].double().softmax(dim=-1).sort(descending=True).values.tolist()
    assert [int(index) for index in indices[0]] == list(first.indices)
    assert first.probabilities == pytest.approx(expected, rel=1e-6, abs=0)
    assert (flat, top_probabilities[1]) == ([0.0] * 4, [0.25])


def test_compiled_code_is_cached_across_restarts(tmp_path: Path) -> None:
    """The cache is a private folder in the user's cache directory, unless the environment names another."""
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_compiled_code(environment)
    folder = tmp_path / "vit-api" / "inductor"
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0
    named = {"XDG_CACHE_HOME": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": "/elsewhere"}
    keep_compiled_code(named)
    assert named["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"


def test_torchs_cache_is_used_if_ours_cannot_be_created(tmp_path: Path) -> None:
    """A cache folder that can't be created is no error."""
    (tmp_path / "file").touch()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    keep_compiled_code(environment)
    assert "TORCHINDUCTOR_CACHE_DIR" not in environment


def predictions(model: VisionModel, images: Any) -> Any:
    return model.collect(model.launch(model.stage(images)))


@pytest.fixture
def images(noise: np.random.Generator) -> Any:
    return list(noise.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))


@needs_compiler
@pytest.mark.filterwarnings("default::DeprecationWarning")  # raised when torch imports its compiler
@pytest.mark.filterwarnings("default::FutureWarning")
@pytest.mark.filterwarnings("default::UserWarning")
def test_torch_compile_for_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the CPU, it compiles, agrees with the eager engine, and caches its code in the configured folder."""
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # no processes that import torch again
    monkeypatch.setattr(torch._inductor.config.cpp, "vec_isa_ok", True)  # nor one to try a vector unit
    checkpoint = load_checkpoint(str(make_checkpoint(tmp_path / "model", layers=1)))  # each is compiled separately
    model = VisionModel(checkpoint, "cpu", "float32", 1, max_batch_size=1)  # each further size is compiled again
    shape = checkpoint.preprocessing.pixel_shape
    images = list(np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8))
    eager = predictions(model, images)
    model.prepare("compile")
    assert model.engine.name == "compile"
    for expected, found in zip(eager, predictions(model, images), strict=True):
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert any(files for _, _, files in os.walk(tmp_path / "cache"))


def test_setup_records_the_engine_and_the_startup_time() -> None:
    """Both are published with the worker's status."""
    api = ViTAPI(load_checkpoint("digits"), max_batch_size=4)
    api.setup("cpu")
    assert api.model is not None
    assert api.model.engine.name == "eager"
    assert api.startup_s > 0


def test_cudnn_attention_can_be_disabled() -> None:
    """The model does so on CUDA; torch has the flag on the CPU as well."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        disable_cudnn_attention()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_float32_is_exact() -> None:
    """TF32 never replaces float32, and sums of 16-bit products are not reduced to 16 bits."""
    VisionModel(load_checkpoint("digits"), "cpu", "float32", 1)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


class TestOnCuda:
    """Engines on a real GPU."""

    pytestmark = needs_gpu

    @pytest.mark.parametrize("dtype", ["float32", "float16", "auto"])
    def test_graphs_agree_with_the_eager_engine(self, dtype: str, images: Any) -> None:
        """Results agree for each batch size, padded or not, in any order."""
        model = VisionModel(load_checkpoint("digits"), "cuda:0", dtype, None, max_batch_size=4)
        batches = [images, images[:1], images[:2], images[1:], images]
        eager = [predictions(model, batch) for batch in batches]
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        model.prepare("cudagraph")
        assert model.engine.name == "cudagraph"
        for expected, found in zip(eager, [predictions(model, batch) for batch in batches], strict=True):
            for one, other in zip(expected, found, strict=True):
                assert other.probabilities == pytest.approx(one.probabilities, abs=0.01)

    def test_two_batches_on_the_device_at_once(self, images: Any) -> None:
        """Batches in flight share the engine's buffers but keep their own results."""
        model = VisionModel(load_checkpoint("digits"), "cuda:0", "float32", None, max_batch_size=4)
        model.prepare("cudagraph")
        alone = [predictions(model, [image])[0] for image in images]
        launched = [model.launch(model.stage([image])) for image in images]
        for expected, one in zip(alone, launched, strict=True):
            assert model.collect(one)[0].indices == expected.indices

    def test_a_capture_out_of_memory_falls_back_to_eager(
        self, monkeypatch: pytest.MonkeyPatch, images: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The eager engine works after the failed capture."""
        model = VisionModel(load_checkpoint("digits"), "cuda:0", "float32", None, max_batch_size=4)

        def no_memory(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(cuda_graphs, "capture", no_memory)
        model.prepare("cudagraph")
        assert model.engine.name == "eager"
        assert "out of memory" in caplog.text
        assert len(predictions(model, images)) == 3

    @pytest.mark.parametrize("is_checked", [pytest.param(True, id="checked"), pytest.param(False, id="captured")])
    def test_a_synchronising_model_stays_eager(
        self, monkeypatch: pytest.MonkeyPatch, images: Any, caplog: pytest.LogCaptureFixture, is_checked: bool
    ) -> None:
        """There is one warning, and memory can still be freed, even if a capture was tried."""
        if not is_checked:
            monkeypatch.setattr(cuda_graphs, "_forbid_waits", contextlib.nullcontext)
        model = VisionModel(load_checkpoint("digits"), "cuda:0", "float32", None, max_batch_size=4)
        logits = model._logits

        def synchronising(pixels: torch.Tensor) -> torch.Tensor:
            return logits(pixels) + 0 * pixels.sum().item()

        model._logits = synchronising
        expected = predictions(model, images)
        model.prepare("cudagraph")
        assert model.engine.name == "eager"
        (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert ("waits for the GPU" in warning.getMessage()) is is_checked
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        for _ in range(50):
            assert [one.indices for one in predictions(model, images)] == [one.indices for one in expected]
        assert torch.cuda.memory_allocated() <= before + 2**20


def test_deviation_sees_a_shift_of_all_logits() -> None:
    """It changes nothing for a softmax, but everything for a sigmoid, also with a single class."""
    assert deviation(torch.tensor([[0.5, 0, 1.0]]), torch.tensor([[0.6, 0, 1.0]])) > 0.05
    assert deviation(torch.tensor([[2.0, 1.0, 3, 1, 0.7]]), torch.tensor([[2.2, 1.2, 3, 1, 0.7]])) > 0.05
