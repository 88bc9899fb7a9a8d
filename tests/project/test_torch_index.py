"""The package index for older drivers agrees in messages, Makefile and documentation."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.server import ROOT
from vit_api.environment.devices import OLD_DRIVER_INDEX

_TORCH = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch=="))


@pytest.mark.parametrize("target", ["run", "test"])
def test_make_takes_torch_from_another_index(target: str) -> None:
    """Torch is installed first, since that index has no other packages; without the variable there is one index."""
    makes = {
        index: subprocess.run(
            ["make", "--dry-run", "--always-make", target, f"TORCH_INDEX={index}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for index in (OLD_DRIVER_INDEX, "")
    }
    installs = [line for line in makes[OLD_DRIVER_INDEX].splitlines() if " install " in line]
    assert installs[0].endswith(f"pip install --index-url {OLD_DRIVER_INDEX} {_TORCH}")
    assert " -r requirements" in installs[1]
    assert "--index-url" not in makes[""]


def test_the_documentation_has_the_same_commands() -> None:
    """The documented commands have the pinned version."""
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert f"`pip install {_TORCH} --index-url {OLD_DRIVER_INDEX}`" in page
    assert f"make run TORCH_INDEX={OLD_DRIVER_INDEX}\n" in page
    version = _TORCH.removeprefix("torch==")
    assert f"pytorch/pytorch:{version}-cuda12.6" in (ROOT / "Dockerfile").read_text()
