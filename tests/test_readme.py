"""The README's commands, as written."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from tests.server import ROOT, RunningServer, serve
from vit_api.settings import Settings

_README = (ROOT / "README.md").read_text()
_ALL_CURLS = re.findall(r"^curl .+$", _README, re.MULTILINE)
_CURLS = [command for command in _ALL_CURLS if "/predict" in command]


def test_there_are_commands() -> None:
    """The pattern still finds them."""
    assert len(_CURLS) >= 5


@pytest.mark.parametrize("command", _CURLS)
def test_curl(digits_server: RunningServer, command: str) -> None:
    """Each curl classifies the repository's images."""
    here = command.replace("http://127.0.0.1:7860", digits_server.url)
    here = here.replace("curl --json", 'curl -H "content-type: application/json" -d')  # curl before 7.82
    result = subprocess.run(["bash", "-c", here], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    body = json.loads(result.stdout)
    answers = body if isinstance(body, list) else [body]
    labels = [answer["predictions"][0]["label"] for answer in answers]
    assert labels == (["3", "7"] if "batch" in command else ["7"])


def test_curl_clears_the_cache() -> None:
    """With the key in the environment, as an operator has it."""
    (command,) = set(_ALL_CURLS) - set(_CURLS)
    with serve(operator_key="of-this-test") as server:
        here = command.replace("http://127.0.0.1:7860", server.url)
        result = subprocess.run(
            ["bash", "-c", here],
            env=os.environ | {"VIT_API_OPERATOR_KEY": "of-this-test"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert json.loads(result.stdout) == {"entries": 0, "redis_entries": None}


def test_the_settings_that_it_names_exist() -> None:
    """No setting is misspelt, and the defaults in the table are the real ones."""
    named = set(re.findall(r"VIT_API_([A-Z_]+)", _README))
    assert named - {name.upper() for name in Settings.model_fields} == set()
    rows = re.findall(r"^\| `VIT_API_(\w+)` \| `?([^|`]+?)`? \|", _README, re.MULTILINE)
    real = {
        name.upper(): "none" if field.default is None else str(field.default).removesuffix(".0")
        for name, field in Settings.model_fields.items()
    }
    assert [(name, real[name]) for name, default in rows if default != "one a core"] == [
        row for row in rows if row[1] != "one a core"
    ]
