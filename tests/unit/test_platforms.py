"""Environment variables set by hosting platforms."""

from __future__ import annotations

import os

import pytest

from vit_api import platforms

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


@pytest.mark.parametrize(
    ("value", "expected"),
    [("8080", {"port": "8080"}), ("", {}), ("tcp://10.96.12.7:80", {})],
)
def test_defaults(monkeypatch: pytest.MonkeyPatch, value: str, expected: dict[str, str]) -> None:
    """PORT is used if it is a number."""
    monkeypatch.setenv("PORT", value)
    assert platforms.defaults() == expected
