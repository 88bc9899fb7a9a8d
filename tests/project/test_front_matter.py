"""The front matter of the README, which configures a Hugging Face Space."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import SpaceHardware, metadata_load

from tests.support.server import ROOT
from vit_api.settings import Settings

COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# https://huggingface.co/docs/hub/spaces-config-reference
KNOWN_FIELDS = {
    *("title", "emoji", "colorFrom", "colorTo", "short_description", "license", "tags", "models", "datasets", "pinned"),
    *("sdk", "app_port", "suggested_hardware", "startup_duration_timeout", "preload_from_hub", "custom_headers"),
    *("header", "fullWidth", "base_path", "disable_embedding"),
}


def _front_matter() -> dict[str, Any]:
    metadata = metadata_load(ROOT / "README.md")
    assert metadata is not None
    return metadata


def test_the_front_matter_configures_a_docker_space() -> None:
    """The hub's reference allows all names and values."""
    matter = _front_matter()
    assert set(matter) <= KNOWN_FIELDS
    assert matter["sdk"] == "docker"
    assert matter["app_port"] == Settings.model_fields["port"].default
    assert matter["suggested_hardware"] in {hardware.value for hardware in SpaceHardware}
    assert {matter["colorFrom"], matter["colorTo"]} <= COLOURS
    assert re.fullmatch(r"[^\w\s]{1,2}", matter["emoji"])
    assert re.fullmatch(r"\d+[mh]", matter["startup_duration_timeout"])
    # The hub's maximum.
    assert len(matter["short_description"]) <= 60
    assert all(isinstance(tag, str) for tag in matter["tags"])


def test_only_the_default_model_is_preloaded() -> None:
    """Exactly the files that the server downloads are preloaded, of a pinned commit."""
    matter = _front_matter()
    (entry,) = matter["preload_from_hub"]
    name, files, commit = entry.split()
    assert matter["models"] == [name] == [Settings.model_fields["model"].default]
    assert files.split(",") == ["config.json", "preprocessor_config.json", "model.safetensors"]
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
