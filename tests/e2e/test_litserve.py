"""The LitAPI works in a stock LitServer, and LitServe's internals are as our modules expect."""

from __future__ import annotations

import base64
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import httpx
import pytest
from litserve.loops import LitLoop
from litserve.loops.loops import inference_worker
from litserve.server import LitServer

from benchmarks.harness.servers import free_port
from tests.support.clients import post_all
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, environment, wait_until_ready


@pytest.fixture(scope="module")
def stock_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a stock LitServer. It leaves orphans when it is stopped, so its whole process group is killed."""
    port = free_port()
    log = tmp_path_factory.mktemp("stock") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.baselines.stock_litserve", str(port), "digits"],
            cwd=ROOT,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = RunningServer(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until_ready(server)
        yield server.url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def test_both_servers_give_the_same_answers(
    stock_url: str, digits_server: RunningServer, held_out: list[tuple[bytes, str]]
) -> None:
    """LitServe's own server gives the same results for multipart and JSON."""
    for number, (upload, _) in enumerate(held_out[:40]):
        if number % 2:
            stock = httpx.post(stock_url + "/predict", files={"file": upload}, timeout=60, **PLAIN_HTTP)
        else:
            stock = httpx.post(
                stock_url + "/predict", json={"image": base64.b64encode(upload).decode()}, timeout=60, **PLAIN_HTTP
            )
        assert stock.status_code == 200, stock.text
        theirs = [(p["label"], p["confidence"]) for p in stock.json()["predictions"]]
        ours = digits_server.top(upload)
        assert theirs[0][0] == ours[0][0]
        assert [p for _, p in theirs] == pytest.approx([p for _, p in ours], abs=0.02)


def test_the_stock_server_batches_too(stock_url: str, held_out: list[tuple[bytes, str]]) -> None:
    """LitServe's batched loop calls `batch` and `unbatch` for concurrent requests."""
    bodies = [[b'{"image": "' + base64.b64encode(upload) + b'"}'] for upload, _ in held_out[:32]]
    replies = post_all(int(stock_url.rpartition(":")[2]), bodies)
    labels = [mine[0].body["predictions"][0]["label"] for mine in replies]
    right = sum(label == expected for label, (_, expected) in zip(labels, held_out[:32], strict=True))
    assert right >= 31


def test_litserve_is_the_reviewed_version() -> None:
    """Review `vit_api/processes/lit_server.py`, which lists the internals in use, for each new version."""
    assert version("litserve") == "0.2.19"


@pytest.mark.parametrize(
    ("what", "parameters"),
    [
        pytest.param(LitServer.launch_single_inference_worker, ["self", "lit_api", "worker_id"], id="launch"),
        pytest.param(LitServer.register_endpoints, ["self"], id="register_endpoints"),
        pytest.param(LitServer._register_middleware, ["self"], id="_register_middleware"),
        pytest.param(
            inference_worker,
            [
                *("lit_api", "device", "worker_id", "request_queue", "transport", "workers_setup_status"),
                *("callback_runner", "restart_workers"),
            ],
            id="inference_worker",
        ),
        pytest.param(
            LitLoop.__call__,
            [
                *("self", "lit_api", "device", "worker_id", "request_queue", "transport", "workers_setup_status"),
                "callback_runner",
            ],
            id="LitLoop.__call__",
        ),
    ],
)
def test_internals_are_where_we_expect_them(what: object, parameters: list[str]) -> None:
    """LitServe's internals that `lit_server` and `worker.loop` use have the expected signatures."""
    assert list(inspect.signature(what).parameters) == parameters  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["workers_setup_status", "_get_request_queue", "_transport", "_callback_runner"])
def test_the_launch_reads_what_we_provide(name: str) -> None:
    """LitServe's launch of a worker passes on the attributes that our server sets instead of queues."""
    assert name in inspect.getsource(LitServer.launch_single_inference_worker)


def test_http_processes_need_no_torch() -> None:
    """The main process, and so each HTTP process forked from it, imports neither torch nor transformers."""
    code = "import vit_api.app, sys; print(sorted({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
