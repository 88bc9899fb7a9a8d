"""Deploying to an Inference Endpoint: what is created or updated, what is a failure, the rollback; by a fake hub."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from deploy.endpoint import main
from deploy.endpoint_target import NEW_HARDWARE, NEW_SCALING
from deploy.rollout import Status
from deploy.watch import Patience
from tests.support.fake_endpoints import MAIN, NAME, FakeEndpoints, classify
from tests.support.fake_hugging_face import TOKEN, Response, running
from tests.support.server import ROOT, RunningServer

KEY = "key-of-this-test"
NEW, OLD = (f"ghcr.io/org/vit-api@sha256:{digit * 64}" for digit in "01")
OLD_IMAGE = {"custom": {"url": OLD, "port": 7860, "healthRoute": "/health/ready"}}
MODEL = ("--model", "google/vit-base-patch16-224")
Deploy = Callable[..., tuple[Status, str]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoints]:
    """A hub without an Endpoint."""
    with running(FakeEndpoints()) as server:
        monkeypatch.setattr("huggingface_hub.constants.INFERENCE_ENDPOINTS_ENDPOINT", server.api)
        yield server


@pytest.fixture
def deploy(hub: FakeEndpoints, capfd: pytest.CaptureFixture[str]) -> Deploy:
    """Deploy an image; return the outcome and the output, which never contains a secret."""

    def run(*options: str, **environment: str) -> tuple[Status, str]:
        arguments = ["--name", NAME, "--container-image", NEW, "--poll-s", "0.01", "--ready-timeout-s", "0.3", *options]
        status = main(arguments, {"HF_TOKEN": TOKEN, "ENDPOINT_API_KEY": KEY, **environment})
        printed = "".join(capfd.readouterr())
        assert TOKEN not in printed
        assert KEY not in printed
        return status, printed

    return run


def fails_when_new(path: str, model: dict[str, Any]) -> Response:
    """Respond as an application that works only in the former image."""
    if path == "/predict" and model["image"]["custom"]["url"] != OLD:
        return 500, {"error": "no", "code": "inference_failed"}
    return classify(path, model)


def test_a_new_endpoint(hub: FakeEndpoints, deploy: Deploy) -> None:
    """It scales by pending requests, and to zero; its model is the one named, which the server finds automatically."""
    status, printed = deploy(*MODEL, "--env", "VIT_API_TOP_K=1", "--secret", "KEYS", KEYS=KEY)
    assert status is Status.DEPLOYED, printed
    (sent,) = hub.sent
    assert sent == {
        "name": "classifier",
        "type": "authenticated",
        "provider": {"vendor": "aws", "region": "us-east-1"},
        "compute": {
            "accelerator": "gpu",
            "instanceType": "nvidia-t4",
            "instanceSize": "x1",
            "scaling": {
                "minReplica": 0,
                "maxReplica": 2,
                "scaleToZeroTimeout": 15,
                "measure": {"pendingRequests": 32.0},
            },
        },
        "model": {
            "repository": "google/vit-base-patch16-224",
            "revision": None,
            "framework": "custom",
            "task": "image-classification",
            "image": {"custom": {"url": NEW, "port": 7860, "healthRoute": "/health/ready"}},
            "env": {"VIT_API_TOP_K": "1"},
            "secrets": {"KEYS": KEY},
        },
    }
    assert [state in printed for state in ("pending", "initializing", "running")] == [False, True, True]
    assert {headers["X-API-Key"] for headers in hub.seen_by_application} == {KEY}


def test_a_new_image(hub: FakeEndpoints, deploy: Deploy) -> None:
    """All that was not asked for stays as it is."""
    hub.add(OLD_IMAGE)
    before = {**hub.one["compute"]}
    status, printed = deploy("--env", "VIT_API_CACHE_SIZE=9")
    assert status is Status.DEPLOYED, printed
    assert hub.one["compute"] == before
    assert hub.running["classifier"] == {
        **hub.one["model"],
        "image": {"custom": {"url": NEW, "port": 7860, "healthRoute": "/health/ready"}},
        "env": {"VIT_API_TOP_K": "3", "VIT_API_CACHE_SIZE": "9"},
        "repository": "org/model",
        "revision": MAIN,
    }
    assert "secrets" not in hub.sent[0]["model"]


def test_a_new_scaling(hub: FakeEndpoints, deploy: Deploy) -> None:
    """And new hardware, and another model, of which the newest revision is meant."""
    hub.add(OLD_IMAGE)
    hub.one["model"]["revision"] = "f" * 40
    options = ("--max-replicas", "8", "--pending-requests", "20", "--instance-type", "nvidia-t4")
    assert deploy(*MODEL, "--revision", "main", *options)[0] is Status.DEPLOYED
    compute = hub.one["compute"]
    assert compute["instanceType"] == "nvidia-t4"
    assert compute["scaling"]["minReplica"] == 1
    assert compute["scaling"]["maxReplica"] == 8
    assert compute["scaling"]["measure"] == {"pendingRequests": 20.0}
    assert hub.one["model"]["revision"] == MAIN


def test_nothing_changed(hub: FakeEndpoints, deploy: Deploy) -> None:
    """Nothing is sent, and there is no wait, but the smoke test still runs."""
    hub.add(OLD_IMAGE)
    status, printed = deploy("--container-image", OLD)
    assert status is Status.DEPLOYED
    assert "already has this configuration" in printed
    assert hub.sent == []
    assert hub.seen_by_application


@pytest.mark.parametrize("end", ["failed", "updateFailed", "paused"])
def test_a_failed_update_is_rolled_back(hub: FakeEndpoints, deploy: Deploy, end: str) -> None:
    """The former image, model, environment, scaling and hardware are restored, and run."""
    hub.add(OLD_IMAGE)
    before = {part: {**hub.one[part]} for part in ("model", "compute")}
    hub.stages.append(["updating", end])
    status, printed = deploy(*MODEL, "--env", "A=b", "--max-replicas", "9", "--instance-type", "nvidia-t4")
    assert status is Status.ROLLED_BACK, printed
    assert f"ended in {end} (Endpoint is {end})" in printed
    assert "https://endpoints.huggingface.co/org/endpoints/classifier/logs" in printed
    assert {part: hub.one[part] for part in before} == before
    assert hub.running["classifier"] == before["model"]


def test_a_failed_smoke_test_is_rolled_back(hub: FakeEndpoints, deploy: Deploy) -> None:
    """The new image runs, but does not classify."""
    hub.add(OLD_IMAGE)
    hub.application = fails_when_new
    status, printed = deploy()
    assert status is Status.ROLLED_BACK
    assert "/predict responds with status 500 (inference_failed)" in printed
    assert hub.running["classifier"]["image"] == OLD_IMAGE
    assert f"vit-api@sha256:{'1' * 12} with org/model at {MAIN[:12]} runs and passed the smoke test" in printed


def test_a_managed_image_is_restored(hub: FakeEndpoints, deploy: Deploy) -> None:
    """The Endpoint ran an image of Hugging Face's own before."""
    hub.add({"huggingface": {}})
    hub.stages += [["updating", "updateFailed"]]
    status, printed = deploy()
    assert status is Status.ROLLED_BACK, printed
    assert hub.one["model"]["image"] == {"huggingface": {}}


def test_the_former_image_does_not_pass_for_the_new_one(hub: FakeEndpoints, deploy: Deploy) -> None:
    """Until the update begins, the hub reports `running`, and with the new image; so do the first polls."""
    hub.add(OLD_IMAGE)
    hub.stages.append(["running", "running", "running", "updating", "updateFailed"])
    assert deploy()[0] is Status.ROLLED_BACK


def test_an_update_too_fast_to_see(hub: FakeEndpoints, deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one that needs no new replicas, of the scaling alone."""
    monkeypatch.setattr("deploy.command.Patience", lambda *limits: Patience(*limits, stale_s=0.1))
    hub.add(OLD_IMAGE)
    hub.stages.append(["running"])
    assert deploy("--container-image", OLD, "--max-replicas", "5")[0] is Status.DEPLOYED


def test_an_endpoint_that_is_scaled_to_zero(hub: FakeEndpoints, deploy: Deploy) -> None:
    """The smoke test starts a replica, and waits for it."""
    hub.add(OLD_IMAGE, "scaledToZero")
    hub.one["status"]["url"] = hub.url
    hub.stages.append(["updating", "scaledToZero"])
    status, printed = deploy("--ready-timeout-s", "30")
    assert status is Status.DEPLOYED, printed
    assert hub.running["classifier"]["image"]["custom"]["url"] == NEW
    assert hub.state == "running"


def test_scaling_to_zero_after_the_test(hub: FakeEndpoints, deploy: Deploy) -> None:
    """Then a staging Endpoint costs nothing."""
    status, printed = deploy(*MODEL, "--scale-to-zero")
    assert status is Status.DEPLOYED
    assert hub.state == "scaledToZero"
    assert "Scaled to zero" in printed


def test_a_failure_to_scale_to_zero_is_only_logged(hub: FakeEndpoints, deploy: Deploy) -> None:
    """The image works, and the Endpoint scales to zero when it is idle."""
    hub.failures[f"/v2/endpoint/{NAME}/scale-to-zero"] = deque([500])
    status, printed = deploy(*MODEL, "--scale-to-zero")
    assert status is Status.DEPLOYED
    assert "The Endpoint was not scaled to zero. The hub responded with status 500" in printed


def test_a_failure_of_a_new_endpoint(hub: FakeEndpoints, deploy: Deploy) -> None:
    """There is nothing to go back to; it stays, so that its log can be read."""
    hub.stages.append(["initializing", "failed"])
    status, printed = deploy(*MODEL)
    assert status is Status.BROKEN
    assert "no earlier working version" in printed


def test_an_endpoint_that_had_failed_before(hub: FakeEndpoints, deploy: Deploy) -> None:
    """Its configuration is nothing to go back to. The old failure is not one of the new image."""
    hub.add(OLD_IMAGE, "failed")
    assert deploy()[0] is Status.DEPLOYED
    hub.add(OLD_IMAGE, "failed")
    hub.stages.append(["updating", "failed"])
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "no earlier working version" in printed


def test_a_rollback_that_fails_as_well(hub: FakeEndpoints, deploy: Deploy) -> None:
    """The former image does not start any more."""
    hub.add(OLD_IMAGE)
    hub.stages += [["updating", "failed"], ["updating", "failed"]]
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "failed, too" in printed


def test_another_client_deploys_in_the_meantime(hub: FakeEndpoints, deploy: Deploy) -> None:
    """The rollback does not overwrite its version."""
    hub.add(OLD_IMAGE)
    theirs = {"custom": {"url": NEW.replace("0", "7"), "port": 7860}}

    def change_and_fail(path: str, model: dict[str, Any]) -> Response:
        hub.one["model"]["image"] = theirs
        return 500, {}

    hub.application = change_and_fail
    status, printed = deploy()
    assert status is Status.BROKEN
    assert "Another client has changed the Endpoint since" in printed
    assert hub.one["model"]["image"] == theirs


def test_an_update_in_progress_is_awaited(hub: FakeEndpoints, deploy: Deploy) -> None:
    """Only then is it known whether there is a version to go back to."""
    hub.add(OLD_IMAGE, "updating")
    hub.pending = deque(["updating", "updating", "running"])
    hub.application = fails_when_new
    assert deploy()[0] is Status.ROLLED_BACK


def test_an_update_in_progress_that_never_ends(hub: FakeEndpoints, deploy: Deploy) -> None:
    """Nothing is changed."""
    hub.add(OLD_IMAGE, "updating")
    status, printed = deploy("--timeout-s", "0.1")
    assert status is Status.UNCHANGED
    assert "still being changed after 0.1 s: updating" in printed
    assert hub.sent == []


def test_an_update_that_never_ends(hub: FakeEndpoints, deploy: Deploy) -> None:
    """The time limit ends the wait, and the former version is deployed again."""
    hub.add(OLD_IMAGE)
    hub.stages.append(["updating"])
    status, printed = deploy("--timeout-s", "0.3")
    assert status is Status.ROLLED_BACK, printed
    assert "after 0.3 s: updating" in printed


def test_transient_failures_of_the_hub_are_retried(hub: FakeEndpoints, deploy: Deploy) -> None:
    """A failure of the hub during the wait is not one of the Endpoint."""
    hub.add(OLD_IMAGE)
    path = f"/v2/endpoint/{NAME}"

    hub.stages.append(["updating", "updating", "running"])
    answers: deque[int] = deque()
    hub.failures[path] = answers
    hub.enter(hub.one, "running")
    original = hub.advance

    def advance(endpoint: dict[str, Any]) -> None:
        original(endpoint)
        if hub.state == "updating" and not hub.one.get("has_failed"):
            hub.one["has_failed"] = True
            answers.extend([502, 429, 0])

    hub.advance = advance  # type: ignore[method-assign]
    status, printed = deploy()
    assert status is Status.DEPLOYED
    assert "The hub responded with status 502" in printed
    assert "The hub responded with status 429" in printed


@pytest.mark.parametrize("failure", [pytest.param(0, id="hang-up"), pytest.param(502, id="gateway")])
def test_a_change_without_a_response(hub: FakeEndpoints, deploy: Deploy, failure: int) -> None:
    """The output must not claim that nothing was changed."""
    hub.failures["/v2/endpoint/org"] = deque([failure])
    status, printed = deploy(*MODEL)
    assert status is Status.BROKEN
    assert "may or may not have been made" in printed


def test_what_the_hub_refuses_changes_nothing(hub: FakeEndpoints, deploy: Deploy) -> None:
    """The hub's own words say why."""
    hub.quota = 0
    status, printed = deploy(*MODEL)
    assert status is Status.UNCHANGED
    assert "status 409 (Conflict: Quota exceeded" in printed
    hub.quota = 2
    status, printed = deploy(*MODEL, "--instance-type", "nvidia-t5")
    assert status is Status.UNCHANGED
    assert "Compute instance not available" in printed
    hub.failures["/v2/endpoint/org"] = deque([429])
    status, printed = deploy(*MODEL)
    assert status is Status.UNCHANGED, printed
    assert hub.endpoints == {}


@pytest.mark.parametrize(
    ("options", "environment", "reason"),
    [
        pytest.param(MODEL, {"HF_TOKEN": ""}, "HF_TOKEN is not set", id="no token"),
        pytest.param(MODEL, {"HF_TOKEN": "hf_wrong"}, "HF_TOKEN is valid", id="bad token"),
        pytest.param((), {}, "a new one needs --model", id="no model"),
        pytest.param((*MODEL, "--image", "/nowhere.png"), {}, "/nowhere.png", id="no image"),
        pytest.param((*MODEL, "--secret", "KEYS"), {}, "not in the environment: KEYS", id="no secret"),
        pytest.param(MODEL, {"REGISTRY_USERNAME": "x"}, "REGISTRY_PASSWORD, or neither", id="half of the credentials"),
    ],
)
def test_what_can_be_checked_first_changes_nothing(
    hub: FakeEndpoints, deploy: Deploy, options: tuple[str, ...], environment: dict[str, str], reason: str
) -> None:
    """Mistakes that can be found early are reported before anything is created."""
    status, printed = deploy(*options, **environment)
    assert status is Status.UNCHANGED
    assert reason in printed
    assert hub.endpoints == {}


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        pytest.param({}, "paused", "The Endpoint is paused", id="paused"),
        pytest.param({"type": "private"}, "running", "The Endpoint is private", id="private"),
    ],
)
def test_an_endpoint_that_is_not_changed(
    hub: FakeEndpoints, deploy: Deploy, fields: dict[str, Any], state: str, reason: str
) -> None:
    """Its owner paused it, perhaps because of its cost; or it can't be reached from here."""
    hub.add(OLD_IMAGE, state, **fields)
    status, printed = deploy()
    assert status is Status.UNCHANGED
    assert reason in printed
    assert hub.sent == []


def test_registry_credentials(hub: FakeEndpoints, deploy: Deploy) -> None:
    """The hub does not return the password, so a rollback needs it again."""
    secret = {"custom": {**OLD_IMAGE["custom"], "credentials": {"username": "robot", "password": "old"}}}
    hub.add(secret)
    status, printed = deploy()
    assert status is Status.UNCHANGED
    assert "set REGISTRY_USERNAME and REGISTRY_PASSWORD" in printed
    hub.stages.append(["updating", "failed"])
    status, printed = deploy(REGISTRY_USERNAME="robot", REGISTRY_PASSWORD="pass-of-this-test")
    assert status is Status.ROLLED_BACK, printed
    assert "pass-of-this-test" not in printed
    credentials = {"username": "robot", "password": "pass-of-this-test"}
    assert [sent["model"]["image"]["custom"]["credentials"] for sent in hub.sent] == [credentials] * 2
    assert hub.one["model"]["image"]["custom"]["url"] == OLD


def test_a_public_endpoint_never_sees_the_token(hub: FakeEndpoints, deploy: Deploy) -> None:
    """It gets only its own API key; the proxy of an authenticated one requires the token."""
    assert deploy(*MODEL, "--type", "public")[0] is Status.DEPLOYED
    assert all("Authorization" not in headers for headers in hub.seen_by_application)
    hub.endpoints.clear()
    hub.seen_by_application.clear()
    assert deploy(*MODEL)[0] is Status.DEPLOYED
    assert {headers["Authorization"] for headers in hub.seen_by_application} == {f"Bearer {TOKEN}"}


def test_the_real_server_passes_the_smoke_test(
    hub: FakeEndpoints, deploy: Deploy, digits_server: RunningServer
) -> None:
    """The fake application responds as the real one does, and the health route exists."""
    hub.url = digits_server.url
    assert deploy(*MODEL, "--ready-timeout-s", "30")[0] is Status.DEPLOYED
    route = hub.one["model"]["image"]["custom"]["healthRoute"]
    assert httpx.get(digits_server.url + route).status_code == 200


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param(("--container-image", "ghcr.io/org/vit-api:latest"), "has no digest", id="a tag"),
        pytest.param(("--name", "classifier"), "is not ORGANISATION/NAME", id="no namespace"),
        pytest.param(("--env", "VIT_API_TOP_K"), "is not NAME=VALUE", id="no value"),
    ],
)
def test_wrong_options(options: tuple[str, ...], why: str) -> None:
    """The command says which, and what is allowed."""
    command = [sys.executable, "-m", "deploy.endpoint", "--name", NAME, "--container-image", NEW, *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert why in result.stderr


def test_the_documentation_names_each_option_and_default() -> None:
    """In the section on Inference Endpoints."""
    section = (ROOT / "docs" / "hugging-face.md").read_text().partition("## Inference Endpoints")[2]
    command = [sys.executable, "-m", "deploy.endpoint", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    shared = {"--help", "--image", "--timeout-s", "--ready-timeout-s", "--poll-s"}
    options = set(re.findall(r"^  +(?:-h, )?(--[a-z-]+)", result.stdout, re.MULTILINE)) - shared
    assert len(options) > 10
    assert {option for option in options if option not in section} == set()
    rows = {row[0]: row[1] for row in re.findall(r"^\| (.*?) \| (.*?) \|", section, re.MULTILINE)}
    scaling, hardware = NEW_SCALING, NEW_HARDWARE
    assert rows["`--pending-requests`"] == f"{scaling.pending_requests:g}"
    assert rows["`--min-replicas`, `--max-replicas`"] == f"{scaling.min_replicas}, {scaling.max_replicas}"
    assert rows["`--idle-min`"] == str(scaling.idle_min)
    shown = f"`{hardware.accelerator}`, `{hardware.instance_type}`, `{hardware.instance_size}`"
    assert rows["`--accelerator`, `--instance-type`, `--instance-size`"] == shown
