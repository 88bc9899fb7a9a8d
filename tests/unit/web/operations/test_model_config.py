"""What Triton's clients may say of a model: our fields, some of theirs, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vit_api.errors import BadRequest
from vit_api.web.operations.model_config import fields_of


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        pytest.param({"model": "/m", "version": 2}, {"model": "/m", "version": 2}, id="ours"),
        pytest.param({"name": "shop", "max_batch_size": 8}, {"max_batch_size": 8}, id="Triton's"),
        pytest.param({"instance_group": [{"count": 2, "kind": "KIND_GPU"}]}, {"workers_per_device": 2}, id="instances"),
        pytest.param({"parameters": {"model": {"string_value": "/m"}}}, {"model": "/m"}, id="parameters"),
        pytest.param({"thresholds": {"cat": 0.5}}, {"thresholds": {"cat": 0.5}}, id="object"),
        pytest.param({}, {}, id="nothing"),
    ],
)
def test_fields(config: dict[str, Any], fields: dict[str, Any]) -> None:
    """Those of a deployment, without its name."""
    assert fields_of("shop", json.dumps(config)) == fields


def test_no_configuration_has_no_fields() -> None:
    """As when a model is loaded again."""
    assert fields_of("shop", None) == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param("{", "is malformed", id="JSON"),
        pytest.param("[]", "should be a JSON object", id="list"),
        pytest.param(7, "should be a string of JSON", id="number"),
        pytest.param('{"name": "other"}', "the path names 'shop'", id="name"),
        pytest.param('{"platform": "tensorrt_plan"}', "a field 'platform'", id="platform"),
        pytest.param('{"dynamic_batching": {}}', "a field 'dynamic_batching'", id="batching"),
        pytest.param('{"instance_group": [{"count": 1}, {"count": 2}]}', "should be one group", id="groups"),
        pytest.param('{"instance_group": [{"gpus": [1]}]}', "should be one group", id="gpus"),
        pytest.param('{"parameters": {"model": "m"}}', "string_value", id="parameter"),
        pytest.param('{"parameters": 3}', "string_value", id="parameters"),
    ],
)
def test_what_is_refused(config: Any, message: str) -> None:
    """By name, since another way to run a model than the wanted one is worse than none."""
    with pytest.raises(BadRequest, match=message):
        fields_of("shop", config)
