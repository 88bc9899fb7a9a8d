"""Defaults inside a Hugging Face Space."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_api.checkpoints import hub
from vit_api.command_line import load_settings
from vit_api.environment import space
from vit_api.environment.cores import available_cores
from vit_api.settings import Settings


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
def test_a_server_in_a_space_listens_on_all_interfaces() -> None:
    """The port is that of the front matter, which is the default."""
    settings = load_settings([])
    assert (settings.host, settings.port) == ("0.0.0.0", Settings.model_fields["port"].default)


@pytest.mark.usefixtures("in_a_space")
@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        pytest.param("4", 4, id="fewer than the machine has"),
        pytest.param("640", 64, id="more than the machine has"),
        pytest.param("3.5", 4, id="fraction"),
        pytest.param("0.2", 1, id="less than one"),
        pytest.param("", 64, id="empty"),
        pytest.param("many", 64, id="not a number"),
        pytest.param("nan", 64, id="nan"),
        pytest.param("inf", 64, id="infinite"),
        pytest.param("-1", 64, id="negative"),
    ],
)
def test_the_cores_of_the_spaces_hardware_are_used(monkeypatch: pytest.MonkeyPatch, cores: str, expected: int) -> None:
    """A container sees the 64 cores of its host, while the Space's hardware has fewer."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("vit_api.environment.cgroup.cpu_limit", lambda: None)
    monkeypatch.setattr("vit_api.environment.capacity.memory_mb", lambda: None)
    monkeypatch.setenv("CPU_CORES", cores)
    assert available_cores() == load_settings([]).api_servers == expected


def test_outside_a_space_its_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems use these names for other purposes."""
    before = available_cores()
    for name, value in {"CPU_CORES": "1", "ACCELERATOR": "t4", "HF_HOME": "/dev/null/x"}.items():
        monkeypatch.setenv(name, value)
    assert available_cores() == before
    assert space.accelerator() is None
    assert space.replaced_caches() == {}


@pytest.mark.usefixtures("in_a_space")
def test_a_writable_cache_folder_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It may not exist yet."""
    assert space.replaced_caches() == {}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there yet"))
    assert space.replaced_caches() == {}


@pytest.mark.usefixtures("in_a_space")
def test_a_read_only_cache_folder_is_replaced_by_one_in_the_home_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The move is logged."""
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
    assert "HF_HOME is" in caplog.text
    assert str(default) in caplog.text
