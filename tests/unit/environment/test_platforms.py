"""Environment variables set by hosting platforms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_api.environment import platforms
from vit_api.settings import Settings

PREFIX = "VIT_API_"

# As Kubernetes sets them for the Services `vit-api`, with a named port, and `vit-api-keys`.
SERVICE_LINKS = {
    "VIT_API_SERVICE_HOST": "10.96.12.7",
    "VIT_API_SERVICE_PORT": "7860",
    "VIT_API_SERVICE_PORT_HTTP": "7860",
    "VIT_API_PORT": "tcp://10.96.12.7:7860",
    "VIT_API_PORT_7860_TCP": "tcp://10.96.12.7:7860",
    "VIT_API_PORT_7860_TCP_PROTO": "tcp",
    "VIT_API_PORT_7860_TCP_PORT": "7860",
    "VIT_API_PORT_7860_TCP_ADDR": "10.96.12.7",
    "VIT_API_KEYS_SERVICE_HOST": "10.96.12.8",
    "VIT_API_KEYS_PORT": "udp://10.96.12.8:53",
    "VIT_API_KEYS_PORT_53_UDP_ADDR": "10.96.12.8",
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)] + ["PORT"]:
        monkeypatch.delenv(name, raising=False)


def test_service_links_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Service links with our prefix are removed; settings and links of other Services are kept."""
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VIT_API_MODEL", "digits")
    monkeypatch.setenv("REDIS_PORT", "tcp://10.96.12.9:6379")
    assert platforms.drop_service_links(PREFIX) == sorted(SERVICE_LINKS)
    assert [name for name in os.environ if name.startswith(PREFIX)] == ["VIT_API_MODEL"]
    assert "REDIS_PORT" in os.environ


@pytest.mark.parametrize("value", ["7860", "0", "abc", ""])
def test_a_port_that_is_not_a_url_is_kept(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """It is a setting, valid or not."""
    monkeypatch.setenv("VIT_API_PORT", value)
    assert platforms.drop_service_links(PREFIX) == []


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory that is mounted as /repository is, with a model; no variables name another one."""
    for part in ("ID", "DIR", "REVISION"):
        monkeypatch.delenv(f"HF_MODEL_{part}", raising=False)
    monkeypatch.delenv("PORT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platforms, "MOUNTED", str(tmp_path / "repository"))
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "config.json").write_text("{}")
    return tmp_path / "repository"


@pytest.mark.parametrize(
    ("variables", "arguments", "expected"),
    [
        pytest.param({}, {}, ("MOUNTED", None), id="mounted"),
        pytest.param({"HF_MODEL_ID": "a/b"}, {}, ("a/b", None), id="hub"),
        pytest.param({"HF_MODEL_ID": "a/b", "HF_MODEL_REVISION": "v1"}, {}, ("a/b", "v1"), id="revision"),
        pytest.param({"HF_MODEL_ID": "a/b", "HF_MODEL_DIR": "MOUNTED"}, {}, ("MOUNTED", None), id="directory"),
        pytest.param({"HF_MODEL_ID": "a/b", "HF_MODEL_DIR": "/nothing"}, {}, ("a/b", None), id="empty directory"),
        pytest.param({"HF_MODEL_ID": "a/b"}, {"model": "digits"}, ("digits", None), id="set otherwise"),
        pytest.param(
            {"HF_MODEL_ID": "a/b", "HF_MODEL_REVISION": "v1"}, {"model": "c/d"}, ("c/d", None), id="other revision"
        ),
        pytest.param(
            {"HF_MODEL_ID": "a/b", "HF_MODEL_REVISION": "v1"}, {"revision": "v2"}, ("a/b", "v2"), id="own revision"
        ),
        pytest.param({"HF_MODEL_ID": "a/b", "VIT_API_MODEL": "c/d"}, {}, ("c/d", None), id="variable of ours"),
    ],
)
def test_the_model_of_the_platform(
    monkeypatch: pytest.MonkeyPatch,
    endpoint: Path,
    variables: dict[str, str],
    arguments: dict[str, str],
    expected: tuple[str, str | None],
) -> None:
    """It counts where no setting names one, and its revision is never another model's."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(endpoint) if value == "MOUNTED" else value)
    settings = Settings(**arguments)
    model, revision = expected
    assert (settings.model, settings.revision) == (str(endpoint) if model == "MOUNTED" else model, revision)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("8080", {"port": "8080"}), ("", {}), ("tcp://10.96.12.7:80", {})],
)
def test_defaults(monkeypatch: pytest.MonkeyPatch, value: str, expected: dict[str, str]) -> None:
    """PORT is used if it is a number."""
    monkeypatch.setenv("PORT", value)
    assert platforms.defaults() == expected
