"""What Triton's clients may say of a model that is to be loaded: its `config`, as JSON. Knows nothing of HTTP.

Our own fields are those of an entry of `VIT_API_MODELS`. Of Triton's model configuration, what this server has is taken
and everything else refused by name, since a model that is run in another way than wanted is worse than none. See
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

import json
from typing import Any

from vit_api.deployments.listing import Deployment
from vit_api.errors import BadRequest

_OWN = frozenset(Deployment.model_fields) - {"name"}
_TRITONS = ("name", "max_batch_size", "instance_group", "parameters")
_GROUP_FIELDS = frozenset(("count", "kind", "name"))
_KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU")
_MAX_SHOWN = 64


def fields_of(name: str, config: Any) -> dict[str, Any]:
    """Return the fields of the deployment that a configuration describes, without the name.

    Args:
        name: The model's name, in the path.
        config: The configuration, as JSON text; None if the request has none.

    Raises:
        BadRequest: It is malformed, or has a field that this server has not.
    """
    document = _document(config)
    fields: dict[str, Any] = {}
    for key, value in document.items():
        if key in _OWN:
            fields[key] = value
        elif key == "name":
            if value != name:
                raise BadRequest(f"The 'name' in 'config' is {str(value)[:_MAX_SHOWN]!r}, and the path names {name!r}.")
        elif key == "instance_group":
            fields["workers_per_device"] = _workers_of(value)
        elif key == "parameters":
            fields |= _parameters_of(value)
        else:
            known = ", ".join(sorted({*_OWN, *_TRITONS}))
            raise BadRequest(f"'config' has a field {key[:_MAX_SHOWN]!r}, which this server does not have: {known}.")
    return fields


def _document(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if not isinstance(config, str):
        raise BadRequest("The parameter 'config' should be a string of JSON.")
    try:
        document = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The JSON in the parameter 'config' is malformed: {error}.") from None
    if not isinstance(document, dict):
        raise BadRequest('The parameter \'config\' should be a JSON object, such as {"model": "/models/nsfw-2"}.')
    return document


def _workers_of(groups: Any) -> int:
    """Return the workers on each device that `instance_group` asks for."""
    group = groups[0] if isinstance(groups, list) and len(groups) == 1 else None
    if not isinstance(group, dict) or group.keys() - _GROUP_FIELDS or group.get("kind", _KINDS[0]) not in _KINDS:
        raise BadRequest(
            "'instance_group' should be one group with 'count' and perhaps 'kind': this server runs as many workers "
            "on each of its devices."
        )
    count: int = group.get("count", 1)
    return count


def _parameters_of(parameters: Any) -> dict[str, Any]:
    """Return our own fields as Triton's `parameters` have those of a backend."""
    fields = {}
    for key, value in parameters.items() if isinstance(parameters, dict) else [("", None)]:
        if key not in _OWN or not isinstance(value, dict) or not isinstance(value.get("string_value"), str):
            raise BadRequest(
                f'\'parameters\' of \'config\' should be like {{"model": {{"string_value": "..."}}}}, not {key!r}.'
            )
        fields[key] = value["string_value"]
    return fields
