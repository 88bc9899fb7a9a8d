"""The client and the command line against the real server."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.support import forked_servers
from tests.support.samples import encode, orientation_exif
from tests.support.server import ROOT, RunningServer, environment, serve
from vit_api.client import AsyncClient, Classification, Client, Outcome, Rejected

SEVEN = ROOT / "examples" / "digit-7.png"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run the embedded model, started as `python -m vit_api serve`."""
    with serve(program=("-m", "vit_api", "serve"), max_upload_mb=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    """Return a client of the server."""
    with Client(server.url) as connected:
        yield connected


def test_all_inputs_have_the_same_answer(client: Client) -> None:
    """A path, bytes, a file and a Pillow image of the same digit are classified alike."""
    content = SEVEN.read_bytes()
    with SEVEN.open("rb") as file, Image.open(SEVEN) as image:
        results = [client.classify(form, top_k=3) for form in (SEVEN, content, file, image)]
    assert len({result.predictions for result in results}) == 1
    assert results[0].top.label == "7"
    assert len(results[0].predictions) == 3
    assert results[0].model == "digits"


def test_a_pillow_image_keeps_its_exif_orientation(client: Client) -> None:
    """A Pillow image with an EXIF orientation gets the same result as its file."""
    with Image.open(SEVEN) as digit:
        lying = digit.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    upload = encode(lying, "PNG", exif=orientation_exif(6))
    with Image.open(io.BytesIO(upload)) as image:
        result = client.classify(image)
    assert result.predictions == client.classify(upload).predictions
    assert result.top.label == "7"


def test_fresh_and_cached(client: Client) -> None:
    """A result has its source and, if it was computed, the time of each stage."""
    fresh = client.classify(SEVEN, fresh=True)
    assert (fresh.cached, fresh.source) == (False, "miss")
    assert fresh.batch_size == 1
    assert None not in (fresh.queue_time_ms, fresh.inference_time_ms, fresh.request_id)


def test_an_error_has_the_servers_details(client: Client) -> None:
    """A `ClassifyError` has the code, status and request id of the server's response."""
    with pytest.raises(Rejected, match="The upload is a text") as raised:
        client.classify(b"text")
    assert (raised.value.code, raised.value.status) == ("unsupported_image", 415)
    assert raised.value.request_id


def test_too_large_an_upload(client: Client) -> None:
    """The server refuses it by its `Content-Length`, and the client reads the response."""
    with pytest.raises(Rejected) as raised:
        client.classify(bytes(2**20 + 1))
    assert raised.value.code == "upload_too_large"


def _right(outcomes: list[Outcome], held_out: list[tuple[bytes, str]]) -> int:
    """Count the digits that were classified correctly."""
    results = [outcome for outcome in outcomes if isinstance(outcome, Classification)]
    return sum(result.top.label == label for result, (_, label) in zip(results, held_out, strict=True))


def test_many_images_with_the_sync_client(client: Client, held_out: list[tuple[bytes, str]]) -> None:
    """Nearly all digits are classified correctly."""
    outcomes = list(client.classify_many([upload for upload, _ in held_out[:100]], concurrency=32))
    assert _right(outcomes, held_out[:100]) >= 90


@pytest.mark.anyio
async def test_many_images_with_the_async_client(server: RunningServer, held_out: list[tuple[bytes, str]]) -> None:
    """Nearly all digits are classified correctly."""
    async with AsyncClient(server.url) as client:
        uploads = [upload for upload, _ in held_out[:100]]
        outcomes = [outcome async for outcome in client.classify_many(uploads, concurrency=32)]
    assert _right(outcomes, held_out[:100]) >= 90


@pytest.mark.anyio
async def test_both_clients_agree(server: RunningServer, client: Client, held_out: list[tuple[bytes, str]]) -> None:
    """Both clients return the same labels, in the order of the images."""
    uploads = [upload for upload, _ in held_out[:20]]
    sync = await asyncio.to_thread(lambda: list(client.classify_many(uploads)))
    async with AsyncClient(server.url) as async_client:
        outcomes = [outcome async for outcome in async_client.classify_many(uploads)]
    labels = [[o.top.label for o in found if isinstance(o, Classification)] for found in (sync, outcomes)]
    assert labels[0] == labels[1]
    assert len(labels[0]) == len(uploads)


def test_the_command_agrees_with_and_without_a_server(server: RunningServer) -> None:
    """`classify` prints the same labels and probabilities for the same files."""
    found = []
    for where in (["--url", server.url], ["--model", "digits"]):
        command = [sys.executable, "-m", "vit_api", "classify", "--json", *where, "examples"]
        result = forked_servers.run(command, cwd=ROOT, env=environment(), timeout_s=120)
        assert result.returncode == 0, result.stderr
        found.append([json.loads(line) for line in result.stdout.splitlines()])
    by_server, in_process = found
    assert len(by_server) == len(in_process) > 0
    for one, other in zip(by_server, in_process, strict=True):
        assert one["file"] == other["file"]
        assert [p["label"] for p in one["predictions"]] == [p["label"] for p in other["predictions"]]
        expected = pytest.approx([p["confidence"] for p in other["predictions"]], abs=1e-3)
        assert [p["confidence"] for p in one["predictions"]] == expected
