"""Deploying to a Space: what is pushed, what counts as a failure, and the rollback; against a fake hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.rollout import Status
from deploy.smoke import SmokeTest
from deploy.space import main
from tests.support.fake_hugging_face import ID_TOKEN, JOB_TOKEN, SHORT_LIVED, TOKEN, running
from tests.support.fake_space import NAME, FakeSpace, Tree
from tests.support.server import ROOT, RunningServer

# huggingface_hub 2.4.0 uploads large files in a way that its own HTTP client advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

KEY = "key-of-this-test"
WEIGHTS = "vit_api/model.safetensors"
Deploy = Callable[..., tuple[Status, str]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSpace]:
    """A hub whose Space is new: it has two files, and nothing runs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the fake hub has no Xet server
    with running(FakeSpace()) as server:
        yield server


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with all files that the image needs, and many that it does not."""
    for name, content in {
        ".dockerignore": "*\n",
        "Dockerfile": "FROM scratch\n",
        "deploy/healthcheck.py": "",
        "deploy/space.py": "",
        "README.md": "---\nsdk: docker\n---\n# New\n",
        "requirements.txt": "litserve\n",
        "server.py": "new = True\n",
        "vit_api/__init__.py": "",
        "vit_api/app.py": "new = True\n",
        WEIGHTS: "new weights",
        "tests/test_app.py": "",
        "benchmarks/results/all.json": "{}",
        ".gitignore": "__pycache__/\n.env\n",
        ".env": "VIT_API_OPERATOR_KEY=private\n",
        "vit_api/__pycache__/app.pyc": "compiled",
    }.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    git(tmp_path / "tree", "init", "--quiet")
    git(tmp_path / "tree", "add", ".")
    git(tmp_path / "tree", "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "--message=first")
    return tmp_path / "tree"


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True)


@pytest.fixture
def deploy(hub: FakeSpace, tree: Path, capfd: pytest.CaptureFixture[str]) -> Deploy:
    """Deploy the tree; return the outcome and the output, which never contains a secret."""

    def run(*options: str, **environment: str) -> tuple[Status, str]:
        arguments = ["--repo", NAME, "--root", str(tree), "--poll-s", "0.01", "--ready-timeout-s", "0.1", *options]
        status = main(arguments, {"HF_TOKEN": TOKEN, "SPACE_API_KEY": KEY, "HF_ENDPOINT": hub.endpoint, **environment})
        printed = "".join(capfd.readouterr())
        assert TOKEN not in printed
        assert KEY not in printed
        return status, printed

    return run


def earlier() -> Tree:
    """The files of a previous revision, some of which the tree no longer has."""
    files = {"Dockerfile": b"FROM scratch\n", "README.md": b"# Old\n", "server.py": b"old = True\n"}
    files |= {".gitattributes": b"*.safetensors filter=lfs\n", "vit_api/gone.py": b"old", WEIGHTS: b"old weights"}
    return files


def fails_when_new(path: str, running: Tree) -> tuple[int, object]:
    """Respond as an application that works only with the files of the previous revision."""
    if path == "/predict" and running.get("server.py") != b"old = True\n":
        return 500, {"error": "no", "code": "inference_failed"}
    return 200, {"predictions": [{"label": "7", "confidence": 0.9}]}


def test_a_first_deployment(hub: FakeSpace, deploy: Deploy) -> None:
    """One commit; afterwards the Space has exactly the image's files and what the hub created itself."""
    status, printed = deploy()
    assert status is Status.DEPLOYED, printed
    wanted = {".dockerignore", "Dockerfile", "README.md", "deploy/healthcheck.py", "requirements.txt", "server.py"}
    wanted |= {"vit_api/__init__.py", "vit_api/app.py", WEIGHTS, ".gitattributes"}
    assert set(hub.files) == wanted
    assert hub.files[WEIGHTS] == b"new weights"
    assert len(hub.commits) == 2
    assert [stage in printed for stage in ("BUILDING", "APP_STARTING", "RUNNING")] == [True] * 3


def test_a_later_deployment_replaces_and_deletes(hub: FakeSpace, deploy: Deploy) -> None:
    """Files that the tree no longer has are deleted; unchanged ones are not sent again."""
    hub.run(earlier())
    assert deploy()[0] is Status.DEPLOYED
    assert "vit_api/gone.py" not in hub.files
    assert hub.files["server.py"] == b"new = True\n"
    assert hub.running == hub.head


def test_nothing_changed(hub: FakeSpace, deploy: Deploy) -> None:
    """There is no commit, but the smoke test still runs."""
    deploy()
    hub.requests.clear()
    hub.seen_by_application.clear()
    status, printed = deploy()
    assert (status, len(hub.commits)) == (Status.DEPLOYED, 2)
    assert "already has these files" in printed
    assert not [request for request in hub.requests if request.startswith(("POST", "PUT"))]
    assert hub.seen_by_application


@pytest.mark.parametrize("end", ["BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR"])
def test_a_failed_build_or_start_is_rolled_back(hub: FakeSpace, deploy: Deploy, end: str) -> None:
    """All files of the previous revision are restored and run; history is kept."""
    good = hub.run(earlier())
    hub.stages.append(["BUILDING", end])
    status, printed = deploy()
    assert status is Status.ROLLED_BACK
    assert f"ended in {end}" in printed
    assert "?logs=" in printed
    assert hub.files == hub.commits[good]
    assert hub.running == hub.head != good
    assert len(hub.commits) == 4


def test_a_failed_smoke_test_is_rolled_back(hub: FakeSpace, deploy: Deploy) -> None:
    """The revision runs, but does not classify."""
    good = hub.run(earlier())
    hub.application = fails_when_new
    status, printed = deploy()
    assert status is Status.ROLLED_BACK
    assert "/predict responds with status 500 (inference_failed)" in printed
    assert hub.files == hub.commits[good]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        pytest.param({"/health/ready": (503, {})}, "/health/ready responds with status 503", id="never ready"),
        pytest.param({"/predict": (401, {"code": "unauthorized"})}, "SPACE_API_KEY", id="no key"),
        pytest.param({"/predict": (200, "<html>")}, "not with one label", id="another page"),
        pytest.param({"/predict": (200, {"predictions": []})}, "not with one label", id="no label"),
        pytest.param(
            {"/predict": (200, {"predictions": [{"label": "7", "confidence": 7}]})},
            "not with one label",
            id="not a probability",
        ),
        pytest.param({"/health/ready": (302, {})}, "responds with status 302", id="a redirect"),
    ],
)
def test_what_fails_the_smoke_test(
    hub: FakeSpace, deploy: Deploy, answers: dict[str, tuple[int, object]], reason: str
) -> None:
    """Any response but one class and its probability."""
    hub.application = lambda path, _: answers.get(path, (200, {}))
    status, printed = deploy()
    assert status is Status.BROKEN
    assert reason in printed


def test_a_server_that_is_ready_late(hub: FakeSpace, deploy: Deploy) -> None:
    """The model may still be loading when the port opens."""
    answers = deque([(502, {}), (503, {})])
    hub.application = lambda path, tree: answers.popleft() if answers else fails_when_new(path, earlier())
    assert deploy("--ready-timeout-s", "30")[0] is Status.DEPLOYED


def test_a_failure_without_a_predecessor(hub: FakeSpace, deploy: Deploy) -> None:
    """There is nothing to roll back to; the failed revision stays, so that it can be examined."""
    hub.stages.append(["BUILDING", "BUILD_ERROR"])
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "no earlier working version" in printed
    assert len(hub.commits) == 2


def test_a_rollback_that_fails_as_well(hub: FakeSpace, deploy: Deploy) -> None:
    """The previous revision does not build any more."""
    hub.run(earlier())
    hub.stages += [["BUILDING", "RUNTIME_ERROR"], ["BUILDING", "BUILD_ERROR"]]
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "failed, too" in printed


def test_an_unexpected_error_is_rolled_back(hub: FakeSpace, deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a result of the smoke test, the new revision counts as failed."""
    good = hub.run(earlier())
    failures = [ZeroDivisionError(KEY)]
    test = SmokeTest.run

    def fail_once(self: SmokeTest, url: str, hub_token: str | None) -> None:
        if failures:
            raise failures.pop()
        test(self, url, hub_token)

    monkeypatch.setattr(SmokeTest, "run", fail_once)
    status, printed = deploy()
    assert status is Status.ROLLED_BACK
    assert "Unexpected error: ZeroDivisionError" in printed
    assert hub.files == hub.commits[good]


def test_another_client_pushes_in_the_meantime(hub: FakeSpace, deploy: Deploy) -> None:
    """The rollback does not overwrite its commit."""
    hub.run(earlier())

    def push_and_fail(*_: object) -> tuple[int, object]:
        hub.commit({"server.py": b"theirs"}, "theirs")
        return 500, {}

    hub.application = push_and_fail
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "another client pushed" in printed
    assert hub.files == {"server.py": b"theirs"}


def test_a_build_that_never_ends(hub: FakeSpace, deploy: Deploy) -> None:
    """The time limit ends the wait, and the deployment is rolled back."""
    good = hub.run(earlier())
    hub.stages.append(["BUILDING"])
    status, printed = deploy("--timeout-s", "0.1")
    assert status is Status.ROLLED_BACK
    assert "after 0.1 s: BUILDING" in printed
    assert hub.files == hub.commits[good]


def test_each_stage_is_logged_once(hub: FakeSpace, deploy: Deploy) -> None:
    """Not at each request."""
    hub.stages.append(["BUILDING"] * 5 + ["RUNNING"])
    assert deploy()[1].count("BUILDING") == 1


def test_transient_failures_of_the_hub_are_retried(hub: FakeSpace, deploy: Deploy) -> None:
    """A failure of the hub during the wait is not one of the Space."""
    hub.run(earlier())
    runtime = f"/api/spaces/{NAME}/runtime"

    def fail(*_: object) -> str:
        hub.failures[runtime] = deque([502, 500, 0])
        return FakeSpace.push(hub, *_)  # type: ignore[arg-type]

    hub.push = fail  # type: ignore[method-assign]
    status, printed = deploy()
    assert status is Status.DEPLOYED
    assert "The hub responded with status 502" in printed


def test_a_commit_without_a_response(hub: FakeSpace, deploy: Deploy) -> None:
    """The connection broke: the output must not claim that nothing was changed."""
    hub.failures[f"/api/spaces/{NAME}/commit/main"] = deque([0])
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "may or may not have been made" in printed


@pytest.mark.parametrize(
    ("options", "environment", "reason"),
    [
        pytest.param((), {"HF_TOKEN": ""}, "HF_TOKEN is not set", id="no token"),
        pytest.param((), {"HF_TOKEN": "hf_wrong"}, "HF_TOKEN is valid", id="bad token"),
        pytest.param(
            ("--repo", "org/other"), {}, "The hub responded with status 404: check the Space's name", id="no such Space"
        ),
        pytest.param(
            ("--root", "/dev"), {}, "The image needs files that are missing in /dev: .dockerignore", id="not our tree"
        ),
        pytest.param(("--image", "/nowhere.png"), {}, "/nowhere.png", id="no image"),
    ],
)
def test_what_can_be_checked_first_changes_nothing(
    hub: FakeSpace, deploy: Deploy, options: tuple[str, ...], environment: dict[str, str], reason: str
) -> None:
    """Mistakes that can be found early are reported before the Space is changed."""
    status, printed = deploy(*options, **environment)
    assert status is Status.UNCHANGED
    assert reason in printed
    assert len(hub.commits) == 1


def test_a_paused_space_is_not_changed(hub: FakeSpace, deploy: Deploy) -> None:
    """Its owner paused it, perhaps because of its cost."""
    hub.run(earlier())
    hub.stage = "PAUSED"
    status, printed = deploy()
    assert status is Status.UNCHANGED
    assert "paused" in printed
    assert len(hub.commits) == 2


def test_an_untracked_file_is_not_pushed(hub: FakeSpace, deploy: Deploy, tree: Path) -> None:
    """It may be private, and is not part of the commit."""
    (tree / "vit_api" / "notes.txt").write_text("private")
    status, printed = deploy()
    assert status is Status.UNCHANGED
    assert "git does not track: add or delete vit_api/notes.txt" in printed


def test_the_commits_title_names_what_was_deployed(hub: FakeSpace, deploy: Deploy, tree: Path) -> None:
    """The commit of the working tree, and whether the tree differs from it."""
    deploy()
    (tree / "server.py").write_text("newer = True\n")
    deploy()
    assert "uncommitted" not in hub.titles[1]
    assert hub.titles[2] == f"{hub.titles[1]} with uncommitted changes"


def test_a_public_space_never_sees_the_token(hub: FakeSpace, deploy: Deploy) -> None:
    """It gets only its own API key."""
    deploy()
    assert all("Authorization" not in headers for headers in hub.seen_by_application)
    assert {headers["X-API-Key"] for headers in hub.seen_by_application} == {KEY}


def test_a_private_space_needs_the_token(hub: FakeSpace, deploy: Deploy) -> None:
    """The hub's proxy requires it."""
    hub.is_private = True
    deploy()
    assert {headers["Authorization"] for headers in hub.seen_by_application} == {f"Bearer {TOKEN}"}


def test_the_real_server_passes_the_smoke_test(hub: FakeSpace, deploy: Deploy, digits_server: RunningServer) -> None:
    """The fake application responds as the real one does."""
    hub.url = digits_server.url
    assert deploy("--ready-timeout-s", "30")[0] is Status.DEPLOYED


def run_command(hub: FakeSpace, tree: Path, *options: str, **variables: str) -> tuple[int, str]:
    """Run the command in a process of its own; return its status and its output."""
    # Not the tokens of the machine that runs the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GITHUB_"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tree.parent / "home")}
    result = subprocess.run(
        [sys.executable, "-m", "deploy.space", "--repo", NAME, "--root", str(tree), "--poll-s", "0.01", *options],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    printed = result.stdout + result.stderr
    assert [secret for secret in (TOKEN, SHORT_LIVED, ID_TOKEN, JOB_TOKEN) if secret in printed] == []
    return result.returncode, printed


def test_the_command(hub: FakeSpace, tree: Path) -> None:
    """The exit status is that of the outcome."""
    hub.run(earlier())
    hub.stages.append(["BUILDING", "BUILD_ERROR"])
    status, printed = run_command(hub, tree, HF_TOKEN=TOKEN)
    assert status == Status.ROLLED_BACK, printed


def test_a_trusted_publisher_needs_no_token(hub: FakeSpace, tree: Path) -> None:
    """The job's identity is exchanged for a token of the Space, which also opens a private Space."""
    hub.trusted, hub.is_private = f"spaces/{NAME}", True
    status, printed = run_command(hub, tree, HF_OIDC_RESOURCE=f"spaces/{NAME}", **hub.job)
    assert status == Status.DEPLOYED, printed
    assert hub.exchanges == 1
    assert {headers["Authorization"] for headers in hub.seen_by_application} == {f"Bearer {SHORT_LIVED}-1"}


def test_tokens_that_expire_are_renewed(hub: FakeSpace, tree: Path) -> None:
    """A build may take longer than the hour that they last."""
    hub.trusted, hub.is_private = f"spaces/{NAME}", True
    hub.expires_s = 300  # huggingface_hub renews them 300 s before
    hub.run(earlier())
    hub.stages.append(["BUILDING", "BUILD_ERROR"])
    status, printed = run_command(hub, tree, HF_OIDC_RESOURCE=f"spaces/{NAME}", **hub.job)
    assert status == Status.ROLLED_BACK, printed
    assert hub.exchanges > len(hub.short_lived)
    assert hub.seen_by_application[-1]["Authorization"].startswith(f"Bearer {SHORT_LIVED}-")


@pytest.mark.parametrize(
    ("resource", "trusted", "reason"),
    [
        pytest.param(
            f"spaces/{NAME}",
            "",
            "The hub gives this job no token (status 400, invalid_grant",
            id="not a trusted publisher",
        ),
        pytest.param(
            "spaces/org/other",
            "spaces/org/other",
            f"HF_OIDC_RESOURCE is spaces/org/other: set it to spaces/{NAME}",
            id="of another Space",
        ),
        pytest.param("", "", "or set HF_OIDC_RESOURCE to spaces/org/space", id="nothing"),
    ],
)
def test_a_job_that_is_not_trusted(hub: FakeSpace, tree: Path, resource: str, trusted: str, reason: str) -> None:
    """Nothing is changed, and the output says what to set."""
    hub.trusted = trusted
    status, printed = run_command(hub, tree, HF_OIDC_RESOURCE=resource, **hub.job)
    assert status == Status.UNCHANGED
    assert reason in printed
    assert len(hub.commits) == 1


def test_a_job_without_the_permission(hub: FakeSpace, tree: Path) -> None:
    """GitHub sets the variables only with `id-token: write`."""
    hub.trusted = f"spaces/{NAME}"
    status, printed = run_command(hub, tree, HF_OIDC_RESOURCE=f"spaces/{NAME}", GITHUB_ACTIONS="true")
    assert status == Status.UNCHANGED
    assert "id-token: write" in printed


def test_an_image_instead_of_a_build(hub: FakeSpace, deploy: Deploy) -> None:
    """The Space runs the very image that was tested elsewhere, with the settings in README.md."""
    image = f"ghcr.io/org/vit-api@sha256:{'0' * 64}"
    assert deploy("--container-image", image)[0] is Status.DEPLOYED
    assert set(hub.files) == {".gitattributes", "Dockerfile", "README.md"}
    assert hub.files["Dockerfile"].decode() == f"FROM {image}\n"
    assert hub.files["README.md"].startswith(b"---")
    with pytest.raises(SystemExit):
        deploy("--container-image", "ghcr.io/org/vit-api:latest")
