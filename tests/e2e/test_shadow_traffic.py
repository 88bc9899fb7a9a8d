"""Shadow traffic: real servers whose mirror agrees, differs, hangs, raises, dies or is overloaded."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families as parse_text

from benchmarks.baselines import faulty
from benchmarks.harness.servers import free_port
from tests.support import forked_servers
from tests.support.samples import edit_json
from tests.support.server import (
    PLAIN_HTTP,
    ROOT,
    RunningServer,
    kill_until_given_up,
    serve,
    wait_until,
    workers_of,
)

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_URL = "data:image/png;base64," + base64.b64encode(_SEVEN).decode()
_DIGITS = ROOT / "vit_api" / "checkpoints" / "digits"
_FRESH = {"cache-control": "no-cache"}
_PATIENCE_S = 240.0
_SLOTS = 1024


def _versions(model: str | Path = "digits", **mirror: Any) -> list[dict[str, Any]]:
    """Return the list of `digits` and its mirror."""
    return [
        {"name": "digits", "version": "1", "model": "digits"},
        {"name": "digits", "version": "2", "model": str(model), "mirror_traffic": 100} | mirror,
    ]


def _wait_until_ready(server: RunningServer) -> None:
    wait_until(lambda: all(one["ready"] for one in server.get("/health").json()["models"]), _PATIENCE_S)


def _outcomes(server: RunningServer, model: str = "digits") -> Counter[str]:
    """Return the images of the mirror of a model, by outcome."""
    families = parse_text(server.get("/metrics").text)
    samples = [one for family in families for one in family.samples if one.name == "inference_shadow_total"]
    return Counter({one.labels["outcome"]: int(one.value) for one in samples if one.labels["model"] == model})


def _slots(server: RunningServer) -> dict[str, int]:
    slots: dict[str, int] = server.get("/info").json()["slots"]
    return slots


def _picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((40 + seed % 7, 40), 60 + seed).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits` with other names of its classes: a 7 is an 8."""
    folder = tmp_path_factory.mktemp("models") / "renamed"
    shutil.copytree(_DIGITS, folder)
    names = [str((number + 1) % 10) for number in range(10)]
    edit_json(
        folder / "config.json",
        id2label={str(number): name for number, name in enumerate(names)},
        label2id={name: number for number, name in enumerate(names)},
    )
    return folder


@pytest.fixture(scope="module")
def server(renamed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Run `digits` and a mirror that is the same, and `other` with one that differs, with a log of decisions."""
    decisions = tmp_path_factory.mktemp("log") / "decisions"
    other = [one | {"name": "other"} for one in _versions(renamed, thresholds={"*": 0.5})]
    with serve("", models=json.dumps([*_versions(), *other]), decision_log=decisions) as running:
        running.decisions = decisions  # type: ignore[attr-defined]
        _wait_until_ready(running)
        yield running


def _post(server: RunningServer, path: str, body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers=_FRESH, timeout=60, **PLAIN_HTTP)


def _animation() -> bytes:
    file = io.BytesIO()
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:])
    return file.getvalue()


def _form(server: RunningServer, path: str, *files: tuple[str, tuple[str, bytes]]) -> httpx.Response:
    return httpx.post(server.url + path, files=list(files), headers=_FRESH, timeout=60, **PLAIN_HTTP)


def _tensor() -> dict[str, Any]:
    data = base64.b64encode(_SEVEN).decode()
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]}]}


_TWO = [("files", ("a.png", _picture(1))), ("files", ("b.png", _picture(2)))]
_WAYS: dict[str, tuple[int, Callable[[RunningServer, str], httpx.Response]]] = {
    "raw": (1, lambda server, model: server.predict(_SEVEN, f"/predict?model={model}", headers=_FRESH)),
    "form": (1, lambda server, model: _form(server, f"/predict?model={model}", ("file", ("a.png", _SEVEN)))),
    "JSON": (1, lambda server, model: _post(server, f"/predict?model={model}", {"image": _URL})),
    "batch": (2, lambda server, model: _form(server, f"/predict/batch?model={model}", *_TWO)),
    "frames": (
        2,
        lambda server, model: server.predict(_animation(), f"/predict?frames=2&model={model}", headers=_FRESH),
    ),
    "Hugging Face": (1, lambda server, model: _post(server, f"/models/{model}", {"inputs": _URL})),
    "infer": (1, lambda server, model: _post(server, f"/v2/models/{model}/infer", _tensor())),
    "moderation": (1, lambda server, model: _post(server, "/v1/moderations", {"input": _URL, "model": model})),
    "embedding": (1, lambda server, model: _post(server, "/v1/embeddings", {"input": _URL, "model": model})),
}
"""How many images are sent, and how."""


@pytest.mark.parametrize("how", _WAYS)
@pytest.mark.parametrize(("model", "outcome"), [("digits", "agree"), ("other", "differ")])
def test_every_image_is_compared_once(server: RunningServer, how: str, model: str, outcome: str) -> None:
    """Whatever the protocol; the client gets the answer of the version with traffic, and hears of nothing else."""
    before = _outcomes(server, model)
    images, ask = _WAYS[how]
    response = ask(server, model)
    assert response.status_code == 200, response.text
    assert response.headers["x-model-version"] == "1"
    wait_until(lambda: _outcomes(server, model) - before == Counter({outcome: images}))
    assert _slots(server)["free"] == _SLOTS


def test_the_same_pixels_give_the_same_probability(server: RunningServer) -> None:
    """Nothing was decoded again, so but for the rounding in batches of other sizes."""
    for seed in range(5):
        server.predict(_picture(seed), headers=_FRESH)
    families = {family.name: family for family in parse_text(server.get("/metrics").text)}
    samples = families["inference_shadow_probability_difference"].samples
    sums = {one.labels["model"]: one.value for one in samples if one.name.endswith("_sum")}
    assert sums["digits"] == pytest.approx(0, abs=1e-5)


def test_an_answer_from_the_cache_is_not_mirrored(server: RunningServer) -> None:
    """Neither is an image that can't be decoded, nor what a client asks the mirror itself."""
    picture = _picture(50)
    while server.predict(picture).headers["x-cache"] != "hit":
        pass
    wait_until(lambda: _slots(server)["free"] == _SLOTS)
    before = _outcomes(server)
    for _ in range(5):
        server.predict(picture)
    assert server.predict(b"no image").status_code == 415
    mine = server.predict(_SEVEN, "/predict?version=2", headers=_FRESH)
    assert (mine.status_code, mine.headers["x-model-version"]) == (200, "2")
    server.predict(_picture(51), headers=_FRESH)
    wait_until(lambda: _outcomes(server) - before == Counter({"agree": 1}))


def test_the_decision_log_has_both_answers(server: RunningServer) -> None:
    """Of the mirror: its own labels, flags and version, and what the client was told."""
    response = server.predict(_SEVEN, "/predict?model=other", headers=_FRESH)
    request_id = response.headers["x-request-id"]
    decisions: Path = server.decisions  # type: ignore[attr-defined]

    def lines() -> list[dict[str, Any]]:
        parsed = map(json.loads, decisions.read_text().splitlines()) if decisions.exists() else ()
        return [line for line in parsed if line["request_id"] == request_id]

    wait_until(lambda: len(lines()) == 2)
    answered, mirrored = lines()
    assert "shadow" not in answered
    assert (answered["model_version"], mirrored["model_version"]) == ("1", "2")
    assert answered["upload_sha256"] == mirrored["upload_sha256"]
    assert (answered["predictions"][0]["label"], mirrored["predictions"][0]["label"]) == ("7", "8")
    assert (answered["flagged"], mirrored["flagged"]) == (None, True)
    shadow = mirrored["shadow"]
    assert (shadow["answered_by"], shadow["label"], shadow["outcome"]) == ("1", "7", "differ")
    by_label = {one["label"]: one["score"] for one in mirrored["predictions"]}
    assert shadow["score"] == answered["predictions"][0]["score"]
    assert shadow["difference"] == pytest.approx(shadow["score"] - by_label["7"], abs=1e-5)


def test_a_client_that_leaves_costs_no_slot(server: RunningServer) -> None:
    """Whenever it does: before its images are decoded, between two of a batch, or after all of them."""
    boundary = "x" * 20
    parts = b"".join(
        f'--{boundary}\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
        + _picture(seed)
        + b"\r\n"
        for seed in range(16)
    )
    body = parts + f"--{boundary}--\r\n".encode()
    head = (
        f"POST /predict/batch HTTP/1.1\r\nhost: a\r\ncache-control: no-cache\r\ncontent-length: {len(body)}\r\n"
        f"content-type: multipart/form-data; boundary={boundary}\r\n\r\n"
    )
    for wait_s in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
            connection.settimeout(max(wait_s, 1e-6))
            with contextlib.suppress(TimeoutError):
                connection.recv(1)
    wait_until(lambda: _slots(server)["free"] == _SLOTS)
    assert server.predict(_SEVEN).status_code == 200


def test_info_says_which_version_is_a_mirror(server: RunningServer) -> None:
    """With its percentage; it has no traffic, and the server is ready without it."""
    models = server.get("/info").json()["models"]
    assert [(one["traffic"], one["mirror_traffic"]) for one in models] == [(100, 0), (0, 100)] * 2


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [pytest.param(faulty.SLEEPS, "skipped", id="sleeps"), pytest.param(faulty.RAISES, "failed", id="raises")],
)
def test_a_faulty_mirror_disturbs_no_one(fault: int, outcome: str) -> None:
    """Each image is answered while the mirror fails or hangs, whose slots stay bounded; the server stops cleanly."""
    program = ("-m", "benchmarks.baselines.faulty")
    models = json.dumps(_versions(max_batch_size=fault))
    with serve("", program=program, models=models, cache_size=0, api_servers=1) as server:
        _wait_until_ready(server)
        taken = []
        for seed in range(300):
            assert server.predict(_picture(seed)).status_code == 200
            if seed % 50 == 49:
                taken.append(_SLOTS - _slots(server)["free"])
        assert max(taken) <= _SLOTS // 8  # half of the share that is kept for one of two
        wait_until(lambda: _outcomes(server)[outcome] > 0)
        assert not _outcomes(server)["agree"] or fault == faulty.SLEEPS


def test_a_mirror_whose_worker_keeps_dying_is_given_up_alone() -> None:
    """Before, meanwhile and after, the other version answers all its clients; no slot is lost."""
    with serve("", models=json.dumps(_versions()), cache_size=0) as server:
        _wait_until_ready(server)
        kept, _ = workers_of(server)
        statuses: Counter[int] = Counter()
        done = threading.Event()

        def load() -> None:
            with httpx.Client(base_url=server.url, timeout=_PATIENCE_S, **PLAIN_HTTP) as client:
                while not done.is_set():
                    statuses[client.post("/predict", content=_SEVEN).status_code] += 1

        thread = threading.Thread(target=load)
        thread.start()
        kill_until_given_up(server, kept, _PATIENCE_S)
        outcomes = _outcomes(server)
        before = statuses[200]
        wait_until(lambda: statuses[200] > before + 50)
        done.set()
        thread.join(60)
        assert set(statuses) == {200}
        assert workers_of(server) == [kept]
        wait_until(lambda: _slots(server)["free"] == _SLOTS)
        later = _outcomes(server) - outcomes
        assert later["skipped"] >= 50
        assert later["agree"] == later["differ"] == 0
        assert (server.get("/health/ready").status_code, server.predict(_SEVEN).status_code) == (200, 200)


def test_an_overloaded_version_gets_the_slots_that_it_would_without_a_mirror() -> None:
    """The mirror hangs with all that it may have; the other one still takes all but what is kept for the mirror."""
    settings = {"cache_size": 0, "queue_size": 64, "api_servers": 1, "request_timeout_s": 60}
    with serve("", models=json.dumps(_versions()), **settings) as server:
        _wait_until_ready(server)
        answering, mirror = workers_of(server)
        os.kill(mirror, signal.SIGSTOP)
        for seed in range(20):
            assert server.predict(_picture(seed)).status_code == 200
        wait_until(lambda: _outcomes(server)["skipped"] >= 12)
        assert _slots(server)["queued"] + _slots(server)["running"] == 8  # half of its 16
        os.kill(answering, signal.SIGSTOP)
        statuses: Counter[int] = Counter()

        def ask(seed: int) -> None:
            statuses[server.predict(_picture(seed)).status_code] += 1

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(60)]
        for thread in threads:
            thread.start()
        wait_until(lambda: sum(statuses.values()) + 64 - _slots(server)["free"] - 8 == 60)
        refused = statuses[503]
        os.kill(answering, signal.SIGCONT)
        for thread in threads:
            thread.join(60)
        assert statuses == Counter({200: 60 - refused, 503: refused})
        assert refused <= 60 - 42  # one client of 64 slots, of which 16 are kept, has at most 8/9 of 48
        os.kill(mirror, signal.SIGCONT)
        wait_until(lambda: _slots(server)["free"] == 64)


def test_a_mirror_with_another_preprocessing_stops_the_start(tmp_path: Path) -> None:
    """With one line that says why, and what to do instead."""
    model = tmp_path / "other"
    shutil.copytree(_DIGITS, model)
    edit_json(model / "preprocessor_config.json", resample=3)
    settings = {"port": free_port(), "api_servers": 1, "host": "127.0.0.1", "models": json.dumps(_versions(model))}
    run = forked_servers.start_and_end(**settings)
    assert run.returncode == 1
    assert "VIT_API_MODELS: digits 2, 'mirror_traffic': A mirror gets the decoded pixels" in run.stderr
    assert "not decoded like those of digits 1 (another resize or crop)" in run.stderr
    assert "Give it 'traffic' instead" in run.stderr
    assert "Traceback" not in run.stderr
