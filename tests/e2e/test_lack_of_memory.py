"""A version that has no memory left, by the system's own limit for its worker, beside one that has."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.harness import process_group
from benchmarks.harness.checkpoints import save_small_vit
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve, wait_until, workers_of

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_OPERATOR = "0123456789abcdef-operator"
_PATIENCE_S = 240.0
_MARGIN = 2**26
_MOST = 32


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that needs megabytes for each image."""
    folder = tmp_path_factory.mktemp("models") / "large"
    save_small_vit(folder, layers=1)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run `digits`, with a place for another version."""
    models = json.dumps([{"name": "digits", "version": "1", "model": "digits"}])
    with serve(
        "", is_fresh=True, models=models, max_models=2, operator_key=_OPERATOR, api_servers=1, cache_size=0
    ) as running:
        yield running


def _load(server: RunningServer, model: Path, **config: int) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v2/repository/models/digits/load",
        json={"parameters": {"config": json.dumps({"model": str(model), "version": "2"} | config)}},
        headers={"authorization": f"Bearer {_OPERATOR}"},
        timeout=_PATIENCE_S,
        **PLAIN_HTTP,
    )


def _peak_bytes(pid: int) -> int:
    """Return the largest address space that a process has had."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmPeak"))
    return int(line.split()[1]) * 2**10


def _limit(pid: int, limit: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _picture() -> bytes:
    """A picture that is like no other."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(buffer, "PNG")
    return buffer.getvalue()


def _load_within(server: RunningServer, first: int, limit: int, model: Path, **config: int) -> httpx.Response:
    """Load version 2 with a limit for its worker, while version 1 answers each request."""
    responses: list[httpx.Response] = []
    loading = threading.Thread(target=lambda: responses.append(_load(server, model, **config)))
    loading.start()
    wait_until(lambda: len(workers_of(server)) == 2, _PATIENCE_S)
    (second,) = set(workers_of(server)) - {first}
    _limit(second, limit)
    while loading.is_alive():
        response = server.predict(_SEVEN)
        assert (response.status_code, response.headers["x-model-version"]) == (200, "1")
    loading.join()
    return responses[0]


def test_a_version_without_memory_to_start_changes_nothing(server: RunningServer, large: Path) -> None:
    """Not even the interpreter of its worker has any."""
    (first,) = workers_of(server)
    response = _load_within(server, first, 2**20, large)
    assert (response.status_code, response.json()["code"]) == (409, "load_failed")
    assert "can't be loaded" in response.json()["error"]
    assert server.predict(_SEVEN, "/predict?version=2").status_code == 404
    assert workers_of(server) == [first]


def test_a_version_whose_batches_do_not_fit_is_refused_and_harms_no_other(server: RunningServer, large: Path) -> None:
    """Its worker may have a little more than that of the other version, but not what batches of 256 photos need."""
    (first,) = workers_of(server)
    limit = _peak_bytes(first) + _MARGIN
    response = _load_within(server, first, limit, large, max_batch_size=256)
    assert (response.status_code, response.json()["code"]) == (409, "load_failed")
    assert "memory" in response.json()["error"]
    assert workers_of(server) == [first]
    assert _load(server, large, max_batch_size=32).status_code == 200
    assert server.predict(_SEVEN, "/predict?version=2").status_code == 200


def test_a_version_whose_memory_runs_out_while_it_runs_harms_no_other(server: RunningServer) -> None:
    """Its worker gets no byte more: a batch is run in halves, or fails, or kills it, and later all is as before."""
    first, second = sorted(workers_of(server), key=process_group.started_at)
    _limit(second, 2**20)
    statuses = set()
    for _ in range(3):
        statuses.add(_ask_many(server))
        response = server.predict(_SEVEN)
        assert (response.status_code, response.headers["x-model-version"]) == (200, "1")
    assert statuses <= {200, 500, 503, 504}
    has_run_out = "not have enough free memory" in server.log.read_text() or second not in workers_of(server)
    with contextlib.suppress(ProcessLookupError):  # it died, and its successor has no such limit
        _limit(second, resource.RLIM_INFINITY)
    wait_until(lambda: _ask_many(server) == 200, _PATIENCE_S)
    assert first in workers_of(server)
    wait_until(lambda: server.get("/info").json()["slots"]["free"] == 1024)
    if not has_run_out:
        pytest.skip("the worker did not need more memory than it had kept of its warm-up")


def _ask_many(server: RunningServer) -> int:
    """Ask version 2 for as many images as a request may have, all new, and return the status."""
    files = [("files", (f"{number}.png", _picture())) for number in range(_MOST)]
    url = f"{server.url}/predict/batch?version=2"
    return httpx.post(url, files=files, timeout=_PATIENCE_S, **PLAIN_HTTP).status_code
