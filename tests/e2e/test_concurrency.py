"""Concurrent clients: each gets its own result, batches fill up, and no process waits needlessly or busily."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from benchmarks.harness.process_group import cpu_seconds
from tests.support.clients import Reply, post_all
from tests.support.samples import edit_json, encode, make_checkpoint
from tests.support.server import RunningServer, paused, serve, wait_until, worker_of

_CLIENTS = 128
_ROUNDING = 0.002
"""Well above the rounding differences of float32 sums in batches of another size."""
_IDLE_S = 5.0
_MAX_IDLE_CPU = 0.02


@pytest.fixture(scope="module")
def busy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Run a model that is slow compared to its clients, so that images queue up."""
    folder = make_checkpoint(tmp_path_factory.mktemp("busy") / "busy")
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
        intermediate_size=768, num_labels=10,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight *= 4  # so that probabilities differ clearly, but are not all 1.0
    model.save_pretrained(folder)
    edit_json(folder / "preprocessor_config.json", size={"height": 64, "width": 64})
    with serve(folder, dtype="float32", cache_size=0) as server:
        yield server


@pytest.fixture(scope="module")
def server_with_long_window() -> Iterator[RunningServer]:
    """Run a server with a batch window of 10 s and a body timeout of 1 s."""
    with serve(max_wait_ms=10_000, body_timeout_s=1, cache_size=0) as server:
        yield server


@pytest.fixture(scope="module")
def server_with_one_slot() -> Iterator[RunningServer]:
    """Run a server with one slot and a request timeout of 1 s."""
    with serve(request_timeout_s=1, queue_size=1, api_servers=1, cache_size=0) as server:
        yield server


def _different_images(count: int) -> list[bytes]:
    noise = np.random.default_rng(0)
    small = noise.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [encode(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC), "PNG") for pixels in small]


def _top(reply: Reply) -> dict[str, float]:
    return {item["label"]: item["confidence"] for item in reply.body["predictions"]}


def _assert_distinct(tops: list[dict[str, float]]) -> None:
    """Check that all images have clearly different results, so that a mix-up would be detected."""
    table = np.array([[top[label] for label in sorted(top)] for top in tops])
    distances = np.abs(table[:, None] - table[None]).max(axis=2) + np.eye(len(table))
    assert distances.min() > 2 * _ROUNDING


def test_each_of_128_clients_gets_its_own_answer_in_full_batches(busy_server: RunningServer) -> None:
    """Results equal those of single requests; the mean batch is above 8, the largest at most 32."""
    images = _different_images(_CLIENTS)
    alone = [_top(reply) for reply in post_all(busy_server.port, [images], "/predict?top_k=10")[0]]
    rounds = post_all(busy_server.port, [[image] * 4 for image in images], "/predict?top_k=10")
    for expected, replies in zip(alone, rounds, strict=True):
        for reply in replies:
            assert reply.status == 200
            assert _top(reply) == pytest.approx(expected, abs=_ROUNDING)
    _assert_distinct(alone)
    sizes = [int(reply.headers["x-batch-size"]) for replies in rounds for reply in replies]
    batches = sum(1 / size for size in sizes)
    assert max(sizes) <= 32
    assert len(sizes) / batches > 8


def test_31_good_images_and_a_corrupt_one(busy_server: RunningServer) -> None:
    """The corrupt image gets a 400; each other image gets the same result as on its own."""
    images = _different_images(32)
    alone = [_top(reply) for reply in post_all(busy_server.port, [images])[0]]
    images[13] = images[13][: len(images[13]) // 2]
    replies = [replies[0] for replies in post_all(busy_server.port, [[image] for image in images])]
    assert [number for number, reply in enumerate(replies) if reply.status != 200] == [13]
    assert (replies[13].status, replies[13].body["code"]) == (400, "bad_image")
    for number in set(range(32)) - {13}:
        assert _top(replies[number]) == pytest.approx(alone[number], abs=_ROUNDING)


def test_a_single_request_is_not_delayed(server_with_long_window: RunningServer) -> None:
    """With a batch window of 10 s, an image on an idle server is queued for a fraction of that."""
    image = _different_images(1)[0]
    waits = [float(server_with_long_window.predict(image).headers["x-queue-time-ms"]) for _ in range(5)]
    assert sorted(waits)[2] < 1000


def test_idle_processes_do_not_busy_wait(digits_server: RunningServer) -> None:
    """All idle processes together use less than 2% of a core, also after a burst."""
    image = _different_images(1)[0]
    post_all(digits_server.port, [[image] * 4] * 32)
    group = digits_server.process.pid
    share = 1.0
    for _ in range(3):  # other work, such as the server's last tasks, can only add CPU time
        before = cpu_seconds(group)
        time.sleep(_IDLE_S)
        share = min(share, (cpu_seconds(group) - before) / _IDLE_S)
        if share < _MAX_IDLE_CPU:
            break
    assert share < _MAX_IDLE_CPU


def test_a_full_queue_sends_retry_after() -> None:
    """With more images than slots, each request gets its prediction or a 503 with `Retry-After`."""
    with serve(queue_size=4, api_servers=1) as server:
        images = _different_images(64)
        replies = [replies[0] for replies in post_all(server.port, [[image] for image in images])]
        assert {reply.status for reply in replies} <= {200, 503}
        turned_away = [reply for reply in replies if reply.status == 503]
        assert turned_away
        assert all(reply.headers["retry-after"].isdecimal() for reply in turned_away)
        assert all(reply.body["code"] == "overloaded" for reply in turned_away)
        assert server.predict(images[0]).status_code == 200


def test_the_deadline_is_kept_while_the_worker_hangs(server_with_one_slot: RunningServer) -> None:
    """The request gets a 504; its slot is freed when the worker continues, and the server recovers."""
    image, server = _different_images(1)[0], server_with_one_slot
    assert server.predict(image).status_code == 200
    with paused(worker_of(server)):
        late, turned_away = server.predict(image), server.predict(image)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert (turned_away.status_code, turned_away.json()["code"]) == (503, "overloaded")
    wait_until(lambda: server.predict(image).status_code == 200)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("server_with_long_window", id="body_timeout_s"),
        pytest.param("server_with_one_slot", id="request_timeout_s"),
    ],
)
def test_a_stalled_body_gets_a_408(request: pytest.FixtureRequest, name: str) -> None:
    """The connection is closed as well, since the rest of the body may still arrive."""
    server: RunningServer = request.getfixturevalue(name)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc")
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"body_timeout"' in answer
