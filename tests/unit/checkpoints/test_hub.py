"""Downloads, pinned revisions, the cache and errors, against a local hub that answers like the real one."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import samples
from tests.support.fake_hub import FIRST, NAME, SECOND, FakeHub, hub_server
from vit_api.checkpoints.checkpoint import CheckpointError, load_checkpoint
from vit_api.checkpoints.hub import RESPONSE_TIMEOUT_S

# The limit that `load_checkpoint` documents.
GENEROUS_S = 15.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = samples.make_checkpoint(tmp_path_factory.mktemp("vit"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate the hub library's environment and cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run a hub that the library is configured to use."""
    with hub_server(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_model_is_downloaded(hub: FakeHub, files: dict[str, bytes]) -> None:
    """Its commit is recorded, and only the JSON files and the weights are requested."""
    loaded = load_checkpoint(NAME)
    assert loaded.revision == FIRST
    assert (loaded.path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert len(loaded.labels) == 10
    assert hub.requested_files() == {"config.json", "preprocessor_config.json", "model.safetensors"}


@pytest.mark.parametrize("revision", ["v1", FIRST], ids=["tag", "commit"])
def test_a_revision_is_pinned(hub: FakeHub, files: dict[str, bytes], revision: str) -> None:
    """A tag or commit gives the same model after the main branch has moved on."""
    changed = json.loads(files["config.json"]) | {"id2label": {"0": "new", "1": "newer"}}
    hub.commits[SECOND] = {**files, "config.json": json.dumps(changed).encode()}
    hub.refs |= {"main": SECOND, "v1": FIRST}
    assert load_checkpoint(NAME, revision).revision == FIRST
    assert load_checkpoint(NAME, revision).labels[0] == "class 0"
    assert load_checkpoint(NAME).labels == ("new", "newer")


def test_a_cached_commit_needs_no_hub(hub: FakeHub) -> None:
    """A commit never changes, so its cached files are used without a request."""
    first = load_checkpoint(NAME, FIRST)
    hub.requests.clear()
    assert load_checkpoint(NAME, FIRST) == first
    assert hub.requests == []


def test_a_partly_cached_commit_is_completed(hub: FakeHub) -> None:
    """A file missing from the cache is downloaded again."""
    weights = load_checkpoint(NAME, FIRST).path / "model.safetensors"
    weights.unlink()
    assert load_checkpoint(NAME, FIRST).path == weights.parent
    assert weights.exists()


def test_the_cache_is_used_while_the_hub_is_unreachable(
    hub: FakeHub, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart works without a network."""
    first = load_checkpoint(NAME)
    hub.refusal = (503, "")
    assert load_checkpoint(NAME) == first
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert load_checkpoint(NAME) == first
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_checkpoint(NAME) == first


def test_shards_are_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    """All files that the index names are downloaded."""
    folder = samples.make_checkpoint(tmp_path / "sharded", max_shard_size="20KB")
    hub.commits[FIRST] = {file.name: file.read_bytes() for file in folder.iterdir()}
    loaded = load_checkpoint(NAME)
    assert {file.name for file in loaded.path.iterdir()} == set(hub.commits[FIRST])


def test_a_slow_download_is_not_cut_off(hub: FakeHub) -> None:
    """The response timeout does not limit how long the weights take."""
    hub.weights_take_s = RESPONSE_TIMEOUT_S + 1
    started = time.monotonic()
    assert load_checkpoint(NAME).revision == FIRST
    assert time.monotonic() - started > RESPONSE_TIMEOUT_S


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        pytest.param((404, "RepoNotFound"), "no such model.*HF_TOKEN", id="missing"),
        pytest.param((401, "RepoNotFound"), "no such model.*HF_TOKEN", id="missing, without a token"),
        pytest.param((403, "GatedRepo"), "accept its terms.*HF_TOKEN", id="gated"),
        pytest.param((401, "InvalidToken"), "HF_TOKEN", id="bad token"),
        pytest.param((403, ""), "HF_TOKEN", id="forbidden"),
    ],
)
def test_a_refusal_is_explained(hub: FakeHub, refusal: tuple[int, str], reason: str) -> None:
    """The message explains the hub's status and what to do."""
    hub.refusal = refusal
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(NAME)


def test_a_gated_model_that_is_listed_is_explained(hub: FakeHub) -> None:
    """The real hub lists a gated model's files for everyone, but refuses their download."""
    hub.file_refusal = (401, "GatedRepo")
    with pytest.raises(CheckpointError, match=r"accept its terms.*HF_TOKEN"):
        load_checkpoint(NAME)


@pytest.mark.parametrize("revision", ["v9", SECOND], ids=["tag", "commit"])
def test_a_missing_revision_is_explained(hub: FakeHub, revision: str) -> None:
    """The message names the revision of an existing model that does not exist."""
    with pytest.raises(CheckpointError, match=f"no revision '{revision}'"):
        load_checkpoint(NAME, revision)


def test_a_model_without_safetensors_is_rejected_before_any_download(hub: FakeHub) -> None:
    """Pickled weights are never downloaded."""
    del hub.commits[FIRST]["model.safetensors"]
    with pytest.raises(CheckpointError, match="no safetensors"):
        load_checkpoint(NAME)
    assert hub.requested_files() == set()


def test_offline_mode_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable that forbids the download and the alternative."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set.*--model digits"):
        load_checkpoint(NAME)
    assert hub.requests == []


def assert_unreachable(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"can't be reached.*--model digits"):
        load_checkpoint(NAME)
    assert time.monotonic() - started < GENEROUS_S


def test_a_refused_connection_is_explained(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server listens on the hub's port."""
    assert_unreachable(f"http://127.0.0.1:{closed_port}", monkeypatch)


def test_a_name_that_does_not_resolve_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's host is unknown; `.invalid` never resolves (RFC 2606)."""
    assert_unreachable("http://hub.invalid", monkeypatch)


def test_a_hub_that_never_answers_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub accepts the connection and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert_unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)


def test_a_hub_that_answers_byte_by_byte_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The total time is limited: each single read is within its timeout."""
    done = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while not done.wait(0.5):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=[listener])
        thread.start()
        try:
            assert_unreachable(f"http://127.0.0.1:{listener.getsockname()[1]}", monkeypatch)
        finally:
            done.set()
            thread.join()


def test_a_failing_hub_is_explained(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that responds with server errors counts as unreachable."""
    hub.refusal = (500, "")
    assert_unreachable(hub.endpoint, monkeypatch)
