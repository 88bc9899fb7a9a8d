"""Models that are loaded and unloaded while the server runs: under load, with Triton's client, and when things fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from benchmarks.harness.process_group import kinds, living, parent_of
from tests.support import forked_servers
from tests.support.samples import edit_json, make_checkpoint, sharpen
from tests.support.server import (
    PLAIN_HTTP,
    ROOT,
    RunningServer,
    free_port,
    http_processes_of,
    serve,
    wait_until,
    workers_of,
)
from vit_api.deployments.listing import load_deployments
from vit_api.deployments.saved import ModelState

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_OPERATOR = "0123456789abcdef-operator"
_KEY = {"authorization": f"Bearer {_OPERATOR}"}
_LIST = json.dumps([{"name": "digits", "version": "1", "model": "digits"}])
_PATIENCE_S = 240.0
_THINK_S = 0.1
"""A client's pause after each answer: without it, the clients would take the cores that a worker needs to start."""
_MAPPINGS = 3
"""Mappings of shared memory of one deployment in an HTTP process."""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run one version of `digits`, and two places for others."""
    with serve("", models=_LIST, max_models=3, operator_key=_OPERATOR, max_input_side=32) as running:
        yield running


def _operate(server: RunningServer, path: str, body: Any = None, key: dict[str, str] | None = None) -> httpx.Response:
    url = f"{server.url}/v2/repository/models/{path}"
    return httpx.post(url, json=body, headers=_KEY if key is None else key, timeout=_PATIENCE_S, **PLAIN_HTTP)


def _load(server: RunningServer, name: str = "digits", **config: Any) -> httpx.Response:
    return _operate(server, f"{name}/load", {"parameters": {"config": json.dumps(config)}})


def _unload(server: RunningServer, name: str = "digits", **parameters: Any) -> httpx.Response:
    return _operate(server, f"{name}/unload", {"parameters": parameters})


def _share(server: RunningServer, name: str = "digits", **traffic: float) -> httpx.Response:
    shares = {version.removeprefix("v"): share for version, share in traffic.items()}
    return _operate(server, f"{name}/traffic", {"traffic": shares})


def _index(server: RunningServer) -> dict[tuple[str, str], str]:
    index = httpx.post(server.url + "/v2/repository/index", timeout=30, **PLAIN_HTTP).json()
    return {(one["name"], one["version"]): one["state"] for one in index}


def _served(server: RunningServer) -> dict[str, float]:
    """Return the traffic of each version, as health says."""
    return {f"{one['model']} {one['version']}": one["traffic"] for one in server.get("/health").json()["models"]}


class Clients:
    """Clients that never stop asking, each with a session and a connection of its own.

    Args:
        server: Answers them.
        count: Their number.
    """

    def __init__(self, server: RunningServer, count: int) -> None:
        self._server = server
        self._done = threading.Event()
        self.statuses: Counter[int] = Counter()
        self._answers = dict.fromkeys(range(count), 0)
        self.versions: defaultdict[int, list[str]] = defaultdict(list)
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def _ask(self, number: int) -> None:
        headers = {"x-session-id": f"client {number}"}
        with httpx.Client(base_url=self._server.url, headers=headers, timeout=_PATIENCE_S, **PLAIN_HTTP) as client:
            while not self._done.wait(_THINK_S):
                response = client.post("/predict", content=_SEVEN)
                self.statuses[response.status_code] += 1
                version = response.headers.get("x-model-version", "none")
                if self.versions[number][-1:] != [version]:
                    self.versions[number].append(version)
                self._answers[number] += 1

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)

    def wait_for_more(self, count: int = 5) -> None:
        """Wait until so many further requests of each client were answered."""
        before = self._answers.copy()
        wait_until(lambda: all(now >= before[n] + count for n, now in self._answers.copy().items()), _PATIENCE_S)


def test_a_new_version_takes_over_and_gives_back_under_load_without_a_failure(server: RunningServer) -> None:
    """By Triton's own client: load, 10, 50, 100 percent, unload the old one, load it again, and roll back.

    Clients move one way only, and each once.
    """
    triton = pytest.importorskip("tritonclient.http").InferenceServerClient(
        server.url.removeprefix("http://"), network_timeout=_PATIENCE_S
    )
    with Clients(server, 8) as clients:
        triton.load_model("digits", headers=_KEY, config=json.dumps({"model": "digits", "version": 2, "traffic": 0}))
        assert triton.is_model_ready("digits", "2")
        for share in (10, 50, 100):
            assert _share(server, v1=100 - share, v2=share).status_code == 200
            assert _served(server) == {"digits 1": 100 - share, "digits 2": share}
            clients.wait_for_more()
        assert all(versions in (["1", "2"], ["2"]) for versions in clients.versions.values()), clients.versions
        assert _unload(server, version="1").status_code == 200
        assert _index(server) == {("digits", "2"): "READY"}
        clients.wait_for_more()
        triton.load_model("digits", headers=_KEY, config='{"version": "1"}')  # it is known where it was
        assert _served(server) == {"digits 2": 100, "digits 1": 0}
        assert _share(server, v1=100, v2=0).status_code == 200
        clients.wait_for_more()
        assert _unload(server, version="2").status_code == 200
        clients.wait_for_more()
    triton.close()
    assert set(clients.statuses) == {200}
    assert all(versions[-2:] == ["2", "1"] for versions in clients.versions.values()), clients.versions
    assert _index(server) == {("digits", "1"): "READY"}
    assert len(workers_of(server)) == 1


def test_a_model_of_its_own_is_served_on_every_path(server: RunningServer, tmp_path: Path) -> None:
    """With another input and other labels; when it is unloaded, its paths are gone, and the description follows."""
    folder = sharpen(make_checkpoint(tmp_path / "large", classes=30))
    assert _load(server, "team/large", model=str(folder), version="beta", max_batch_size=4).status_code == 200
    assert server.predict(_SEVEN, "/predict?model=team/large").json()["predictions"][0]["label"].startswith("class ")
    assert server.predict(_SEVEN, "/models/team/large").status_code == 200
    assert server.get("/v2/models/team/large/versions/beta/ready").status_code == 200
    names = [one["schema"].get("enum") for one in _parameters(server) if one["name"] == "model"]
    assert names == [["digits", "team/large"]]
    assert 'model="team/large",version="beta"' in server.get("/metrics").text
    assert server.get("/info").json()["settings"]["models"] == ["digits 1", "team/large beta"]
    assert _unload(server, "team/large").status_code == 200
    assert server.predict(_SEVEN, "/models/team/large").status_code == 404
    assert "team/large" not in server.get("/metrics").text
    assert "team/large" not in json.dumps(_parameters(server))


def _parameters(server: RunningServer) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = server.get("/openapi.json").json()["paths"]["/predict"]["post"]["parameters"]
    return parameters


def _broken_weights(folder: Path) -> Path:
    """Make a checkpoint whose weights have another shape than its configuration says."""
    make_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 2 * config["hidden_size"]}))
    return folder


def _large_input(folder: Path) -> Path:
    make_checkpoint(folder)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"size": {"height": 64, "width": 64}}))
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda folder: folder / "none", "there is no such directory", id="missing"),
        pytest.param(_broken_weights, "The model can't be loaded: ", id="broken weights"),
        pytest.param(_large_input, "Set VIT_API_MAX_INPUT_SIDE to at least 64", id="large input"),
        pytest.param(lambda folder: make_checkpoint(folder, classes=33_000), "has 33000 labels", id="many labels"),
    ],
)
def test_a_load_that_fails_changes_nothing_and_says_why(
    server: RunningServer, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    """A 409 with the reason; the place is free again, and clients get their answers."""
    before = workers_of(server)
    with Clients(server, 2) as clients:
        response = _load(server, model=str(make(tmp_path / "model")), traffic=50)
        clients.wait_for_more()
    assert (response.status_code, response.json()["code"]) == (409, "load_failed")
    assert message in response.json()["error"]
    assert set(clients.statuses) == {200}
    assert _served(server) == {"digits 1": 100}
    assert _index(server) == {("digits", "1"): "READY"}
    assert workers_of(server) == before


def test_int8_models_need_their_verdict_live_too(server: RunningServer) -> None:
    """What the start refuses is not loaded either."""
    response = _load(server, model="digits", dtype="int8")
    assert (response.status_code, response.json()["code"]) == (409, "load_failed")
    assert "int8" in response.json()["error"]
    assert _served(server) == {"digits 1": 100}


def _shadow(server: RunningServer, version: str) -> Counter[str]:
    """Return what a mirror has computed, by outcome; empty if the metrics have none."""
    families = parse_text(server.get("/metrics").text)
    samples = [one for family in families for one in family.samples if one.name == "inference_shadow_total"]
    return Counter({one.labels["outcome"]: int(one.value) for one in samples if one.labels["version"] == version})


def _mirror(server: RunningServer, mirror: dict[str, float], **traffic: float) -> httpx.Response:
    shares = {version.removeprefix("v"): share for version, share in traffic.items()}
    return _operate(server, "digits/traffic", {"traffic": shares, "mirror_traffic": mirror})


def _fresh(server: RunningServer) -> str:
    """Post an image that is computed, and return the version that answered."""
    response = server.predict(_SEVEN, headers={"cache-control": "no-cache", "x-session-id": os.urandom(8).hex()})
    assert response.status_code == 200
    return response.headers["x-model-version"]


def test_a_mirror_is_loaded_promoted_demoted_and_unloaded(server: RunningServer) -> None:
    """Under load without a failure: it mirrors, then answers a part of the clients, then all, and back again."""
    assert _shadow(server, "1") == {}
    assert _load(server, model="digits", version="2", mirror_traffic=100).status_code == 200
    with Clients(server, 4) as clients:
        assert {_fresh(server) for _ in range(20)} == {"1"}
        wait_until(lambda: _shadow(server, "2")["agree"] >= 20)
        assert _share(server, v1=90, v2=10).status_code == 200  # promoted: what has traffic is no mirror
        assert _mirrors(server) == {}
        before = _shadow(server, "2")
        assert {_fresh(server) for _ in range(200)} == {"1", "2"}
        assert _share(server, v1=0, v2=100).status_code == 200
        assert {_fresh(server) for _ in range(20)} == {"2"}
        assert _shadow(server, "2") == before
        assert _mirror(server, {"1": 50}).status_code == 200  # the old version watches the new one
        assert _mirrors(server) == {"1": 50}
        for _ in range(60):
            _fresh(server)
        wait_until(lambda: 0 < _shadow(server, "1")["agree"] < 60)
        assert _mirror(server, {"2": 100}, v1=100).status_code == 200  # demoted: a mirror has no traffic
        assert _mirrors(server) == {"2": 100}
        assert _served(server) == {"digits 1": 100, "digits 2": 0}
        wait_until(lambda: _fresh(server) == "1" and _shadow(server, "2")["agree"] > before["agree"])
        assert _mirror(server, {"2": 0}).status_code == 200
        assert _mirror(server, {"2": 1}).status_code == 200
        assert _unload(server, version="2").status_code == 200
    assert set(clients.statuses) == {200}
    assert server.get("/info").json()["slots"]["free"] == 1024
    assert "inference_shadow" not in "".join(line for line in _metrics(server).splitlines() if 'version="2"' in line)
    assert _fresh(server) == "1"


def _mirrors(server: RunningServer) -> dict[str, float]:
    models = server.get("/info").json()["models"]
    return {one["version"]: one["mirror_traffic"] for one in models if one["mirror_traffic"]}


def _metrics(server: RunningServer) -> str:
    return server.get("/metrics").text


@pytest.mark.parametrize(
    ("mirror", "traffic", "message"),
    [
        pytest.param({"2": 50}, {"v1": 50, "v2": 50}, "has 'mirror_traffic' and 'traffic'", id="both"),
        pytest.param({"1": 50}, {}, "should be 100 percent together, not 0", id="all traffic of a mirror"),
        pytest.param({"1": 50, "2": 50}, {}, "Only one version of 'digits' can have 'mirror_traffic'", id="two"),
        pytest.param({"2": 101}, {}, "less than or equal to 100", id="too much"),
        pytest.param({"2": -1}, {}, "greater than or equal to 0", id="negative"),
        pytest.param({"3": 50}, {}, "There is no version '3'", id="unknown"),
        pytest.param({"bicubic": 50}, {}, "its images are not decoded like those of digits 1", id="other pixels"),
    ],
)
def test_what_no_mirror_can_be(
    two_inputs: RunningServer, mirror: dict[str, float], traffic: dict[str, float], message: str
) -> None:
    """A line says why, and nothing changes."""
    before = _mirrors(two_inputs), _served(two_inputs)
    response = _mirror(two_inputs, mirror, **traffic)
    assert (response.status_code, message in response.json()["error"]) == (400, True), response.text
    assert (_mirrors(two_inputs), _served(two_inputs)) == before


def test_what_is_mirrored_takes_the_same_pixels(two_inputs: RunningServer, bicubic: Path) -> None:
    """Neither is a mirror loaded that takes others, nor is traffic given to a version whose pixels its mirror lacks."""
    response = _load(two_inputs, model=str(bicubic), version="4", mirror_traffic=5)
    assert (response.status_code, "not decoded like those of digits 1" in response.json()["error"]) == (400, True)
    assert _mirror(two_inputs, {"2": 10}).status_code == 200
    response = _share(two_inputs, v1=50, vbicubic=50)
    assert (response.status_code, "not decoded like those of digits bicubic" in response.json()["error"]) == (400, True)
    response = _load(two_inputs, model="digits", version="4", mirror_traffic=5)
    assert (response.status_code, "Only one version" in response.json()["error"]) == (400, True)
    response = _load(two_inputs, "other", model="digits", mirror_traffic=5)
    assert (response.status_code, "has no other version" in response.json()["error"]) == (400, True)
    assert _mirror(two_inputs, {"2": 0}).status_code == 200


@pytest.fixture(scope="module")
def bicubic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits` with another resize, so that its pixels differ."""
    folder = shutil.copytree(ROOT / "vit_api/checkpoints/digits", tmp_path_factory.mktemp("models") / "bicubic")
    edit_json(folder / "preprocessor_config.json", resample=3)
    return folder


@pytest.fixture(scope="module")
def two_inputs(bicubic: Path) -> Iterator[RunningServer]:
    """Run two versions of `digits` with the same pixels, and one with others."""
    versions = [("1", "digits", 100), ("2", "digits", 0), ("bicubic", str(bicubic), 0)]
    models = json.dumps(
        [{"name": "digits", "version": name, "model": model, "traffic": share} for name, model, share in versions]
    )
    with serve("", models=models, max_models=4, operator_key=_OPERATOR, api_servers=1) as running:
        wait_until(lambda: set(_index(running).values()) == {"READY"}, _PATIENCE_S)
        yield running


def test_a_worker_that_is_killed_while_it_loads_fails_the_load(server: RunningServer) -> None:
    """As the system does whose memory is full; nothing is restarted."""
    before = set(workers_of(server))
    responses: list[httpx.Response] = []
    loading = threading.Thread(target=lambda: responses.append(_load(server, model="digits")))
    loading.start()
    wait_until(lambda: bool(set(workers_of(server)) - before), _PATIENCE_S)
    assert _index(server)["digits", "2"] == "LOADING"
    for pid in set(workers_of(server)) - before:
        os.kill(pid, signal.SIGKILL)
    loading.join(_PATIENCE_S)
    assert responses[0].status_code == 409
    assert "perhaps for lack of memory" in responses[0].json()["error"]
    assert set(workers_of(server)) == before


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        pytest.param("digits/load", {"parameters": {"config": "{"}}, 400, "is malformed", id="JSON"),
        pytest.param("digits/load", {"parameters": {"file:1/m": ""}}, 400, "Files are not taken", id="files"),
        pytest.param(
            "digits/load",
            {"parameters": {"config": '{"backend": "onnxruntime"}'}},
            400,
            "a field 'backend'",
            id="field",
        ),
        pytest.param(
            "digits/load",
            {"parameters": {"config": '{"model": "digits", "dtype": "int3"}'}},
            400,
            "'dtype'",
            id="dtype",
        ),
        pytest.param(
            "digits/load",
            {"parameters": {"config": '{"model": "digits", "thresholds": {"x": 1}}'}},
            400,
            "The model has no label 'x'.\n",
            id="thresholds",
        ),
        pytest.param(
            "digits/load",
            {"parameters": {"config": '{"model": "/other", "version": "1"}'}},
            400,
            "is loaded already",
            id="version",
        ),
        pytest.param("new/load", None, 400, "It is not known where the model 'new' is", id="unknown place"),
        pytest.param("digits/unload", None, 400, "is the default model", id="default"),
        pytest.param("new/unload", None, 404, "There is no model 'new'", id="unload"),
        pytest.param("digits/traffic", {"traffic": {"1": 90}}, 400, "should be 100 percent together", id="traffic"),
        pytest.param("digits/traffic", {"traffic": {"7": 100}}, 400, "no version '7'", id="version of traffic"),
        pytest.param("digits/traffic", {"traffic": {"1": -5}}, 400, "greater than or equal to 0", id="negative"),
    ],
)
def test_what_can_not_be_done(server: RunningServer, path: str, body: Any, status: int, message: str) -> None:
    """A line that says why."""
    response = _operate(server, path, body)
    assert (response.status_code, message in response.json()["error"] + "\n") == (status, True), response.text
    assert _served(server) == {"digits 1": 100}


def test_only_the_operator_may(server: RunningServer) -> None:
    """Another key is refused, and the description says that one is needed."""
    for key in ({"x-api-key": "wrong"}, {"x-other": "none"}):
        assert _operate(server, "digits/load", {}, key).status_code == 401
    operation = server.get("/openapi.json").json()["paths"]["/v2/repository/models/{model_name}/load"]["post"]
    assert operation["security"]


def test_a_dead_worker_of_a_loaded_version_is_replaced(server: RunningServer) -> None:
    """As one of the list; its images are computed by its successor."""
    before = set(workers_of(server))
    assert _load(server, model="digits", version="2").status_code == 200
    (worker,) = set(workers_of(server)) - before
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker not in workers_of(server) and len(workers_of(server)) == 2, _PATIENCE_S)
    assert server.predict(_SEVEN, "/predict?version=2").status_code == 200
    assert _unload(server, version="2").status_code == 200
    assert set(workers_of(server)) == before


def test_the_process_that_workers_are_forked_from_is_replaced(server: RunningServer) -> None:
    """Its end is that of all workers; their successors answer, and can be added to."""
    before = set(workers_of(server))
    (fork_server,) = {parent_of(worker) for worker in before}
    assert fork_server != server.process.pid
    os.kill(fork_server, signal.SIGKILL)
    wait_until(lambda: len(workers_of(server)) == 1 and not before & set(workers_of(server)), _PATIENCE_S)
    wait_until(lambda: server.get("/health").status_code == 200, _PATIENCE_S)
    assert server.predict(_SEVEN).status_code == 200
    assert _load(server, model="digits", version="2").status_code == 200
    assert server.predict(_SEVEN, "/predict?version=2").status_code == 200
    assert _unload(server, version="2").status_code == 200


def test_http_processes_that_die_during_a_load_begin_with_what_is_loaded(server: RunningServer) -> None:
    """The load goes on without the caller; both successors know the version, and drop it when it is unloaded."""
    loading = threading.Thread(target=_ignore_errors(lambda: _load(server, model="digits", version="2")))
    loading.start()
    wait_until(lambda: ("digits", "2") in _index(server), _PATIENCE_S)
    for pid in http_processes_of(server):
        os.kill(pid, signal.SIGKILL)
    loading.join(_PATIENCE_S)
    wait_until(_ignore_errors(lambda: _index(server)["digits", "2"] == "READY"), _PATIENCE_S)

    def is_known() -> bool:  # over connections to both processes, of which one may be later
        return all(server.predict(_SEVEN, "/predict?version=2").status_code == 200 for _ in range(20))

    wait_until(_ignore_errors(is_known), _PATIENCE_S)
    for pid in http_processes_of(server)[:1]:
        os.kill(pid, signal.SIGKILL)
    wait_until(_ignore_errors(lambda: _unload(server, version="2").status_code == 200), _PATIENCE_S)
    wait_until(lambda: len(http_processes_of(server)) == 2, _PATIENCE_S)
    for _ in range(20):
        wait_until(_ignore_errors(lambda: server.predict(_SEVEN, "/predict?version=2").status_code == 404), 60)
    assert server.get("/info").json()["slots"]["free"] == 1024


def _ignore_errors(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function whose failures of a connection are False."""

    def safe() -> Any:
        try:
            return call()
        except (httpx.HTTPError, KeyError):
            return False

    return safe


def test_loading_and_unloading_leaves_nothing_behind(server: RunningServer) -> None:
    """No process, and no mapping of shared memory, but for those of one deployment: what refers to it may go late."""

    def cycle() -> None:
        assert _load(server, model="digits", version="2").status_code == 200
        for _ in range(10):
            assert server.predict(_SEVEN, "/predict?version=2").status_code == 200
        assert _unload(server, version="2").status_code == 200

    def held() -> dict[int, int]:
        pids = [server.process.pid, *http_processes_of(server)]
        return {pid: len(_mappings(pid)) for pid in pids}

    cycle()
    mapped, processes = held(), kinds(server.process.pid)
    for _ in range(2):  # a leak would be of more mappings than those of one deployment
        cycle()
    assert kinds(server.process.pid) == processes
    wait_until(lambda: all(count <= mapped[pid] + _MAPPINGS for pid, count in held().items()))


def _mappings(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line for line in lines if "/memfd:vit-api" in line]


def test_a_signal_during_a_load_stops_the_server() -> None:
    """With status 0, which `serve` checks; the caller is told."""
    responses: list[httpx.Response] = []
    with serve("", models=_LIST, max_models=2, operator_key=_OPERATOR) as server:
        before = set(workers_of(server))
        loading = threading.Thread(target=lambda: responses.append(_load(server, model="digits")))
        loading.start()
        wait_until(lambda: bool(set(workers_of(server)) - before), _PATIENCE_S)
    loading.join(_PATIENCE_S)
    assert responses[0].status_code == 503
    assert "shutting down" in responses[0].json()["error"]


def test_no_orphan_survives_the_main_process() -> None:
    """Neither a worker nor the process that it was forked from."""
    with serve("", models=_LIST, max_models=2, operator_key=_OPERATOR) as server:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(60)
        wait_until(lambda: living(server.process.pid) == [], _PATIENCE_S)


def test_a_restart_knows_what_was_loaded(tmp_path: Path) -> None:
    """With a directory for it; until the list is changed. A damaged file stops the start with a line."""
    settings = {"models": _LIST, "max_models": 2, "operator_key": _OPERATOR, "state_dir": tmp_path, "api_servers": 1}
    other = load_deployments(json.dumps([{"name": "digits", "version": "9", "model": "digits"}]))
    ModelState(str(tmp_path), other).save(other)
    with serve("", **settings) as server:
        assert "VIT_API_MODELS has changed" in server.log.read_text()
        assert _served(server) == {"digits 1": 100}
        assert _load(server, model="digits", version="2", traffic=100, thresholds={"*": 0.5}).status_code == 200
        assert _mirror(server, {"1": 20}).status_code == 200
    with serve("", **settings) as server:
        assert (_served(server), _mirrors(server)) == ({"digits 1": 0, "digits 2": 100}, {"1": 20})
        assert server.predict(_SEVEN).json()["flagged"] is True
        assert _unload(server, version="1").status_code == 200
        kept = (tmp_path / "models.json").read_text()
        left = load_deployments(ModelState(str(tmp_path), load_deployments(_LIST)).read() or "")
        assert [one.title for one in left] == ["digits 2"]
        shutil.rmtree(tmp_path)
        assert "could not be saved: No such file" in _share(server, v2=100).json()["warning"]
        tmp_path.mkdir()
        assert _share(server, v2=100).json()["warning"] is None
    (tmp_path / "models.json").write_text(kept.replace('"model": "digits"', '"model": "/gone"'))
    assert "VIT_API_STATE_DIR: digits 2: The model '/gone' can't be used" in _refused(settings)
    (tmp_path / "models.json").write_text('{"format": 1, "models": [')
    assert "models.json is damaged" in _refused(settings)


def _refused(settings: dict[str, Any]) -> str:
    """Start a server that refuses its settings, and return what it says."""
    stopped = _start(settings)
    assert (stopped.returncode, "Traceback" in stopped.stderr) == (1, False), stopped.stderr
    return stopped.stderr


def _start(settings: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return forked_servers.start_and_end(**{"host": "127.0.0.1", "port": free_port()} | settings)


def test_people_operate_by_commands(server: RunningServer) -> None:
    """`vit-api models`, with the operator key in the environment."""

    def run(*arguments: str, key: str = _OPERATOR) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vit_api", "models", *arguments, "--url", server.url]
        variables = {**os.environ, "VIT_API_OPERATOR_KEY": key}
        return forked_servers.run(command, cwd=ROOT, env=variables, timeout_s=_PATIENCE_S)

    assert run("load", "digits", "digits", "--version", "2", "--traffic", "25").stdout == "Loaded digits, version 2.\n"
    lines = [line.split() for line in run("list").stdout.splitlines()]
    assert lines[1:] == [["digits", "1", "READY", "75%", "1/1"], ["digits", "2", "READY", "25%", "1/1"]]
    assert run("traffic", "digits", "1=100", "2=0").stdout == "Changed the traffic of digits.\n"
    assert run("unload", "digits", "2").stdout == "Unloaded digits, version 2.\n"
    assert run("load", "digits", "--version", "2", "--mirror-traffic", "30").returncode == 0
    assert run("traffic", "digits", "--mirror", "2=5").stdout == "Changed the traffic of digits.\n"
    assert run("list").stdout.splitlines()[2].split() == ["digits", "2", "READY", "mirror", "5%", "1/1"]
    assert "expected VERSION=PERCENT" in run("traffic", "digits").stderr
    assert run("unload", "digits", "2").returncode == 0
    refused = run("unload", "digits", "2")
    assert (refused.returncode, refused.stderr) == (1, "error: There is no version '2' of the model 'digits'.\n")
    assert "Invalid operator key" in run("unload", "digits", "2", key="0123456789abcdef-wrong").stderr
