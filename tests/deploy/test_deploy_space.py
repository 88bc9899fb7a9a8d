"""Deploying to a Space: what is pushed, what counts as failed, and the way back; against a hub that is made here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.smoke import SmokeTest
from deploy.space import Status, main
from tests.support.fake_space import NAME, TOKEN, FakeSpace, Tree
from tests.support.server import ROOT, RunningServer

# huggingface_hub 2.4.0 uploads large files in a way that its own HTTP client advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

KEY = "key-of-this-test"
WEIGHTS = "vit_api/model.safetensors"
Deploy = Callable[..., tuple[Status, str]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSpace]:
    """A hub whose Space was just made: two files, and nothing runs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its server can't be made here
    server = FakeSpace()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with all that an image needs, and much that it does not."""
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
    """Deploy the tree; return how it ended, and what was printed, which never is a secret."""

    def run(*options: str, **environment: str) -> tuple[Status, str]:
        arguments = ["--repo", NAME, "--root", str(tree), "--poll-s", "0.01", "--ready-timeout-s", "0.1", *options]
        status = main(arguments, {"HF_TOKEN": TOKEN, "SPACE_API_KEY": KEY, "HF_ENDPOINT": hub.endpoint, **environment})
        printed = "".join(capfd.readouterr())
        assert TOKEN not in printed
        assert KEY not in printed
        return status, printed

    return run


def earlier() -> Tree:
    """Files that ran before, with some that are no longer there."""
    files = {"Dockerfile": b"FROM scratch\n", "README.md": b"# Old\n", "server.py": b"old = True\n"}
    files |= {".gitattributes": b"*.safetensors filter=lfs\n", "vit_api/gone.py": b"old", WEIGHTS: b"old weights"}
    return files


def fails_when_new(path: str, running: Tree) -> tuple[int, object]:
    """Answer as an application that only works with the files that ran before."""
    if path == "/predict" and running.get("server.py") != b"old = True\n":
        return 500, {"error": "no", "code": "inference_failed"}
    return 200, {"predictions": [{"label": "7", "confidence": 0.9}]}


def test_a_first_deployment(hub: FakeSpace, deploy: Deploy) -> None:
    """Exactly what the image needs is there afterwards, in one commit, and what the hub made itself."""
    status, printed = deploy()
    assert status is Status.DEPLOYED, printed
    wanted = {".dockerignore", "Dockerfile", "README.md", "deploy/healthcheck.py", "requirements.txt", "server.py"}
    wanted |= {"vit_api/__init__.py", "vit_api/app.py", WEIGHTS, ".gitattributes"}
    assert set(hub.files) == wanted
    assert hub.files[WEIGHTS] == b"new weights"
    assert len(hub.commits) == 2
    assert [stage in printed for stage in ("BUILDING", "APP_STARTING", "RUNNING")] == [True] * 3


def test_a_later_deployment_replaces_and_deletes(hub: FakeSpace, deploy: Deploy) -> None:
    """Files that are gone here go there, too; what is the same isn't sent again."""
    hub.run(earlier())
    assert deploy()[0] is Status.DEPLOYED
    assert "vit_api/gone.py" not in hub.files
    assert hub.files["server.py"] == b"new = True\n"
    assert hub.running == hub.head


def test_nothing_changed(hub: FakeSpace, deploy: Deploy) -> None:
    """No commit, but what runs is tested."""
    deploy()
    hub.requests.clear()
    hub.seen_by_application.clear()
    status, printed = deploy()
    assert (status, len(hub.commits)) == (Status.DEPLOYED, 2)
    assert "nothing changed" in printed
    assert not [request for request in hub.requests if request.startswith(("POST", "PUT"))]
    assert hub.seen_by_application


@pytest.mark.parametrize("end", ["BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR"])
def test_a_failed_build_or_start_is_taken_back(hub: FakeSpace, deploy: Deploy, end: str) -> None:
    """The files that ran before are there again, all of them, and run; history is kept."""
    good = hub.run(earlier())
    hub.stages.append(["BUILDING", end])
    status, printed = deploy()
    assert status is Status.TAKEN_BACK
    assert f"ended in {end}" in printed
    assert "?logs=" in printed
    assert hub.files == hub.commits[good]
    assert hub.running == hub.head != good
    assert len(hub.commits) == 4


def test_a_failed_smoke_test_is_taken_back(hub: FakeSpace, deploy: Deploy) -> None:
    """It runs, and does not classify."""
    good = hub.run(earlier())
    hub.application = fails_when_new
    status, printed = deploy()
    assert status is Status.TAKEN_BACK
    assert "/predict answers 500 (inference_failed)" in printed
    assert hub.files == hub.commits[good]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        pytest.param({"/health/ready": (503, {})}, "/health/ready answers 503", id="never ready"),
        pytest.param({"/predict": (401, {"code": "unauthorized"})}, "SPACE_API_KEY", id="no key"),
        pytest.param({"/predict": (200, "<html>")}, "not with one label", id="another page"),
        pytest.param({"/predict": (200, {"predictions": []})}, "not with one label", id="no label"),
        pytest.param(
            {"/predict": (200, {"predictions": [{"label": "7", "confidence": 7}]})}, "not with one label", id="no share"
        ),
        pytest.param({"/health/ready": (302, {})}, "answers 302", id="a redirect"),
    ],
)
def test_what_the_smoke_test_refuses(
    hub: FakeSpace, deploy: Deploy, answers: dict[str, tuple[int, object]], reason: str
) -> None:
    """Anything but a class and its probability."""
    hub.application = lambda path, _: answers.get(path, (200, {}))
    status, printed = deploy()
    assert status is Status.BROKEN
    assert reason in printed


def test_a_server_that_gets_ready_late(hub: FakeSpace, deploy: Deploy) -> None:
    """The model still loads when the port answers."""
    answers = deque([(502, {}), (503, {})])
    hub.application = lambda path, tree: answers.popleft() if answers else fails_when_new(path, earlier())
    assert deploy("--ready-timeout-s", "30")[0] is Status.DEPLOYED


def test_a_failure_without_a_predecessor(hub: FakeSpace, deploy: Deploy) -> None:
    """A person has to look; what was pushed stays for that."""
    hub.stages.append(["BUILDING", "BUILD_ERROR"])
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "no other revision that ran before" in printed
    assert len(hub.commits) == 2


def test_the_way_back_fails_as_well(hub: FakeSpace, deploy: Deploy) -> None:
    """What ran before does not build any more."""
    hub.run(earlier())
    hub.stages += [["BUILDING", "RUNTIME_ERROR"], ["BUILDING", "BUILD_ERROR"]]
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "failed, too" in printed


def test_an_error_that_nobody_foresaw_is_taken_back(
    hub: FakeSpace, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever keeps us from knowing that the new revision is well."""
    good = hub.run(earlier())
    failures = [ZeroDivisionError(KEY)]
    test = SmokeTest.run

    def fail_once(self: SmokeTest, url: str, hub_token: str | None) -> None:
        if failures:
            raise failures.pop()
        test(self, url, hub_token)

    monkeypatch.setattr(SmokeTest, "run", fail_once)
    status, printed = deploy()
    assert status is Status.TAKEN_BACK
    assert "unexpected ZeroDivisionError" in printed
    assert hub.files == hub.commits[good]


def test_somebody_else_pushes_in_the_meantime(hub: FakeSpace, deploy: Deploy) -> None:
    """Their commit is not overwritten by the way back."""
    hub.run(earlier())

    def push_and_fail(*_: object) -> tuple[int, object]:
        hub.commit({"server.py": b"theirs"}, "theirs")
        return 500, {}

    hub.application = push_and_fail
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "somebody else has pushed" in printed
    assert hub.files == {"server.py": b"theirs"}


def test_a_build_that_never_ends(hub: FakeSpace, deploy: Deploy) -> None:
    """The deadline ends the wait, and the way back begins."""
    good = hub.run(earlier())
    hub.stages.append(["BUILDING"])
    status, printed = deploy("--timeout-s", "0.1")
    assert status is Status.TAKEN_BACK
    assert "after 0.1 s, but is at: BUILDING" in printed
    assert hub.files == hub.commits[good]


def test_each_stage_is_told_once(hub: FakeSpace, deploy: Deploy) -> None:
    """Not at each question."""
    hub.stages.append(["BUILDING"] * 5 + ["RUNNING"])
    assert deploy()[1].count("BUILDING") == 1


def test_a_hub_that_fails_for_a_while_is_asked_again(hub: FakeSpace, deploy: Deploy) -> None:
    """An error while waiting isn't the Space's."""
    hub.run(earlier())
    runtime = f"/api/spaces/{NAME}/runtime"

    def fail(*_: object) -> str:
        hub.failures[runtime] = deque([502, 500, 0])
        return FakeSpace.push(hub, *_)  # type: ignore[arg-type]

    hub.push = fail  # type: ignore[method-assign]
    status, printed = deploy()
    assert status is Status.DEPLOYED
    assert "the hub answers 502" in printed


def test_a_commit_that_nobody_knows_of(hub: FakeSpace, deploy: Deploy) -> None:
    """The connection broke: no claim that nothing was changed."""
    hub.failures[f"/api/spaces/{NAME}/commit/main"] = deque([0])
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "may have been made, or not" in printed


@pytest.mark.parametrize(
    ("options", "environment", "reason"),
    [
        pytest.param((), {"HF_TOKEN": ""}, "HF_TOKEN is not set", id="no token"),
        pytest.param((), {"HF_TOKEN": "hf_wrong"}, "HF_TOKEN is valid", id="bad token"),
        pytest.param(("--repo", "org/other"), {}, "the hub answers 404: check the Space's name", id="no such Space"),
        pytest.param(("--root", "/dev"), {}, "the image needs .dockerignore", id="not our tree"),
        pytest.param(("--image", "/nowhere.png"), {}, "/nowhere.png", id="no image"),
    ],
)
def test_nothing_is_begun(
    hub: FakeSpace, deploy: Deploy, options: tuple[str, ...], environment: dict[str, str], reason: str
) -> None:
    """What can be known before is said before."""
    status, printed = deploy(*options, **environment)
    assert status is Status.UNCHANGED
    assert reason in printed
    assert len(hub.commits) == 1


def test_a_paused_space_is_left_alone(hub: FakeSpace, deploy: Deploy) -> None:
    """Its owner paused it, perhaps for its price."""
    hub.run(earlier())
    hub.stage = "PAUSED"
    status, printed = deploy()
    assert status is Status.UNCHANGED
    assert "paused" in printed
    assert len(hub.commits) == 2


def test_a_file_that_git_does_not_know_is_not_pushed(hub: FakeSpace, deploy: Deploy, tree: Path) -> None:
    """A forgotten module, or something private."""
    (tree / "vit_api" / "notes.txt").write_text("private")
    status, printed = deploy()
    assert status is Status.UNCHANGED
    assert "git does not know vit_api/notes.txt" in printed


def test_the_commit_says_what_was_deployed(hub: FakeSpace, deploy: Deploy, tree: Path) -> None:
    """The revision here, and whether the tree was exactly that."""
    deploy()
    (tree / "server.py").write_text("newer = True\n")
    deploy()
    assert "uncommitted" not in hub.titles[1]
    assert hub.titles[2] == f"{hub.titles[1]} with uncommitted changes"


def test_a_public_space_never_sees_the_token(hub: FakeSpace, deploy: Deploy) -> None:
    """But its own key."""
    deploy()
    assert all("Authorization" not in headers for headers in hub.seen_by_application)
    assert {headers["X-API-Key"] for headers in hub.seen_by_application} == {KEY}


def test_a_private_space_needs_the_token(hub: FakeSpace, deploy: Deploy) -> None:
    """The hub's proxy asks for it."""
    hub.is_private = True
    deploy()
    assert {headers["Authorization"] for headers in hub.seen_by_application} == {f"Bearer {TOKEN}"}


def test_the_real_server_passes_the_smoke_test(hub: FakeSpace, deploy: Deploy, digits_server: RunningServer) -> None:
    """What the fake application answers is what the real one does."""
    hub.url = digits_server.url
    assert deploy("--ready-timeout-s", "30")[0] is Status.DEPLOYED


def test_the_command(hub: FakeSpace, tree: Path) -> None:
    """The exit status is the outcome's."""
    hub.run(earlier())
    hub.stages.append(["BUILDING", "BUILD_ERROR"])
    settings = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "deploy.space", "--repo", NAME, "--root", str(tree), "--poll-s", "0.01"],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == Status.TAKEN_BACK, result.stderr
    assert TOKEN not in result.stdout + result.stderr
