"""Several models and versions in one server: real processes, real clients, and versions that fail."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families as parse_text

from benchmarks.harness.checkpoints import save_small_vit
from benchmarks.harness.servers import free_port
from tests.support import forked_servers
from tests.support.redis_server import RedisServer, redis_server
from tests.support.samples import make_checkpoint, sharpen
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
_KEY = "0123456789abcdef-key"
_OPERATOR = "0123456789abcdef-operator"
_ORIGIN = "https://shop.example"
_PATIENCE_S = 240.0
_Z = 3.29  # of the normal distribution: 99.9% of all samples are within it


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with another input size and other labels than `digits`."""
    return sharpen(make_checkpoint(tmp_path_factory.mktemp("models") / "large", classes=30))


@pytest.fixture(scope="module")
def server(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Run `digits` in two versions, and another model, from a file, with a log of decisions."""
    folder = tmp_path_factory.mktemp("settings")
    models = [
        {"name": "digits", "version": "1", "model": "digits", "traffic": 80},
        {"name": "digits", "version": "2", "model": "digits", "traffic": 20, "thresholds": {"*": 0.5}},
        {"name": "team/large", "version": "beta", "model": str(large), "max_batch_size": 4},
    ]
    (folder / "models.json").write_text(json.dumps(models))
    settings = {"operator_key": _OPERATOR, "access_log": True, "decision_log": folder / "decisions"}
    settings["cors_origins"] = _ORIGIN
    with serve("", models=folder / "models.json", **settings) as running:
        running.decisions = folder / "decisions"  # type: ignore[attr-defined]
        wait_until(lambda: all(one["ready"] for one in running.get("/health").json()["models"]), _PATIENCE_S)
        yield running


def _post(server: RunningServer, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers=headers, timeout=60, **PLAIN_HTTP)


def _served_by(response: httpx.Response) -> tuple[str | None, str | None]:
    return response.headers.get("x-model"), response.headers.get("x-model-version")


def _picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((40 + seed % 7, 40), 60 + seed).convert("RGB").save(file, "PNG")
    return file.getvalue()


def _tensor() -> dict[str, Any]:
    data = base64.b64encode(_SEVEN).decode()
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]}]}


@pytest.mark.parametrize(
    ("path", "model", "version"),
    [
        pytest.param("/predict?version=1", "digits", "1", id="version of the default"),
        pytest.param("/predict?model=digits&version=2", "digits", "2", id="both"),
        pytest.param("/predict?model=team/large", "team/large", "beta", id="model"),
        pytest.param("/?model=team%2Flarge&top_k=2", "team/large", "beta", id="Hugging Face's, by query"),
        pytest.param("/models/team/large", "team/large", "beta", id="Hugging Face's, by path"),
        pytest.param("/models/team%2Flarge", "team/large", "beta", id="escaped"),
        pytest.param("/models/digits?version=2", "digits", "2", id="path and version"),
    ],
)
def test_a_file_is_classified_by_the_chosen_model(server: RunningServer, path: str, model: str, version: str) -> None:
    """Its own labels, in answers that headers name."""
    response = server.predict(_SEVEN, path)
    assert response.status_code == 200, response.text
    assert _served_by(response) == (model, version)
    body = response.json()
    predictions = body if isinstance(body, list) else body["predictions"]
    assert predictions[0]["label"].startswith("class ") == (model == "team/large")
    if isinstance(body, dict):
        assert (body["model"], body["version"]) == (model, version)


def test_scripts_can_read_what_answered(server: RunningServer) -> None:
    """The headers that name it are exposed to the pages of allowed origins, for hits, misses and errors."""
    for path, status in (("/predict", 200), ("/predict?model=nope", 404), ("/v2/models/nope", 405)):
        response = server.predict(_SEVEN, path, headers={"origin": _ORIGIN})
        assert response.status_code == status
        exposed = response.headers["access-control-expose-headers"].split(", ")
        assert {"x-model", "x-model-version", "x-cache"} <= set(exposed)


def test_a_batch_and_frames_are_of_the_chosen_model(server: RunningServer) -> None:
    """The form of several images, and the frames of an animation."""
    files = [("files", ("a.png", _SEVEN)), ("files", ("b.png", _picture(1)))]
    several = httpx.post(server.url + "/predict/batch?version=2", files=files, timeout=60, **PLAIN_HTTP)
    assert [(one["model"], one["version"], "flagged" in one) for one in several.json()] == [("digits", "2", True)] * 2
    file = io.BytesIO()
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:])
    frames = server.predict(file.getvalue(), "/predict?frames=2&model=team/large").json()
    assert (frames["version"], len(frames["frames"])) == ("beta", 2)


def test_answers_are_those_of_a_server_with_this_model_only(server: RunningServer, large: Path) -> None:
    """Slots of the largest input change no pixel of a smaller one, nor does another model in the same server."""
    pictures = [_SEVEN, *map(_picture, range(5))]
    with serve(large, api_servers=1) as alone:
        for picture in pictures:
            mine = server.predict(picture, "/predict?model=team/large&top_k=30").json()["predictions"]
            assert mine == alone.predict(picture, "/predict?top_k=30").json()["predictions"]


@pytest.mark.parametrize(
    ("path", "body", "served"),
    [
        pytest.param(
            "/v1/moderations", {"input": _URL, "model": "team/large"}, ("team/large", "beta"), id="moderation"
        ),
        pytest.param("/v1/moderations?version=2", {"input": _URL}, ("digits", "2"), id="by query"),
        pytest.param("/v1/embeddings", {"input": _URL, "model": "team/large"}, ("team/large", "beta"), id="embedding"),
        pytest.param("/v2/models/digits/versions/2/infer", _tensor(), ("digits", "2"), id="version"),
        pytest.param("/v2/models/team%2Flarge/infer", _tensor(), ("team/large", "beta"), id="model"),
    ],
)
def test_json_is_answered_by_the_chosen_model(
    server: RunningServer, path: str, body: dict[str, Any], served: tuple[str, str]
) -> None:
    """OpenAI's field `model`, and the paths of the Open Inference Protocol."""
    response = _post(server, path, body)
    assert response.status_code == 200, response.text
    assert _served_by(response) == served
    answer = response.json()
    assert answer.get("model_name", answer.get("model")) == served[0]
    assert answer.get("model_version", served[1]) == served[1]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        pytest.param("/predict?model=nope", {"image": _URL}, "There is no model 'nope'", id="query"),
        pytest.param("/predict?version=9", {"image": _URL}, "no version '9'. Its versions are '1', '2'", id="version"),
        pytest.param("/models/nope", {"inputs": _URL}, "There is no model 'nope'", id="path"),
        pytest.param("/v1/moderations", {"input": _URL, "model": "gpt"}, "There is no model 'gpt'", id="moderations"),
        pytest.param("/v1/embeddings", {"input": _URL, "model": "gpt"}, "There is no model 'gpt'", id="embeddings"),
        pytest.param("/v2/models/nope/infer", _tensor(), "There is no model 'nope'", id="infer"),
        pytest.param("/v2/models/digits/versions/9/infer", _tensor(), "has no version '9'", id="infer, version"),
    ],
)
def test_what_there_is_not(server: RunningServer, path: str, body: dict[str, Any], message: str) -> None:
    """A 404 that names what there is."""
    response = _post(server, path, body)
    assert response.status_code == 404
    assert message in response.text
    assert _served_by(response) == (None, None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/predict", {"image": _URL, "model": "team/large"}, id="in the body of /predict"),
        pytest.param("/", {"inputs": _URL, "version": "2000"}, id="in the body of /"),
        pytest.param("/predict?modell=digits", {"image": _URL}, id="slip"),
        pytest.param("/models/digits?model=team/large", {"inputs": _URL}, id="path and query"),
        pytest.param("/v1/moderations?model=digits", {"input": _URL, "model": "team/large"}, id="field and query"),
    ],
)
def test_no_choice_is_ignored(server: RunningServer, path: str, body: dict[str, Any]) -> None:
    """A 400: another model than the wanted one never answers."""
    assert _post(server, path, body).status_code == 400


def test_hugging_faces_client_takes_the_address_of_a_model(server: RunningServer) -> None:
    """As `model`, like any address of theirs."""
    client = InferenceClient(model=f"{server.url}/models/team/large")
    assert client.image_classification(_SEVEN)[0].label.startswith("class ")


def test_clients_are_split_and_stay(server: RunningServer) -> None:
    """Shares within the interval of 99.9% of all samples, on every path alike."""
    versions = {}
    with httpx.Client(base_url=server.url, timeout=60, **PLAIN_HTTP) as client:
        for number in range(600):
            headers = {"x-session-id": f"client {number}"}
            versions[number] = client.post("/predict", content=_SEVEN, headers=headers).headers["x-model-version"]
        for number in range(40):
            headers = {"x-session-id": f"client {number}"}
            for path, body in (("/v2/models/digits/infer", _tensor()), ("/v1/moderations", {"input": _URL})):
                assert client.post(path, json=body, headers=headers).headers["x-model-version"] == versions[number]
            assert (
                client.post("/models/digits", content=_SEVEN, headers=headers).headers["x-model-version"]
                == (versions[number])
            )
    count = Counter(versions.values())["2"]
    assert abs(count - 600 * 0.2) <= _Z * math.sqrt(600 * 0.2 * 0.8)


def test_each_version_has_a_cache_of_its_own(server: RunningServer) -> None:
    """What one has computed another computes again; clearing clears all."""
    picture = _picture(77)
    paths = [f"/predict?version={version}" for version in "12"]

    def until_hit(path: str) -> list[str]:
        caches = [server.predict(picture, path).headers["x-cache"]]
        while caches[-1] != "hit":
            caches.append(server.predict(picture, path).headers["x-cache"])
        return caches

    assert [until_hit(path)[0] for path in paths] == ["miss", "miss"]
    cleared = httpx.post(
        server.url + "/cache/clear", headers={"authorization": f"Bearer {_OPERATOR}"}, timeout=30, **PLAIN_HTTP
    )
    assert cleared.json()["entries"] >= 2
    assert [until_hit(path)[0] for path in paths] == ["miss", "miss"]


def test_the_index_and_each_models_description(server: RunningServer) -> None:
    """Triton's index, and metadata, configuration, readiness and statistics of each version."""
    index = httpx.post(server.url + "/v2/repository/index", timeout=30, **PLAIN_HTTP).json()
    assert [(one["name"], one["version"], one["state"]) for one in index] == [
        ("digits", "1", "READY"),
        ("digits", "2", "READY"),
        ("team/large", "beta", "READY"),
    ]
    assert server.get("/v2/models/digits").json()["versions"] == ["1", "2"]
    assert server.get("/v2/models/team/large/config").json()["max_batch_size"] == 4
    for path in ("digits", "digits/versions/2", "team/large", "team/large/versions/beta"):
        assert server.get(f"/v2/models/{path}/ready").json()["ready"] is True
    for path in ("nope", "digits/versions/9", "nope/versions/1"):
        for end in ("", "/ready", "/config", "/stats"):
            assert server.get(f"/v2/models/{path}{end}").status_code == 404
    stats = server.get("/v2/models/digits/stats").json()["model_stats"]
    assert [one["version"] for one in stats] == ["1", "2"]
    assert len(server.get("/v2/models/stats").json()["model_stats"]) == 3


def test_health_and_info_name_every_version(server: RunningServer, large: Path) -> None:
    """And no path of this machine."""
    health = server.get("/health").json()
    assert (health["status"], health["model"], health["workers"]) == ("ok", "digits", 3)
    assert [(one["model"], one["version"], one["traffic"]) for one in health["models"]] == [
        ("digits", "1", 80),
        ("digits", "2", 20),
        ("team/large", "beta", 100),
    ]
    info = server.get("/info")
    assert str(large) not in info.text
    assert [one["labels"] for one in info.json()["models"]] == [10, 10, 30]
    assert info.json()["settings"]["models"] == ["digits 1", "digits 2", "team/large beta"]
    assert info.json()["models"][1]["thresholds"] == {"*": 0.5}


def test_metrics_have_the_model_and_its_version(server: RunningServer) -> None:
    """Each request counts for the version that answered it, and one for an unknown model for none."""

    def count(model: str, version: str, status: str) -> float:
        labels = {"endpoint": "/predict", "model": model, "version": version, "status": status}
        return _sample(server, "inference_requests_total", **labels)

    kinds = [("digits", "2", "200"), ("team/large", "beta", "200"), ("", "", "404")]
    before = [count(*kind) for kind in kinds]
    server.predict(_SEVEN, "/predict?version=2")
    server.predict(_SEVEN, "/predict?model=team/large")
    server.predict(_SEVEN, "/predict?model=nope")
    assert [count(*kind) for kind in kinds] == [number + 1 for number in before]
    assert _sample(server, "inference_model_traffic_ratio", model="digits", version="2") == 0.2
    assert _sample(server, "inference_model_ready", model="team/large", version="beta") == 1
    assert _sample(server, "inference_workers", state="ready", model="digits", version="1") == 1
    for process in ("main", "http-0", "http-1", "worker-0", "worker-1", "worker-2"):
        assert _sample(server, "process_resident_memory_bytes", process=process) > 10e6


def _sample(server: RunningServer, name: str, **labels: str) -> float:
    (value,) = [
        sample.value
        for family in parse_text(server.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return value


def test_logs_name_the_version(server: RunningServer) -> None:
    """The access log and the log of decisions."""
    response = server.predict(_picture(5), "/predict?version=2")
    request_id = response.headers["x-request-id"]
    decisions = server.decisions  # type: ignore[attr-defined]

    def decision() -> dict[str, Any] | None:
        lines = map(json.loads, decisions.read_text().splitlines()) if decisions.exists() else ()
        return next((line for line in lines if line["request_id"] == request_id), None)

    wait_until(lambda: decision() is not None)
    found = decision()
    assert found is not None
    assert (found["model"], found["model_version"], found["flagged"] is not None) == ("digits", "2", True)
    line = next(line for line in server.log.read_text().splitlines() if request_id in line)
    assert "model=digits" in line
    assert "version=2" in line


def test_the_description_offers_the_choice(server: RunningServer) -> None:
    """The models and versions that there are, on every path that classifies."""
    paths = server.get("/openapi.json").json()["paths"]
    for path in ("/predict", "/predict/batch", "/"):
        known = {one["name"]: one["schema"].get("enum") for one in paths[path]["post"]["parameters"]}
        assert (known["model"], known["version"]) == (["digits", "team/large"], ["1", "2", "beta"])
        assert "404" in paths[path]["post"]["responses"]
    assert "/models/{model_name}" in paths


def _kill(server: RunningServer, pid: int) -> None:
    assert pid in workers_of(server)
    os.kill(pid, signal.SIGKILL)


def test_a_version_whose_worker_keeps_dying_never_touches_another(tmp_path: Path) -> None:
    """While it dies, while it is given up, and after: the other's clients get answers, its own get those of the other.

    Its name still gets a 503 where it is named, the server stays ready, and a request that was in flight is answered.
    """
    save_small_vit(tmp_path)  # takes long to warm up: no worker is ready before it is killed
    models = [
        {"name": "digits", "version": "1", "model": "digits", "traffic": 50},
        {"name": "digits", "version": "2", "model": str(tmp_path), "traffic": 50},
    ]
    with serve("", models=json.dumps(models), cache_size=0, request_timeout_s=_PATIENCE_S) as server:
        kept, doomed = workers_of(server)  # in the order of the list
        answers: Counter[tuple[str, int]] = Counter()
        done = threading.Event()

        def load(path: str) -> None:
            with httpx.Client(base_url=server.url, timeout=_PATIENCE_S, **PLAIN_HTTP) as client:
                while not done.is_set():
                    answers[path, client.post(path, content=_SEVEN).status_code] += 1

        def waits() -> None:
            answers["held", server.predict(_SEVEN, "/predict?version=2").status_code] += 1

        threads = [threading.Thread(target=load, args=("/predict?version=1",))]
        os.kill(doomed, signal.SIGSTOP)  # so that an image is with it when it dies
        threads.append(threading.Thread(target=waits))
        for thread in threads:
            thread.start()
        wait_until(lambda: server.get("/info").json()["slots"]["running"] > 0)
        dead = kill_until_given_up(server, kept, _PATIENCE_S)
        threads[1].join(_PATIENCE_S)
        before = answers["/predict?version=1", 200]
        wait_until(lambda: answers["/predict?version=1", 200] > before + 20)
        done.set()
        threads[0].join(60)
        assert len(dead) == 6
        assert {status for (path, status) in answers if path != "held"} == {200}
        assert answers["held", 503] == 1
        assert workers_of(server) == [kept]
        refused = server.predict(_SEVEN, "/predict?version=2")
        assert (refused.status_code, refused.json()["code"]) == (503, "workers_gone")
        assert "'digits 2'" in refused.json()["error"]
        assert _served_by(refused) == ("digits", "2")
        sessions = [server.predict(_SEVEN, headers={"x-session-id": str(number)}) for number in range(20)]
        assert {(one.status_code, one.headers["x-model-version"]) for one in sessions} == {(200, "1")}
        health = server.get("/health/ready")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert [one["ready"] for one in health.json()["models"]] == [True, False]
        assert server.get("/v2/models/digits/versions/2/ready").status_code == 503
        assert server.get("/v2/models/digits/ready").status_code == 200
        assert server.get("/info").json()["slots"]["free"] == 1024


def test_a_worker_that_dies_once_is_replaced_while_the_other_version_serves() -> None:
    """As with one model; the images that it held are computed by its successor."""
    models = [{"name": name, "version": "1", "model": "digits"} for name in ("first", "second")]
    with serve("", models=json.dumps(models), cache_size=0, request_timeout_s=_PATIENCE_S) as server:
        wait_until(lambda: all(one["ready"] for one in server.get("/health").json()["models"]), _PATIENCE_S)
        _, doomed = workers_of(server)
        os.kill(doomed, signal.SIGSTOP)
        answers: list[int] = []
        held = threading.Thread(
            target=lambda: answers.append(server.predict(_SEVEN, "/predict?model=second").status_code)
        )
        held.start()
        wait_until(lambda: server.get("/info").json()["slots"]["free"] < 1024)
        _kill(server, doomed)
        for _ in range(20):
            assert server.predict(_SEVEN, "/predict?model=first").status_code == 200
        held.join(_PATIENCE_S)
        assert answers == [200]


def test_a_full_version_leaves_the_others_their_slots() -> None:
    """The worker of one is stopped and its queue is full: it answers 503, and the other is not touched."""
    models = [{"name": name, "version": "1", "model": "digits"} for name in ("first", "second")]
    settings = {"cache_size": 0, "queue_size": 8, "api_servers": 1, "request_timeout_s": 20}
    with serve("", models=json.dumps(models), **settings) as server:
        wait_until(lambda: all(one["ready"] for one in server.get("/health").json()["models"]), _PATIENCE_S)
        _, stopped = workers_of(server)
        os.kill(stopped, signal.SIGSTOP)
        statuses: Counter[int] = Counter()

        def ask(client: str) -> None:
            body, headers = _picture(int(client)), {"x-forwarded-for": client}
            statuses[server.predict(body, "/predict?model=second", headers=headers).status_code] += 1

        threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(12)]
        for thread in threads:
            thread.start()
        wait_until(lambda: statuses[503] > 0)
        for number in range(20):
            assert server.predict(_picture(number), "/predict?model=first").status_code == 200
        os.kill(stopped, signal.SIGCONT)
        for thread in threads:
            thread.join(60)
        assert set(statuses) == {200, 503}
        assert server.predict(_SEVEN, "/predict?model=second").status_code == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"models": "[]"}, "VIT_API_MODELS: Input should be a list of JSON such as", id="empty"),
        pytest.param(
            {"models": '[{"name": "a", "version": "1", "model": "digits"}]', "model": "digits"},
            "VIT_API_MODELS: The list has the models, so VIT_API_MODEL would be ignored.",
            id="both",
        ),
        pytest.param(
            {"models": '[{"name": "a", "version": "1", "model": "/no/such"}]'},
            "VIT_API_MODELS: a 1: The model '/no/such' can't be used: there is no such directory",
            id="no checkpoint",
        ),
        pytest.param(
            {"models": '[{"name": "a", "version": "1", "model": "digits", "thresholds": {"cat": 0.5}}]'},
            "VIT_API_MODELS: a 1, 'thresholds': The model has no label 'cat'.",
            id="label",
        ),
        pytest.param(
            {
                "models": '[{"name": "a", "version": "1", "model": "digits"}, '
                '{"name": "b", "version": "1", "model": "digits"}]',
                "queue_size": 3,
            },
            "VIT_API_QUEUE_SIZE: Input should be at least 4, which is two for each of 2 versions of models in each of "
            "1 HTTP processes. Got 3.",
            id="queue",
        ),
    ],
)
def test_a_wrong_configuration_stops_the_start(settings: dict[str, str], message: str) -> None:
    """With one line that names the variable and the entry."""
    began_at = time.monotonic()
    run = forked_servers.start_and_end(**{"port": free_port(), "api_servers": 1, "host": "127.0.0.1"} | settings)
    assert run.returncode == 1, f"after {time.monotonic() - began_at:.0f} s"
    assert message in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def test_each_version_has_entries_of_its_own_in_redis(redis: RedisServer) -> None:
    """Another server finds what was computed for the same version, and nothing of another one."""
    models = [
        {"name": "digits", "version": "1", "model": "digits", "traffic": 100},
        {"name": "digits", "version": "2", "model": "digits"},
    ]
    settings = {"models": json.dumps(models), "redis_url": redis.url, "operator_key": _OPERATOR, "api_servers": 1}

    def is_ready(server: RunningServer) -> bool:
        health, info = server.get("/health").json(), server.get("/info").json()
        is_connected = all(one["cache"]["redis"]["processes_connected"] for one in info["models"])
        return is_connected and all(one["ready"] for one in health["models"])

    with serve("", **settings) as first:
        wait_until(lambda: is_ready(first), _PATIENCE_S)
        assert first.predict(_SEVEN, "/predict?version=1").headers["x-cache"] == "miss"
        wait_until(lambda: len(redis.client.keys("vit-api:digits@1:*")) == 1)
        assert redis.client.keys("vit-api:digits@2:*") == []
        with serve("", **settings) as second:
            wait_until(lambda: is_ready(second), _PATIENCE_S)
            assert second.predict(_SEVEN, "/predict?version=2").headers["x-cache"] == "miss"
            assert second.predict(_SEVEN, "/predict?version=1").headers["x-cache"] == "hit"
            wait_until(lambda: len(redis.client.keys("vit-api:digits@2:*")) == 1)
            key = {"authorization": f"Bearer {_OPERATOR}"}
            cleared = httpx.post(second.url + "/cache/clear", headers=key, timeout=30, **PLAIN_HTTP).json()
            assert cleared["redis_entries"] == 2
