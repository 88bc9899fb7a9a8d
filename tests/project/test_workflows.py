"""CI workflows: least privilege, pinned actions, and opt-in deployment. `make lint` runs actionlint."""

from __future__ import annotations

import os
import re
import subprocess
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


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_only_have_read_access(path: Path) -> None:
    """Tokens can only read, but that which publishes the documentation; actions are pinned by commit."""
    workflow = _read(path.name)
    assert workflow["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert more == ({"publish": {"pages": "write", "id-token": "write"}} if path.name == "docs.yml" else {})
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
    ("has_token", "name", "is_ready"),
    [
        pytest.param("true", "org/space", True, id="both"),
        pytest.param("false", "org/space", False, id="no token"),
        pytest.param("true", "", False, id="no Space"),
    ],
)
def test_deployment_needs_the_secret_and_the_variable(
    tmp_path: Path, has_token: str, name: str, is_ready: bool
) -> None:
    """In a fork, which has neither, the workflow deploys nothing and succeeds."""
    (step,) = _read("deploy.yml")["jobs"]["configured"]["steps"]
    environment = {"HAS_TOKEN": has_token, "HF_SPACE": name, "GITHUB_OUTPUT": str(tmp_path / "output")}
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


def test_each_supported_python_is_tested() -> None:
    """The matrix has every version of the classifiers, and the oldest is requires-python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3." in text]
    assert _read("ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python-version"] == named
    assert project["requires-python"] == f">={named[0]}"


def test_only_the_step_that_deploys_sees_the_secrets() -> None:
    """Tests and installed packages have no access to secrets."""
    jobs = _read("deploy.yml")["jobs"]
    assert jobs["space"]["needs"] == ["test", "configured"]
    *others, last = jobs["space"]["steps"]
    assert "secrets" in str(last)
    assert "deploy.space" in last["run"]
    assert "secrets" not in str(others) + str(jobs["test"])


def test_deployment_pins_equal_the_tested_pins() -> None:
    """requirements-deploy.txt has the same versions as the other requirements files."""
    pins = [line for line in (ROOT / "requirements-deploy.txt").read_text().splitlines() if "==" in line]
    others = "\n".join((ROOT / name).read_text() for name in ("requirements.txt", "requirements-bench.txt"))
    assert len(pins) == 2
    assert [pin for pin in pins if not re.search(rf"^{re.escape(pin)}$", others, re.MULTILINE)] == []
