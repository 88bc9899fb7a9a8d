"""The README's claims are the results and its settings the code's; test_docs_examples.py runs its commands."""

from __future__ import annotations

import json
import re
from typing import Any

from scripts import settings_docs
from tests.support.server import ROOT
from vit_api.settings import Settings

_README = (ROOT / "README.md").read_text()
_CLAIMS = " ".join(_README[_README.index("# ViT API") : _README.index("## Quick start")].split())
_BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()


def _result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_it_is_short() -> None:
    """Details belong in docs/."""
    assert len(_README.splitlines()) <= 200


def test_the_settings_that_it_names_exist() -> None:
    """No setting is misspelt."""
    named = set(re.findall(r"VIT_API_([A-Z_]+)", _README))
    assert named - {name.upper() for name in Settings.model_fields} == set()


def test_the_tables_of_settings_are_the_code() -> None:
    """After a change of the settings: `python -m scripts.settings_docs`."""
    assert {path: path.read_text() for path in settings_docs.updated()} == settings_docs.updated()


def test_the_table_of_settings_has_ten() -> None:
    """Those that people change; all of them are in docs/settings.md."""
    table = _README[_README.index("<!-- settings -->") : _README.index("<!-- end -->")]
    assert len(re.findall(r"^\| `VIT_API_", table, re.MULTILINE)) == 10
    page = settings_docs.PAGE.read_text()
    assert len(re.findall(r"^\| `VIT_API_", page, re.MULTILINE)) == len(Settings.model_fields)


def test_throughput_and_latency_are_the_tables() -> None:
    """The ratios have a column in the table that the claim links to; the latencies are a division of its cells."""
    rows = [row.split(" | ") for row in _BENCHMARKS.splitlines() if " | 128 | " in row and "/s, " in row]
    ratios, cuts = [], []
    for case, cells in zip(_result("compare")["results"][2::3], rows, strict=True):
        assert case["connections"] == 128
        p50_ms = [case["servers"][server]["p50_ms"] for server in ("this server", "stock LitServe")]
        assert [f", {p50:.1f} ms" in cell for p50, cell in zip(p50_ms, cells[2:4], strict=True)] == [True, True]
        ratio = f"{case['ratios']['rate / stock LitServe']:.2f}"
        assert ratio == cells[7]
        ratios.append(f"{float(ratio):.1f} times as many")
        cuts.append(f"{1 - round(p50_ms[0], 1) / round(p50_ms[1], 1):.0%}")
    assert f"serves {ratios[0]} small PNGs per second as stock LitServe and {ratios[1]} JPEGs" in _CLAIMS
    assert f"with {cuts[0]} and {cuts[1]} lower median latency" in _CLAIMS


def test_the_cache_claim_is_the_table() -> None:
    """Hits per second, and the share of the bare application's."""
    hit = next(case for case in _result("cache_hit")["results"] if case["case"] == "raw PNG")
    ours, bare = hit["requests_per_s"]["ours"], hit["requests_per_s"]["reference"]
    assert f"serves {ours:,} cached PNGs per second: {ours / bare:.0%} of the throughput of a bare ASGI app" in _CLAIMS
    assert f"{hit['ratio']:.0%}" == f"{ours / bare:.0%}"
    assert f"| {ours:,} | {bare:,} |" in _BENCHMARKS


def test_the_claim_of_the_soak_says_what_was_sent_again() -> None:
    """None was lost because clients sent again what a killed HTTP process had interrupted."""
    soak = _result("soak")
    interrupted = sum(count for outcome, count in soak["outcomes"].items() if outcome.endswith(": interrupted"))
    assert soak["lost"] == []
    assert f"sent {soak['requests']:,} requests" in _CLAIMS
    assert f"{soak['kills']['worker']} workers and {soak['kills']['http']} HTTP processes were killed" in _CLAIMS
    assert f"{interrupted} requests lost their connection with a killed HTTP process" in _CLAIMS
    page = " ".join((ROOT / "docs" / "reliability.md").read_text().split())
    assert f"that happened to {interrupted} of {soak['requests']:,} requests" in page


def test_the_accuracy_gate_is_passed() -> None:
    """By each precision and decode mode that has to pass it."""
    assert all(option["passes"] for option in _result("accuracy")["results"] if option["is_judged"])
