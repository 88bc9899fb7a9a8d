"""Many clients at once: their own answers, full batches, no waiting for nothing, no busy waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from tests.clients import Reply, post_all
from tests.samples import edit_json, encode, make_checkpoint
from tests.server import RunningServer, cpu_seconds, serve

_CLIENTS = 128
_IDLE_S = 5.0
_MAX_IDLE_CPU = 0.02


@pytest.fixture(scope="module")
def busy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Run a model that is slow beside its clients, as a real one is, so that it is the limit and images queue up."""
    folder = make_checkpoint(tmp_path_factory.mktemp("busy") / "busy")
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
        intermediate_size=768, num_labels=10,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight *= 30
    model.save_pretrained(folder)
    edit_json(folder / "preprocessor_config.json", size={"height": 64, "width": 64})
    with serve(folder) as server:
        yield server


def _different_images(count: int) -> list[bytes]:
    noise = np.random.default_rng(0)
    small = noise.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [encode(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC), "PNG") for pixels in small]


def _top(reply: Reply) -> dict[str, float]:
    return {item["label"]: item["confidence"] for item in reply.body["predictions"]}


def test_each_of_128_clients_gets_its_own_answer_in_full_batches(busy_server: RunningServer) -> None:
    """Each answer is the one that the image gets alone; the mean batch is above 8, and none is above 32."""
    images = _different_images(_CLIENTS)
    alone = [_top(reply) for reply in post_all(busy_server.port, [images], "/predict?top_k=10")[0]]
    rounds = post_all(busy_server.port, [[image] * 4 for image in images], "/predict?top_k=10")
    for expected, replies in zip(alone, rounds, strict=True):
        for reply in replies:
            assert reply.status == 200
            assert _top(reply) == pytest.approx(expected, abs=0.02)
    assert len({max(top, key=lambda label: top[label]) for top in alone}) > 1, "the images differ for the model too"
    sizes = [int(reply.headers["x-batch-size"]) for replies in rounds for reply in replies]
    batches = sum(1 / size for size in sizes)
    assert max(sizes) <= 32
    assert len(sizes) / batches > 8


def test_31_good_images_and_a_corrupt_one(busy_server: RunningServer) -> None:
    """The bad one gets a 400 and costs the others nothing."""
    images = _different_images(32)
    images[13] = images[13][: len(images[13]) // 2]
    replies = [replies[0] for replies in post_all(busy_server.port, [[image] for image in images])]
    assert [number for number, reply in enumerate(replies) if reply.status != 200] == [13]
    assert (replies[13].status, replies[13].body["code"]) == (400, "bad_image")


def test_a_lone_request_does_not_wait_for_company() -> None:
    """With a wait of 10 s allowed, a request on an idle server is in the queue for a fraction of that."""
    with serve(max_wait_ms=10_000) as server:
        image = _different_images(1)[0]
        waits = [float(server.predict(image).headers["x-queue-time-ms"]) for _ in range(5)]
    assert sorted(waits)[2] < 1000


def test_idle_processes_do_not_busy_wait(digits_server: RunningServer) -> None:
    """All processes together use less than 2 % of a core while nobody asks, also after a burst."""
    image = _different_images(1)[0]
    post_all(digits_server.port, [[image] * 4] * 32)
    group = digits_server.process.pid
    shares = []
    for _ in range(3):  # the least of three: other work on the machine can only add
        before = cpu_seconds(group)
        time.sleep(_IDLE_S)
        shares.append((cpu_seconds(group) - before) / _IDLE_S)
    assert min(shares) < _MAX_IDLE_CPU


@pytest.mark.parametrize("queue_size", [4])
def test_a_full_queue_says_when_to_come_back(tmp_path: Path, queue_size: int) -> None:
    """More images at once than slots: each is answered, with its prediction or a 503 with Retry-After."""
    with serve(queue_size=queue_size, api_servers=1) as server:
        images = _different_images(64)
        replies = [replies[0] for replies in post_all(server.port, [[image] for image in images])]
        assert {reply.status for reply in replies} <= {200, 503}
        turned_away = [reply for reply in replies if reply.status == 503]
        assert turned_away
        assert all(reply.headers["retry-after"].isdecimal() for reply in turned_away)
        assert all(reply.body["code"] == "overloaded" for reply in turned_away)
        assert server.predict(images[0]).status_code == 200


def test_the_deadline_is_kept(busy_server: RunningServer) -> None:
    """An image whose time is up gets a 504, and its slot is free again afterwards."""
    with serve(request_timeout_s=0.000001, queue_size=2, api_servers=1) as server:
        image = _different_images(1)[0]
        for _ in range(6):
            response = server.predict(image)
            assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
