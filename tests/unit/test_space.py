"""Defaults inside a Hugging Face Space, and what its front matter in the README asks for."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import SpaceHardware, metadata_load

from tests.support.server import ROOT, serve
from vit_api import space
from vit_api.checkpoints import hub
from vit_api.command_line import load_settings
from vit_api.cores import available_cores
from vit_api.settings import Settings

COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# https://huggingface.co/docs/hub/spaces-config-reference
KNOWN_FIELDS = {
    *("title", "emoji", "colorFrom", "colorTo", "short_description", "license", "tags", "models", "datasets", "pinned"),
    *("sdk", "app_port", "suggested_hardware", "startup_duration_timeout", "preload_from_hub", "custom_headers"),
    *("header", "fullWidth", "base_path", "disable_embedding"),
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SPACE_ID", "CPU_CORES", "ACCELERATOR", "HF_HOME", "HF_HUB_CACHE", *Settings.model_fields):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"VIT_API_{name.upper()}", raising=False)


@pytest.fixture
def in_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "org/name")


@pytest.mark.usefixtures("in_a_space")
def test_the_address_is_the_one_that_a_space_expects() -> None:
    """All interfaces, and the port of the front matter."""
    settings = load_settings([])
    assert (settings.host, settings.port) == ("0.0.0.0", _front_matter()["app_port"])


@pytest.mark.usefixtures("in_a_space")
@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        pytest.param("4", 4, id="fewer than the machine has"),
        pytest.param("640", 64, id="more than the machine has"),
        pytest.param("3.5", 4, id="a part"),
        pytest.param("0.2", 1, id="less than one"),
        pytest.param("", 64, id="empty"),
        pytest.param("many", 64, id="not a number"),
        pytest.param("nan", 64, id="nan"),
        pytest.param("inf", 64, id="infinite"),
        pytest.param("-1", 64, id="negative"),
    ],
)
def test_the_spaces_cores_are_used(monkeypatch: pytest.MonkeyPatch, cores: str, expected: int) -> None:
    """A container sees the 64 of its host; the hardware that is paid for has fewer."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("vit_api.cores._cgroup_quota", lambda: None)
    monkeypatch.setenv("CPU_CORES", cores)
    assert available_cores() == load_settings([]).api_servers == expected


def test_outside_of_a_space_its_variables_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems use such names for other things."""
    before = available_cores()
    for name, value in {"CPU_CORES": "1", "ACCELERATOR": "t4", "HF_HOME": "/dev/null/x"}.items():
        monkeypatch.setenv(name, value)
    assert available_cores() == before
    assert space.accelerator() is None
    assert space.replaced_caches() == {}


@pytest.mark.usefixtures("in_a_space")
def test_a_cache_that_can_be_written_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where it is still to be made."""
    assert space.replaced_caches() == {}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there yet"))
    assert space.replaced_caches() == {}


@pytest.mark.usefixtures("in_a_space")
def test_a_cache_that_cannot_be_written_moves_to_the_home_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The download goes there, and the log says so; nothing here reaches a hub."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", "/dev/null/hub")
    default = tmp_path / ".cache" / "huggingface"
    assert space.replaced_caches() == {"HF_HOME": str(default), "HF_HUB_CACHE": str(default / "hub")}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name, commit = "org/model", "1" * 40
    folder = default / "hub" / "models--org--model" / "snapshots" / commit
    folder.mkdir(parents=True)
    for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (folder / file).write_text("{}")
    assert hub.fetch(name, commit) == (folder, commit)
    assert "HF_HOME=" in caplog.text
    assert str(default) in caplog.text


def test_a_server_in_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts, says what it misses, and has a process for each core that the Space has."""
    for name, value in {"SPACE_ID": "org/name", "CPU_CORES": "1", "ACCELERATOR": "t4-small"}.items():
        monkeypatch.setenv(name, value)
    with serve(api_servers="") as server:  # empty: the default
        assert server.get("/info").json()["settings"]["api_servers"] == 1
        assert "This Space's hardware is t4-small, but" in server.log.read_text()


def _front_matter() -> dict[str, Any]:
    metadata = metadata_load(ROOT / "README.md")
    assert metadata is not None
    return metadata


def test_the_front_matter_is_a_docker_spaces() -> None:
    """Names and values are those that the hub's reference allows."""
    matter = _front_matter()
    assert set(matter) <= KNOWN_FIELDS
    assert matter["sdk"] == "docker"
    assert matter["app_port"] == Settings.model_fields["port"].default
    assert matter["suggested_hardware"] in {hardware.value for hardware in SpaceHardware}
    assert {matter["colorFrom"], matter["colorTo"]} <= COLOURS
    assert re.fullmatch(r"[^\w\s]{1,2}", matter["emoji"])
    assert re.fullmatch(r"\d+[mh]", matter["startup_duration_timeout"])
    # The hub refuses longer ones.
    assert len(matter["short_description"]) <= 60
    assert all(isinstance(tag, str) for tag in matter["tags"])


def test_the_default_model_is_preloaded_and_nothing_else() -> None:
    """Exactly the files that the server would fetch, of a pinned commit."""
    matter = _front_matter()
    (entry,) = matter["preload_from_hub"]
    name, files, commit = entry.split()
    assert matter["models"] == [name] == [Settings.model_fields["model"].default]
    assert files.split(",") == ["config.json", "preprocessor_config.json", "model.safetensors"]
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
