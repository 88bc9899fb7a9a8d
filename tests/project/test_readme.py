"""The README's settings are the server's; tests/project/test_docs_examples.py runs its commands."""

from __future__ import annotations

import json
import re
from typing import Any

from scripts import settings_docs
from tests.support.server import ROOT
from vit_api.settings import Settings

_README = (ROOT / "README.md").read_text()


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
