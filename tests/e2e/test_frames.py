"""Several frames of an animation on a real server: answers, limits, the cache, single flight and the client."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support import forked_servers
from tests.support.animations import FORMATS, animate
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve, wait_until
from vit_api.client import Client, Rejected

_EXAMPLES = ROOT / "vit_api" / "web" / "page" / "static" / "examples"


def digits(labels: str, *, mark: int = 0) -> list[Image.Image]:
    """Return a picture of each digit; no two are alike, and `mark` tells those of one test from another's."""
    pictures = []
    for number, label in enumerate(labels):
        with Image.open(_EXAMPLES / f"digit-{label}.png") as example:
            picture = example.convert("RGB")
        picture.putpixel((0, 0), (number, mark, 255))
        pictures.append(picture)
    return pictures


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server with one HTTP process, so that all requests use one cache, and a queue for 40 images."""
    with serve(api_servers=1, queue_size=40) as running:
        yield running


def frames_of(server: RunningServer, upload: bytes, query: str = "frames=32") -> dict[str, Any]:
    response = server.predict(upload, f"/predict?{query}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_one_seven_among_forty_frames_is_found(server: RunningServer, image_format: str) -> None:
    """Frame 37 is among 32 of 40; its probability is that of the answer, beside the most probable one of the others."""
    upload = animate(digits("2" * 37 + "722", mark=1), image_format)
    body = frames_of(server, upload, "frames=32&top_k=2")
    assert {one["label"] for one in body["predictions"]} == {"2", "7"}
    assert all(one["confidence"] > 0.9 for one in body["predictions"])
    assert len(body["frames"]) == 32
    (seven,) = [frame for frame in body["frames"] if frame["predictions"][0]["label"] == "7"]
    assert seven["index"] == 37
    assert seven["time_ms"] == (None if image_format == "TIFF" else 37 * 50)
    assert [len(frame["predictions"]) for frame in body["frames"]] == [2] * 32


def test_each_label_has_its_largest_probability(server: RunningServer) -> None:
    """Over all frames, and the largest first."""
    body = frames_of(server, animate(digits("2357", mark=2), "GIF"), "frames=4&top_k=10")
    largest: dict[str, float] = {}
    for frame in body["frames"]:
        for one in frame["predictions"]:
            largest[one["label"]] = max(largest.get(one["label"], 0.0), one["confidence"])
    assert {one["label"]: one["confidence"] for one in body["predictions"]} == largest
    confidences = [one["confidence"] for one in body["predictions"]]
    assert confidences == sorted(confidences, reverse=True)


def test_a_frame_is_classified_as_its_picture_is(server: RunningServer) -> None:
    """To rounding: a batch's size changes the last digits."""
    pictures = digits("235", mark=3)
    body = frames_of(server, animate(pictures, "PNG"))
    for frame, picture in zip(body["frames"], pictures, strict=True):
        alone = dict(server.top(animate([picture], "PNG"), 5))
        for one in frame["predictions"]:
            assert one["confidence"] == pytest.approx(alone[one["label"]], abs=1e-3)


def test_a_still_picture_has_one_frame(server: RunningServer) -> None:
    """And the same answer as without `frames`, from the same cache entry."""
    upload = animate(digits("7", mark=4), "PNG")
    plain = frames_of(server, upload, "top_k=3")
    body = frames_of(server, upload, "frames=32&top_k=3")
    assert body["frames"] == [{"index": 0, "time_ms": 0.0, "predictions": plain["predictions"]}]
    assert body["predictions"] == plain["predictions"]
    assert (plain["cached"], body["cached"]) == (False, True)


@pytest.mark.parametrize("query", ["", "?frames=1", "?top_k=5&frames=1"])
def test_the_default_answer_has_no_frames(server: RunningServer, query: str) -> None:
    """An animation's first frame, as ever."""
    body = server.predict(animate(digits("27", mark=5), "GIF"), f"/predict{query}").json()
    assert list(body) == ["predictions", "cached", "processing_time_ms", "model"]
    assert body["predictions"][0]["label"] == "2"


def test_frames_are_cached_one_by_one(server: RunningServer) -> None:
    """Requests for other numbers of frames share what they can, and `no-cache` computes them all."""
    upload = animate(digits("2" * 9, mark=6), "GIF")
    assert frames_of(server, upload, "frames=5")["cached"] is False
    assert frames_of(server, upload, "frames=5")["cached"] is True
    assert frames_of(server, upload, "frames=3")["cached"] is True  # frames 0, 4 and 8 are among 0, 2, 4, 6 and 8
    assert frames_of(server, upload, "frames=9")["cached"] is False
    fresh = server.predict(upload, "/predict?frames=9", headers={"cache-control": "no-cache"})
    assert fresh.headers["x-cache"] == "miss"
    assert server.predict(upload, "/predict?frames=9").headers["x-cache"] == "hit"


def test_frames_never_answer_for_the_file(server: RunningServer) -> None:
    """The entries of an animation's frames and of its first picture are different ones."""
    upload = animate(digits("2357", mark=7), "PNG", default_image=True)
    assert frames_of(server, upload, "top_k=1")["predictions"][0]["label"] == "2"
    assert [frame["predictions"][0]["label"] for frame in frames_of(server, upload)["frames"]] == ["3", "5", "7"]
    assert frames_of(server, upload, "top_k=1")["predictions"][0]["label"] == "2"


def test_identical_requests_at_once_run_the_model_once(server: RunningServer) -> None:
    """For each frame."""
    upload = animate(digits("2357" * 5, mark=8), "WEBP")
    misses = server.get("/info").json()["cache"]["misses"]
    with ThreadPoolExecutor(6) as pool:
        bodies = list(pool.map(lambda _: frames_of(server, upload, "frames=20"), range(6)))
    assert len({json.dumps(body["frames"]) for body in bodies}) == 1
    assert server.get("/info").json()["cache"]["misses"] == misses + 20


@pytest.mark.parametrize("kind", ["query", "form", "json"])
def test_frames_may_be_in_the_query_the_form_or_the_json(server: RunningServer, kind: str) -> None:
    """As `top_k`."""
    upload = animate(digits("23", mark=9), "GIF")
    options: dict[str, Any] = {
        "query": {"content": upload, "params": {"frames": 2}},
        "form": {"files": {"file": upload}, "data": {"frames": "2"}},
        "json": {"json": {"image": base64.b64encode(upload).decode(), "frames": 2}},
    }[kind]
    body = httpx.post(f"{server.url}/predict", timeout=60, **PLAIN_HTTP, **options).json()
    assert len(body["frames"]) == 2


@pytest.mark.parametrize("value", ["0", "33", "-1", "1.5", "all"])
def test_other_numbers_of_frames_are_refused(server: RunningServer, value: str) -> None:
    """With the range that is allowed."""
    response = server.predict(b"x", f"/predict?frames={value}")
    assert response.status_code == 400
    assert response.json()["error"].startswith("'frames' must be an integer from 1 to 32")


def test_a_batch_has_at_most_32_frames_together(server: RunningServer) -> None:
    """Each frame is an image; a file that fails has its error in its place."""

    def post(uploads: list[bytes], frames: int) -> httpx.Response:
        files = [("files", upload) for upload in uploads]
        url = f"{server.url}/predict/batch?frames={frames}"
        return httpx.post(url, files=files, timeout=60, **PLAIN_HTTP)

    long, still = animate(digits("23" * 9, mark=10), "GIF"), animate(digits("7", mark=10), "PNG")
    results = post([long, b"no image", still], 16).json()
    assert [len(result.get("frames", [])) for result in results] == [16, 0, 1]
    assert results[1]["code"] == "unsupported_image"
    refused = post([long, long], 18)
    assert refused.status_code == 400
    assert "36 frames together, and at most 32" in refused.json()["error"]


def test_each_frame_counts_for_the_rate_limit() -> None:
    """20 frames are 20 images."""
    with serve(api_servers=1, rate_limit="30/minute") as limited:
        upload = animate(digits("2" * 20, mark=11), "GIF")
        assert limited.predict(upload, "/predict?frames=20").status_code == 200
        assert limited.predict(upload, "/predict?frames=20").status_code == 429
        assert limited.predict(upload, "/predict?frames=5").status_code == 200


def test_frames_beyond_the_queue_are_refused_and_take_no_slot() -> None:
    """A queue of 8 never takes 9 frames; what it does take comes back."""
    with serve(api_servers=1, queue_size=8) as small:
        upload = animate(digits("2" * 9, mark=12), "GIF")
        refused = small.predict(upload, "/predict?frames=9")
        assert refused.status_code == 400
        assert "ask for fewer frames" in refused.json()["error"]
        assert frames_of(small, upload, "frames=8")["cached"] is False
        assert small.get("/info").json()["slots"]["free"] == 8


def test_a_damaged_frame_frees_the_slots_of_all(server: RunningServer) -> None:
    """Those before it may be with a worker already."""
    whole = animate(digits("2357" * 8, mark=13), "PNG")
    cut = whole[: whole.rindex(b"fdAT") + 20] + b"\0" * 40
    for _ in range(3):
        response = server.predict(cut, "/predict?frames=32")
        assert (response.status_code, response.json()["code"]) == (400, "bad_image"), response.text
        wait_until(lambda: server.get("/info").json()["slots"]["free"] == 40)
    assert len(frames_of(server, whole)["frames"]) == 32


def test_the_client_classifies_frames(server: RunningServer) -> None:
    """And returns them one by one."""
    with Client(server.url) as client:
        result = client.classify(animate(digits("27", mark=14), "GIF"), frames=8, top_k=2)
        assert [(frame.index, frame.time_ms, frame.predictions[0].label) for frame in result.frames] == [
            (0, 0.0, "2"),
            (1, 50.0, "7"),
        ]
        assert {one.label for one in result.predictions} == {"2", "7"}
        assert client.classify(animate(digits("27", mark=14), "GIF")).frames == ()
        with pytest.raises(ValueError, match="frames must be from 1 to 32"):
            client.classify(b"", frames=33)
        with pytest.raises(Rejected):
            client.classify(b"GIF89a", frames=2)


@pytest.mark.parametrize("is_local", [False, True], ids=["server", "in this process"])
def test_the_command_line_classifies_frames(server: RunningServer, tmp_path: Path, is_local: bool) -> None:
    """The same answer with a server and without one."""
    (tmp_path / "digits.png").write_bytes(animate(digits("2277", mark=15), "PNG"))
    where = ["--model=digits"] if is_local else ["--url", server.url]
    command = [sys.executable, "-m", "vit_api", "classify", "--frames=3", "--top-k=2", "--json", *where]
    found = forked_servers.run([*command, str(tmp_path)], cwd=ROOT, env=os.environ, timeout_s=120)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert {one["label"] for one in result["predictions"]} == {"2", "7"}
    assert [frame["index"] for frame in result["frames"]] == [0, 1, 3]
