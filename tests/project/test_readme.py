"""The README agrees with the results and the code; test_docs_examples.py runs its commands."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from scripts import settings_docs
from tests.support.server import ROOT
from vit_api.settings import Settings

_README = (ROOT / "README.md").read_text()
_CLAIMS = " ".join(_README[_README.index("# ViT API") : _README.index("## Quick start")].split())


def _result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_the_readme_is_short() -> None:
    """Details belong in docs/."""
    assert len(_README.splitlines()) <= 200


def test_settings_in_the_readme_exist() -> None:
    """No name of a setting is misspelt."""
    named = set(re.findall(r"VIT_API_([A-Z_]+)", _README))
    assert named - {name.upper() for name in Settings.model_fields} == set()


def test_the_tables_of_settings_are_up_to_date() -> None:
    """After a change of the settings, run `python -m scripts.settings_docs`."""
    assert {path: path.read_text() for path in settings_docs.updated()} == settings_docs.updated()


def test_the_readme_has_ten_settings() -> None:
    """It lists the most common ones; docs/settings.md lists all."""
    table = _README.partition("<!-- settings -->")[2].partition("<!-- end -->")[0]
    assert len(re.findall(r"^\| `VIT_API_", table, re.MULTILINE)) == 10
    page = settings_docs.PAGE.read_text()
    assert len(re.findall(r"^\| `VIT_API_", page, re.MULTILINE)) == len(Settings.model_fields)


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(r"serves \S+ cached PNGs per second: \S+ of the throughput of a bare ASGI app", id="cache"),
        pytest.param(r"sent \S+ requests", id="soak"),
        pytest.param(r"\S+ workers and \S+ HTTP processes were killed", id="kills"),
        pytest.param(r"\S+ requests lost their connection with a killed HTTP process", id="interrupted"),
    ],
)
def test_figures_of_claims_are_quoted_from_results(claim: str) -> None:
    """Each figure is a quote of a result, which tests/benchmarks/test_results.py checks."""
    (sentence,) = re.findall(claim.replace(r"\S+", "<!-- [a-z_.0-9]+ -->[^<]+<!-- end -->"), _CLAIMS)
    assert sentence


def test_the_soak_lost_no_request() -> None:
    """Requests interrupted by a killed HTTP process were sent again, and each succeeded."""
    assert _result("soak")["lost"] == []


def test_the_accuracy_gate_is_passed() -> None:
    """Each precision and decode mode that is judged passes."""
    assert all(option["passes"] for option in _result("accuracy")["results"] if option["is_judged"])
