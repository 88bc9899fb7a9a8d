"""Where caches go if the home directory can't be written; /dev/null stands for one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from vit_api.environment.home import provide_home, replaced_hub_caches


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the system's folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_home_that_can_be_written_is_kept(tmp_path: Path) -> None:
    """Nothing changes."""
    environment = {"HOME": str(tmp_path)}
    assert provide_home(environment) is None
    assert environment == {"HOME": str(tmp_path)}


def test_another_home_is_provided(temporary: Path) -> None:
    """For the user only, and the same one at the next start."""
    for _ in range(2):
        environment = {"HOME": "/dev/null"}
        assert provide_home(environment) == environment["HOME"] == str(temporary / f"vit-api-{os.getuid()}")
        assert Path(environment["HOME"]).stat().st_mode & 0o777 == 0o700


def test_a_user_without_an_entry_gets_one(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """Without HOME, Python finds no home directory."""

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    assert provide_home({}) == str(temporary / f"vit-api-{os.getuid()}")


@pytest.mark.parametrize("kind", ["others can write", "link"])
def test_a_folder_that_others_have_prepared_is_not_used(temporary: Path, tmp_path: Path, kind: str) -> None:
    """Compiled code is run from there."""
    prepared = temporary / f"vit-api-{os.getuid()}"
    if kind == "link":
        prepared.symlink_to(tmp_path)
    else:
        prepared.mkdir()
        prepared.chmod(0o777)
    provided = provide_home({"HOME": "/dev/null"})
    assert provided is not None
    assert Path(provided) != prepared


def test_a_hub_cache_that_can_not_be_written_is_replaced_unless_it_has_the_model(tmp_path: Path) -> None:
    """A preloaded model is still found."""
    environment = {"HOME": str(tmp_path), "HF_HOME": "/dev/null/hub"}
    assert replaced_hub_caches("org/model", environment) == {"HF_HOME": str(tmp_path / ".cache" / "huggingface")}
    assert replaced_hub_caches("org/model", environment | {"HF_HOME": str(tmp_path / "new")}) == {}
    assert replaced_hub_caches("org/model", {"HOME": str(tmp_path)}) == {}
