"""The container's files, without building anything: `make container-test` does that."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.harness.servers import free_port
from tests.support.server import ROOT, RunningServer
from vit_api.settings import Settings

_DOCKERFILE = (ROOT / "Dockerfile").read_text()
_DASHBOARDS = ROOT / "deploy" / "grafana" / "provisioning" / "dashboards" / "vit-api.yml"
_COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
_SERVICES: dict[str, dict[str, Any]] = _COMPOSE["services"]


def _copied() -> list[str]:
    """Return what the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", _DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def _allowed() -> list[str]:
    """Return what .dockerignore lets in: it forbids everything first."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert [line for line in lines[1:] if not line.startswith("!")] == ["**/__pycache__"]
    return [line.removeprefix("!") for line in lines[1:] if line.startswith("!")]


def test_hadolint_agrees() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program is not None
    result = subprocess.run([program, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout


def test_the_builder_gets_what_is_copied_and_no_more() -> None:
    """A new folder of the repository doesn't get into the image by itself."""
    whole = {source for source in _copied() if not source.startswith("vit_api/")}
    assert whole == set(_allowed())
    for source in _copied():
        assert (ROOT / source).exists(), source


def test_what_the_server_imports_is_copied() -> None:
    """Modules of our own; those of others are in requirements.txt."""
    ours = {path.stem if path.is_file() else path.name for path in ROOT.iterdir() if path.name[0] not in "._"}
    files = [ROOT / "server.py", *(ROOT / "vit_api").rglob("*.py")]
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    imported = {name for file in files for name in pattern.findall(file.read_text())}
    assert imported & ours <= {Path(source).stem for source in _copied()}


def test_the_base_has_the_torch_that_is_required() -> None:
    """Otherwise a second one of several GB would be downloaded into the image."""
    (torch,) = re.findall(r"^torch==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert re.search(
        rf"^ARG BASE_IMAGE=pytorch/pytorch:{re.escape(torch)}-cuda\S+-runtime@sha256:\w{{64}}$", _DOCKERFILE, re.M
    )


def test_signals_reach_the_server() -> None:
    """A shell between would keep them. And the port and the user are what the documentation says."""
    assert 'ENTRYPOINT ["python", "/app/server.py"]' in _DOCKERFILE
    assert f"EXPOSE {Settings.model_fields['port'].default}" in _DOCKERFILE
    assert _DOCKERFILE.rindex("USER 1000:1000") > _DOCKERFILE.rindex("RUN ")


def _check_health(port: object) -> int:
    command = [sys.executable, str(ROOT / "deploy" / "healthcheck.py")]
    environment = os.environ | {"VIT_API_PORT": str(port)}
    return subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False).returncode


def test_the_health_check(digits_server: RunningServer) -> None:
    """0 with a server that is ready, 1 without."""
    assert _check_health(digits_server.port) == 0
    assert _check_health(free_port()) == 1


def _mounts() -> list[tuple[str, str, str]]:
    """Return service, source and target of everything that compose.yaml mounts."""
    volumes = [(name, volume) for name, service in _SERVICES.items() for volume in service.get("volumes", [])]
    return [(name, *volume.split(":")[:2]) for name, volume in volumes]


@pytest.mark.parametrize(("service", "source", "target"), _mounts())
def test_what_compose_mounts_exists(service: str, source: str, target: str) -> None:
    """A file that is missing would be made as an empty folder."""
    assert target.startswith("/"), service
    assert (ROOT / source).exists() if source.startswith("./") else source in _COMPOSE["volumes"]


def test_the_settings_that_are_named_exist() -> None:
    """In compose.yaml, the Dockerfile and the page about both."""
    for name in ("compose.yaml", "Dockerfile", "deploy/healthcheck.py", "docs/container.md"):
        named = set(re.findall(r"VIT_API_([A-Z_]+)", (ROOT / name).read_text()))
        assert named <= {setting.upper() for setting in Settings.model_fields}, name


@pytest.mark.parametrize("name", _SERVICES)
def test_a_service_is_pinned_healthy_and_without_rights(name: str) -> None:
    service = _SERVICES[name]
    assert "build" in service or re.search(r":v?\d+\.\d+\.\d+", service["image"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"


def test_the_server_is_checked_as_its_image_says() -> None:
    """Compose repeats the image's check for runtimes that know none in an image."""
    check = _SERVICES["server"]["healthcheck"]
    options = f"--interval={check['interval']} --timeout={check['timeout']} --start-period={check['start_period']}"
    assert f"HEALTHCHECK {options} --retries={check['retries']} CMD" in _DOCKERFILE
    assert re.findall(r'HEALTHCHECK .* CMD \["(.+)", "(.+)"\]', _DOCKERFILE) == [tuple(check["test"][1:])]
    assert _SERVICES["server"]["read_only"]


def test_compose_has_no_secret() -> None:
    """What is secret comes from the environment of the person who starts it."""
    environment = {k: v for service in _SERVICES.values() for k, v in service.get("environment", {}).items()}
    secret = {name: value for name, value in environment.items() if re.search("KEY|TOKEN|PASSWORD", name)}
    assert secret
    assert all(value == f"${{{name}:-}}" for name, value in secret.items())


def test_prometheus_finds_the_server() -> None:
    """By its name and port, with the same alerts as anywhere."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/compose.yml").read_text())
    (job,) = config["scrape_configs"]
    (host, port) = job["static_configs"][0]["targets"][0].split(":")
    assert _SERVICES[host]["ports"] == [f"{port}:{port}"]
    plain = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert (config["rule_files"], job["job_name"]) == (plain["rule_files"], plain["scrape_configs"][0]["job_name"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's package prometheus")
def test_promtool_agrees() -> None:
    """The configuration is valid, and its rules lie beside it."""
    command = ["promtool", "check", "config", "deploy/prometheus/compose.yml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_grafana_shows_the_dashboard() -> None:
    """From where compose.yaml mounts it, with the Prometheus of compose.yaml."""
    targets = {target for service, _, target in _mounts() if service == "grafana"}
    (provider,) = yaml.safe_load(_DASHBOARDS.read_text())["providers"]
    home = _SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in targets
    assert home.startswith(provider["options"]["path"] + "/")
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert [source["url"] for source in sources["datasources"]] == ["http://prometheus:9090"]


def test_the_gpu_is_added_to_the_server() -> None:
    """Names of services in the second file are those of the first."""
    added = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())["services"]
    assert set(added) == {"server"} <= set(_SERVICES)


def test_the_page_has_what_was_measured() -> None:
    """After another measurement, its figures have to be copied to the page."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "container.json").read_text())
    page = (ROOT / "docs" / "container.md").read_text()
    for name in ("base_s", "build_s", "ready_s", "healthcheck_s", "stop_s"):
        assert f"| {measured[name]} s |" in page, name
    packages, *_ = measured["layers_mb"]
    sizes = f"{measured['image_mb']} MB: base {measured['base_mb']} MB, packages {packages['mb']:.0f} MB"
    assert sizes in page
