"""CI workflows: valid, with least privilege and pinned actions; deployment is opt-in, and by an image's digest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.server import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _read(name: str) -> dict[str, Any]:
    workflow: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    return workflow


MORE = {
    ("deploy.yml", "image"): {"contents": "read", "packages": "write"},
    ("deploy.yml", "staging"): {"contents": "read", "id-token": "write"},
    ("deploy.yml", "space"): {"contents": "read", "id-token": "write"},
    ("docs.yml", "publish"): {"pages": "write", "id-token": "write"},
}
"""The jobs that may do more than read, and what."""


def test_actionlint_agrees() -> None:
    """As `make lint` does. It is installed by requirements-dev.txt."""
    command = [Path(sys.executable).parent / "actionlint", "-shellcheck=", "-pyflakes="]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_only_have_read_access(path: Path) -> None:
    """Tokens can only read, but for the jobs in `MORE`; actions are pinned by commit."""
    workflow = _read(path.name)
    assert workflow["permissions"] == {"contents": "read"}
    granted = {(path.name, name): job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert granted == {job: permissions for job, permissions in MORE.items() if job[0] == path.name}
    used = re.findall(r"uses: (\S+)(.*)", path.read_text())
    assert used
    for action, comment in used:
        assert action.startswith("./") or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), action
        assert action.startswith("./") or re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_have_timeouts_and_persist_no_credentials(path: Path) -> None:
    """Each job has a timeout, and checkouts don't keep the token."""
    for job in _read(path.name)["jobs"].values():
        assert "timeout-minutes" in job or "uses" in job
        checkouts = [step for step in job.get("steps", []) if "actions/checkout" in step.get("uses", "")]
        assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize(
    ("staging", "space", "is_ready"),
    [
        pytest.param("org/staging", "org/space", True, id="both"),
        pytest.param("", "org/space", False, id="no staging Space"),
        pytest.param("org/staging", "", False, id="no Space"),
    ],
)
def test_deployment_needs_both_variables(tmp_path: Path, staging: str, space: str, is_ready: bool) -> None:
    """In a fork, which has neither, the workflow deploys nothing and succeeds."""
    (step,) = _read("deploy.yml")["jobs"]["configured"]["steps"]
    environment = {"HF_STAGING_SPACE": staging, "HF_SPACE": space, "GITHUB_OUTPUT": str(tmp_path / "output")}
    (tmp_path / "output").touch()
    subprocess.run(["bash", "-e", "-c", step["run"]], env=os.environ | environment, check=True, capture_output=True)
    assert (tmp_path / "output").read_text() == ("ready=true\n" if is_ready else "")


def test_only_main_is_published_and_nothing_of_the_repository_runs_there() -> None:
    """A pull request builds the site; the job with the token only takes the result."""
    jobs = _read("docs.yml")["jobs"]
    assert jobs["publish"]["needs"] == "build"
    for condition in ("github.event_name == 'push'", "github.ref_name == 'main'", "vars.PUBLISH_DOCS == 'true'"):
        assert condition in jobs["publish"]["if"]
    assert [step for step in jobs["publish"]["steps"] if "run" in step] == []


def test_the_image_is_known_by_its_digest(tmp_path: Path) -> None:
    """The step that builds it, with a docker that records how it is called."""
    digest = f"sha256:{'a' * 64}"
    (tmp_path / "docker").write_text(f"""#!/bin/bash
cd {tmp_path}
echo "$@" >> calls
if [[ $* == *"--metadata-file "* ]]; then echo '{{"containerimage.digest": "{digest}"}}' > metadata.json; fi
if [[ $* == *"imagetools inspect --raw"* ]]; then cat index; fi
""")
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / "index").write_text('{"vnd.docker.reference.type": "attestation-manifest"}')
    _, step = _read("deploy.yml")["jobs"]["image"]["steps"]
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "GITHUB_REPOSITORY": "Org/ViT-API",
        "GITHUB_ACTOR": "org",
        "GITHUB_SHA": "f" * 40,
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "RUNNER_TEMP": str(tmp_path),
        "REGISTRY_TOKEN": "secret-of-this-test",
    }
    command = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "output").read_text() == f"reference=ghcr.io/org/vit-api@{digest}\n"
    calls = (tmp_path / "calls").read_text()
    assert "secret-of-this-test" not in calls
    assert "--sbom=true --provenance=mode=max" in calls
    (tmp_path / "index").write_text("{}")
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode != 0


def test_what_is_deployed_was_tested_in_the_staging_space() -> None:
    """Staging comes first, and all get the same image."""
    jobs = _read("deploy.yml")["jobs"]
    assert jobs["image"]["needs"] == ["test", "configured"]
    assert jobs["staging"]["needs"] == "image"
    for name in ("space", "endpoint"):
        assert "staging" in jobs[name]["needs"]
    for name in ("staging", "space", "endpoint"):
        last = jobs[name]["steps"][-1]
        assert '--container-image "$IMAGE"' in last["run"]
        assert last["env"]["IMAGE"] == "${{ needs.image.outputs.reference }}"
        assert jobs[name]["concurrency"]["cancel-in-progress"] is False


def test_the_spaces_are_deployed_without_a_stored_token() -> None:
    """Each job has a token of its Space alone."""
    for name in ("staging", "space"):
        job = _read("deploy.yml")["jobs"][name]
        variables = job["steps"][-1]["env"]
        assert "HF_TOKEN" not in variables
        assert variables["HF_OIDC_RESOURCE"] == f"spaces/{variables['HF_SPACE']}"


def test_each_supported_python_is_tested() -> None:
    """The matrix has every version of the classifiers, and the oldest is requires-python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3." in text]
    assert _read("ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python-version"] == named
    assert project["requires-python"] == f">={named[0]}"


def test_only_the_step_that_deploys_sees_the_secrets() -> None:
    """Tests and installed packages have no access to secrets."""
    jobs = _read("deploy.yml")["jobs"]
    for name, job in jobs.items():
        *others, last = job.get("steps", [{}])
        assert "secrets" not in str(others), name
        assert "secrets" not in str(last) or "python -m deploy." in last["run"], name


def test_deployment_pins_equal_the_tested_pins() -> None:
    """requirements-deploy.txt has the same versions as the other requirements files."""
    pins = [line for line in (ROOT / "requirements-deploy.txt").read_text().splitlines() if "==" in line]
    others = "\n".join((ROOT / name).read_text() for name in ("requirements.txt", "requirements-bench.txt"))
    assert len(pins) == 2
    assert [pin for pin in pins if not re.search(rf"^{re.escape(pin)}$", others, re.MULTILINE)] == []
