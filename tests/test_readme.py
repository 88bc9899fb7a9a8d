"""The README's commands, as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import pytest

from scripts import settings_docs
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
    """No setting is misspelt."""
    named = set(re.findall(r"VIT_API_([A-Z_]+)", _README))
    assert named - {name.upper() for name in Settings.model_fields} == set()


def test_the_table_of_settings_is_the_code() -> None:
    """After a change of the settings: `python -m scripts.settings_docs`."""
    assert settings_docs.with_table(_README) == _README


def _result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_its_claims_are_the_results() -> None:
    """Each figure of the first page is that of the last measurement."""
    claims = " ".join(_README[_README.index("# ViT API") : _README.index("## Quick start")].split())
    png, jpeg = (case["ratios"] for case in _result("compare")["results"] if case["connections"] == 128)
    rates, waits = "rate / stock LitServe", "p50 / stock LitServe"
    assert f"answers {png[rates]:.1f} times as many small PNGs" in claims
    assert f"LitServe and {jpeg[rates]:.1f} times as many JPEGs" in claims
    assert f"a p50 of {png[waits]:.2f} and {jpeg[waits]:.2f} of LitServe's" in claims
    hit = next(case for case in _result("cache_hit")["results"] if case["case"] == "raw PNG")
    assert f"answers {hit['requests_per_s']['ours']:,} repeated PNGs a second: {hit['ratio']:.2f} of" in claims
    soak = _result("soak")
    assert soak["lost"] == []
    assert f"with {soak['requests']:,} requests" in claims
    assert f"{soak['kills']['worker']} workers and {soak['kills']['http']} HTTP processes were killed" in claims
    assert all(option["passes"] for option in _result("accuracy")["results"] if option["is_judged"])
