"""The files for the container image, without building it; `make container-test` builds it."""

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
    """Return the paths that the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", _DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def _allowed() -> list[str]:
    """Return the paths that .dockerignore lets through; its first line excludes everything."""
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
    """A new folder of the repository does not get into the image automatically."""
    whole = {source for source in _copied() if not source.startswith("vit_api/")}
    assert whole == set(_allowed())
    for source in _copied():
        assert (ROOT / source).exists(), source


def test_what_the_server_imports_is_copied() -> None:
    """The repository's own modules; third-party packages are in requirements.txt."""
    ours = {path.stem if path.is_file() else path.name for path in ROOT.iterdir() if path.name[0] not in "._"}
    files = [ROOT / "server.py", *(ROOT / "vit_api").rglob("*.py")]
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    imported = {name for file in files for name in pattern.findall(file.read_text())}
    assert imported & ours <= {Path(source).stem for source in _copied()}


def test_the_modules_that_fetch_a_model_are_complete(tmp_path: Path) -> None:
    """The image downloads a model before the rest of the code is copied."""
    for source in (source for source in _copied() if source.startswith("vit_api/")):
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / source)
    program = "import vit_api.checkpoints.hub as hub; print(hub.__file__)"
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()).is_relative_to(tmp_path)


def test_the_base_has_the_torch_that_is_required() -> None:
    """Otherwise a second one of several GB would be downloaded into the image."""
    (torch,) = re.findall(r"^torch==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert re.search(
        rf"^ARG BASE_IMAGE=pytorch/pytorch:{re.escape(torch)}-cuda\S+-runtime@sha256:\w{{64}}$", _DOCKERFILE, re.M
    )


def test_signals_reach_the_server() -> None:
    """A shell in between would not pass them on. The port and the user are the documented ones."""
    assert 'ENTRYPOINT ["python", "/app/server.py"]' in _DOCKERFILE
    assert f"EXPOSE {Settings.model_fields['port'].default}" in _DOCKERFILE
    assert _DOCKERFILE.rindex("USER 1000:1000") > _DOCKERFILE.rindex("RUN ")


def _check_health(port: object, **variables: str) -> int:
    command = [sys.executable, str(ROOT / "deploy" / "healthcheck.py")]
    environment = os.environ | {"VIT_API_PORT": str(port)} | variables
    return subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False).returncode


def test_the_health_check(digits_server: RunningServer) -> None:
    """The exit status is 0 for a server that is ready, and 1 if there is none."""
    assert _check_health(digits_server.port) == 0
    assert _check_health(free_port()) == 1


def test_the_health_check_finds_the_port_as_the_server_does(digits_server: RunningServer) -> None:
    """It ignores what Kubernetes sets for a Service, and takes the platform's port where ours is not set."""
    port = str(digits_server.port)
    assert _check_health("tcp://10.96.12.7:7860", PORT=port) == 0
    assert _check_health("", PORT=port) == 0
    assert _check_health(port, PORT="1") == 0


def _mounts() -> list[tuple[str, str, str]]:
    """Return service, source and target of each mount in compose.yaml."""
    volumes = [(name, volume) for name, service in _SERVICES.items() for volume in service.get("volumes", [])]
    return [(name, *volume.split(":")[:2]) for name, volume in volumes]


@pytest.mark.parametrize(("service", "source", "target"), _mounts())
def test_what_compose_mounts_exists(service: str, source: str, target: str) -> None:
    """Docker would create an empty folder for a missing file."""
    assert target.startswith("/"), service
    assert (ROOT / source).exists() if source.startswith("./") else source in _COMPOSE["volumes"]


def test_the_settings_that_are_named_exist() -> None:
    """Those in compose.yaml, the Dockerfile and their documentation."""
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
    """Compose repeats the image's check, because some runtimes ignore the image's."""
    check = _SERVICES["server"]["healthcheck"]
    options = f"--interval={check['interval']} --timeout={check['timeout']} --start-period={check['start_period']}"
    assert f"HEALTHCHECK {options} --retries={check['retries']} CMD" in _DOCKERFILE
    assert re.findall(r'HEALTHCHECK .* CMD \["(.+)", "(.+)"\]', _DOCKERFILE) == [tuple(check["test"][1:])]
    assert _SERVICES["server"]["read_only"]


def test_compose_has_no_secret() -> None:
    """Secrets come from the environment of the user who starts it; `${NAME:-}` would set one that is missing to ""."""
    environment = {k: v for service in _SERVICES.values() for k, v in service.get("environment", {}).items()}
    secret = {name: value for name, value in environment.items() if re.search("KEY|TOKEN|PASSWORD", name)}
    assert secret
    assert set(secret.values()) == {None}


def test_prometheus_finds_the_server() -> None:
    """By name and port, with the usual alerts."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/compose.yml").read_text())
    (job,) = config["scrape_configs"]
    (host, port) = job["static_configs"][0]["targets"][0].split(":")
    assert _SERVICES[host]["ports"] == [f"{port}:{port}"]
    plain = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert (config["rule_files"], job["job_name"]) == (plain["rule_files"], plain["scrape_configs"][0]["job_name"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's package prometheus")
def test_promtool_agrees() -> None:
    """The configuration is valid, and its rule files exist."""
    command = ["promtool", "check", "config", "deploy/prometheus/compose.yml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_grafana_shows_the_dashboard() -> None:
    """It loads the mounted dashboard and queries the Prometheus of compose.yaml."""
    targets = {target for service, _, target in _mounts() if service == "grafana"}
    (provider,) = yaml.safe_load(_DASHBOARDS.read_text())["providers"]
    home = _SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in targets
    assert home.startswith(provider["options"]["path"] + "/")
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert [source["url"] for source in sources["datasources"]] == ["http://prometheus:9090"]


def test_the_gpu_is_added_to_the_server() -> None:
    """The second file extends a service of the first."""
    added = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())["services"]
    assert set(added) == {"server"} <= set(_SERVICES)


def test_the_documentation_has_the_measured_figures() -> None:
    """After each measurement, copy its figures to docs/container.md."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "container.json").read_text())
    page = (ROOT / "docs" / "container.md").read_text()
    for name in ("base_s", "build_s", "ready_s", "healthcheck_s", "stop_s"):
        assert f"| {measured[name]} s |" in page, name
    packages, *_ = measured["layers_mb"]
    sizes = f"{measured['image_mb']} MB: base {measured['base_mb']} MB, packages {packages['mb']:.0f} MB"
    assert sizes in page
