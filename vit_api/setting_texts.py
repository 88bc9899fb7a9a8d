"""Describes the settings for people: in groups, with defaults and allowed values as one writes them.

`--help` and docs/settings.md are made from this. Must not know how a setting is read.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from vit_api.settings import ENV_PREFIX, Settings

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Model": (
        *(
            "model",
            "model_name",
            "revision",
            "models",
            "max_models",
            "max_input_side",
            "state_dir",
            "device",
            "dtype",
            "engine",
            "allow_unverified_int8",
            "cpu_threads",
            "workers_per_device",
        ),
        *("thresholds", "categories"),
    ),
    "Network": (
        *("host", "port", "api_servers", "request_timeout_s", "header_timeout_s", "body_timeout_s", "keep_alive_s"),
        "trusted_proxies",
    ),
    "Batching and queue": ("max_batch_size", "max_wait_ms", "queue_size"),
    "Uploads and images": (
        *("max_upload_mb", "max_batch_upload_mb", "max_pending_mb", "max_image_side", "max_decode_mb"),
        *("decode_threads", "background", "exact_decode"),
    ),
    "Cache": ("cache_size", "cache_ttl_s", "redis_url"),
    "Access": ("api_keys", "operator_key", "metrics_public", "rate_limit", "cors_origins"),
    "Logs and traces": (
        *("log_level", "log_format", "access_log", "access_log_user_agent", "decision_log", "decision_sample"),
        "traces",
    ),
    "Restarts and shutdown": ("worker_stall_s", "drain_delay_s", "drain_timeout_s"),
}
"""Every setting, in the order of `--help` and of docs/settings.md."""

_COMPUTED = {
    "api_servers": "one per core",
    "decode_threads": "cores per process",
    "cpu_threads": "one per core, or 1 for small models",
    "model_name": "that of the model",
}
_TYPES = {str: "TEXT", int: "NUMBER", float: "NUMBER", SecretStr: "SECRET"}
_METAVARS = {
    "device": "DEVICE",
    "redis_url": "URL",
    "decision_log": "FILE|URL",
    "model": "NAME|DIR",
    "models": "JSON|FILE",
    "state_dir": "DIR",
}


def default_of(name: str) -> str:
    """Return a setting's default as one would write it; `none` if there is none."""
    if name in _COMPUTED:
        return _COMPUTED[name]
    default = Settings.model_fields[name].default
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return default if isinstance(default, str) else f"{default:g}" if default < 1e6 else str(default)


def allowed_of(name: str) -> str:
    """Return a setting's range, such as `1 to 65,535`; empty if it has none."""
    field = Settings.model_fields[name]
    limits = {kind: value for part in field.metadata for kind, value in _limits(part)}
    low, high = limits.get("ge", limits.get("gt")), limits.get("le")
    if low is None or high is None:
        return ""
    return ("above " if "gt" in limits else "") + f"{_number(low)} to {_number(high)}"


def choices_of(name: str) -> tuple[str, ...]:
    """Return the values that a setting may have; empty if they are not a few."""
    annotation = Settings.model_fields[name].annotation
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def help_text(program: str) -> str:
    """Return what `--help` prints."""
    return _help_parser(program).format_help()


def usage_of(program: str) -> str:
    """Return the line that shows how the command is called."""
    return f"{program} [--SETTING VALUE]..."


def _help_parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        usage=usage_of(program),
        description="A dynamic-batching image-classification server for Vision Transformers.",
        epilog=f"Each setting can also be a variable of the environment or a line in the file .env: --max-wait-ms 2 is "
        f"{ENV_PREFIX}MAX_WAIT_MS=2. The command line wins over the environment, and the environment over the file.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100),
    )
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add(group, name, Settings.model_fields[name])
    return parser


def _add(group: Any, name: str, field: FieldInfo) -> None:
    option = f"--{name.replace('_', '-')}"
    text = _plain(field.description or "").replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(option, action=argparse.BooleanOptionalAction, help=f"{text} (default: {default_of(name)})")
        return
    facts = [*([allowed] if (allowed := allowed_of(name)) else []), f"default: {default_of(name)}"]
    if "default:" in text or default_of(name) == "none":
        facts.pop()
    suffix = f" ({'; '.join(facts)})" if facts else ""
    group.add_argument(option, metavar=_metavar(name, field), help=text + suffix)


def _plain(description: str) -> str:
    return description.replace("`", "")


def _metavar(name: str, field: FieldInfo) -> str:
    if choices := choices_of(name):
        return "{" + ",".join(choices) + "}"
    return _METAVARS.get(name) or _TYPES[_type_of(field.annotation)]


def _type_of(annotation: Any) -> Any:
    """Return the type of a setting, without its None."""
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return annotation


def _number(value: float) -> str:
    return f"{int(value) if value == int(value) else value:,}"


def _limits(part: Any) -> list[tuple[str, float]]:
    return [(name, getattr(part, name)) for name in ("ge", "gt", "le") if hasattr(part, name)]
