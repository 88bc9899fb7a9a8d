"""The server as a replica's child, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.serve_replica.server_process import environment_of


def test_settings_become_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration in YAML has mappings, lists, numbers and booleans: the server reads them as JSON."""
    monkeypatch.setenv("VIT_API_MODEL", "digits")
    monkeypatch.setenv("VIT_API_DTYPE", "float32")
    models = [{"name": "digits", "version": "1", "model": "digits", "traffic": 100, "thresholds": {"7": 0.5}}]
    settings = {"model": None, "models": models, "batch_many": True, "port": 80, "out": Path("/a"), "model_name": "a b"}
    variables = environment_of(settings)
    assert "VIT_API_MODEL" not in variables
    assert json.loads(variables["VIT_API_MODELS"]) == models
    assert (variables["VIT_API_BATCH_MANY"], variables["VIT_API_PORT"]) == ("true", "80")
    assert (variables["VIT_API_MODEL_NAME"], variables["VIT_API_DTYPE"]) == ("a b", "float32")
