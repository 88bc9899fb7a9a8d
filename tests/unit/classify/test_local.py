"""The model in this process: which classes a prediction has."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.harness.checkpoints import save_tiny_vit
from tests.support.server import ROOT
from vit_api.classify import local
from vit_api.classify.local import LocalClassifier, Shown, load_local
from vit_api.client.results import Classification
from vit_api.errors import UnsupportedImage
from vit_api.ipc.records import Prediction
from vit_api.lit_api import ViTAPI
from vit_api.settings import Settings

_DIGIT = ROOT / "examples" / "digit-7.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model with 100 classes, more than a short answer has."""
    folder = tmp_path_factory.mktemp("model")
    save_tiny_vit(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("top_k", "threshold", "frames", "count"),
    [
        pytest.param(None, None, 1, 5, id="default"),
        pytest.param(20, None, 1, 20, id="short"),
        pytest.param(21, None, 1, 21, id="long"),
        pytest.param("all", None, 1, 100, id="all"),
        pytest.param(None, 0.0, 1, 100, id="threshold"),
        pytest.param(3, None, 2, 3, id="frames"),
    ],
)
def test_classes_of_a_prediction(
    model: str, top_k: int | str | None, threshold: float | None, frames: int, count: int
) -> None:
    """It has as many as are shown, with the probabilities that they have among all."""
    everything = _classify(model, "all", None, 1)
    shown = _classify(model, top_k, threshold, frames)
    assert len(shown) == count
    assert shown == everything[:count]


def test_only_what_is_shown_is_computed() -> None:
    """All classes are asked of the model only where they, or flags or frames that need them, are shown."""
    settings, with_flags = Settings(), Settings(thresholds='{"*": 0.5}')
    assert not Shown.of(None, None).needs_all_classes(settings, 1)
    assert not Shown.of(20, 0.5).needs_all_classes(settings, 1)
    assert Shown.of(21, None).needs_all_classes(settings, 1)
    assert Shown.of("all", None).needs_all_classes(settings, 1)
    assert Shown.of(None, 0.5).needs_all_classes(settings, 1)
    assert Shown.of(5, None).needs_all_classes(settings, 2)
    assert Shown.of(5, None).needs_all_classes(with_flags, 1)


class _Device:
    """A LitAPI with a device that completes a batch once it was polled twice."""

    checkpoint = SimpleNamespace(name="model")

    def __init__(self) -> None:
        self.events: list[str] = []
        self.polls: dict[int, int] = {}

    def decode_request(self, upload: bytes) -> int:
        if not upload.isdigit():
            raise UnsupportedImage("It is not an image.")
        return int(upload)

    def batch(self, images: Sequence[int]) -> Sequence[int]:
        return images

    def predict(self, images: Sequence[int]) -> Sequence[int]:
        self.events.append(f"+{images[0]}")
        return images

    def is_done(self, images: Sequence[int]) -> bool:
        self.polls[images[0]] = self.polls.get(images[0], 0) + 1
        return self.polls[images[0]] > 2

    def unbatch(self, images: Sequence[int]) -> list[Prediction]:
        self.events.append(f"={images[0]}")
        return [Prediction((image,), (0.0,), 1.0) for image in images]

    def encode_response(self, output: Prediction, **_: Any) -> dict[str, Any]:
        return {"predictions": [{"label": str(output.indices[0]), "confidence": 1.0}]}


def test_the_next_batch_is_launched_before_the_last_is_collected() -> None:
    """The device never waits for results to be taken; bad files, first, last and between, keep their places."""
    device = _Device()
    uploads = [b"bad", b"0", b"1", b"2", b"bad", b"3", b"4", b"5", b"6", b"bad"]
    classifier = LocalClassifier(cast("ViTAPI", device), max_batch_size=2, threads=1)
    outcomes = list(classifier.classify_reads((functools.partial(bytes, each) for each in uploads), Shown(1, 0.0)))
    assert device.events == ["+0", "+2", "=0", "+4", "=2", "+6", "=4", "=6"]
    assert [digest for digest, _ in outcomes] == [hashlib.sha256(upload).hexdigest() for upload in uploads]
    found = [one.top.label if isinstance(one, Classification) else "bad" for _, one in outcomes]
    assert found == [upload.decode() for upload in uploads]


def test_batches_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are lanes; what they yield is in the order of the files."""
    device, together = _Device(), threading.Barrier(3)
    monkeypatch.setattr(device, "is_done", lambda _: together.wait(60) >= 0)
    classifier = LocalClassifier(cast("ViTAPI", device), max_batch_size=2, threads=1, lanes=3)
    uploads = [str(number).encode() for number in range(12)]
    outcomes = list(classifier.classify_reads((functools.partial(bytes, each) for each in uploads), Shown(1, 0.0)))
    assert [one.top.label for _, one in outcomes if isinstance(one, Classification)] == list(map(str, range(12)))


def test_lanes_have_the_cores_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch a core, unless each has more threads, there is one batch only, or OpenVINO has its own threads."""
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    shown = Shown(1, 0.0)

    def lanes(images: int | None, **settings: Any) -> int:
        monkeypatch.setattr(local, "build_lit_api", lambda *_, **__: SimpleNamespace(setup=lambda _: None))
        with monkeypatch.context() as patch:
            made: list[int] = []
            patch.setattr(local, "LocalClassifier", lambda *_, lanes, **__: made.append(lanes))
            load_local(Settings(device="cpu", **settings), 1, images, shown=shown)
        return made[0]

    assert lanes(None) == lanes(100) == 8
    assert lanes(100, cpu_threads=3) == 2
    assert lanes(100, cpu_threads=16) == lanes(32) == lanes(100, engine="openvino") == lanes(100, dtype="int8") == 1


def _classify(model: str, top_k: int | str | None, threshold: float | None, frames: int) -> list[tuple[str, float]]:
    classifier = load_local(Settings(model=model), 1, 1, shown=Shown.of(top_k, threshold), frames=frames)
    (outcome,) = classifier.classify_many([_DIGIT], top_k, frames, threshold=threshold)
    assert isinstance(outcome, Classification)
    return [(each.label, each.confidence) for each in outcome.predictions]
