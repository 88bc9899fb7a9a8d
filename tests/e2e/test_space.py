"""A server with the environment of a Hugging Face Space."""

from __future__ import annotations

import pytest

from tests.support.server import serve


def test_a_server_in_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts, warns about missing settings, and runs one process per core of the Space."""
    for name, value in {"SPACE_ID": "org/name", "CPU_CORES": "1", "ACCELERATOR": "t4-small"}.items():
        monkeypatch.setenv(name, value)
    with serve(api_servers="") as server:  # empty: the default
        assert server.get("/info").json()["settings"]["api_servers"] == 1
        assert "The model runs on the CPU, many times slower than on a GPU: torch" in server.log.read_text()
