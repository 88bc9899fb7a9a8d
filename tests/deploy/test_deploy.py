"""Dashboard, alerts and metrics documentation agree with the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import metrics_docs
from tests.support.server import ROOT
from vit_api import metrics
from vit_api.metrics import Kind

_PROMETHEUS = ROOT / "deploy" / "prometheus"
_DASHBOARD = ROOT / "deploy" / "grafana" / "vit-api.json"
_SAMPLES = {
    metric.name + end
    for metric in metrics.ALL
    for end in (("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",))
}
_NAME = re.compile(r"\b(?:inference|cache|process|gpu|decision)_\w+")
_LABELS = {metric.name: {*metric.labels, *metrics.OF_MODEL, "instance", "job", "le"} for metric in metrics.ALL}
_RULE_TESTS = ("alerts_test.yml", "drift_test.yml", "versions_test.yml")


def _selectors(text: str) -> list[tuple[str, set[str]]]:
    """Return each metric that is named, with the labels that select it."""
    pattern = r"(?<!:)\b((?:inference|cache|process|gpu|decision)_\w+)(?:\{([^}]*)\})?"
    return [(name, set(re.findall(r"(\w+)\s*=", labels))) for name, labels in re.findall(pattern, text)]


def _expressions() -> list[str]:
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_dashboard_uses_metrics_that_exist() -> None:
    """It selects them by labels that they have, and shows each stage."""
    named = [selector for expression in _expressions() for selector in _selectors(expression)]
    assert {name for name, _ in named} <= _SAMPLES
    for name, labels in named:
        assert labels <= _LABELS[re.sub("_(bucket|sum|count)$", "", name)], name
    shown = " ".join(_expressions())
    assert all(metric.name in shown for metric in metrics.COUNTED if metric.kind is Kind.HISTOGRAM)


def test_the_dashboards_variables_exist() -> None:
    """A panel with an unknown variable would stay empty."""
    dashboard = json.loads(_DASHBOARD.read_text())
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"])))
    assert used <= variables
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.parametrize("name", ["alerts.yml", *_RULE_TESTS])
def test_the_alerts_use_metrics_that_exist(name: str) -> None:
    """Promtool does not notice rules about metrics that do not exist."""
    named = _selectors((_PROMETHEUS / name).read_text())
    assert {metric for metric, _ in named} <= _SAMPLES
    for metric, labels in named:
        assert labels <= _LABELS[re.sub("_(bucket|sum|count)$", "", metric)], metric


def test_every_alert_is_tested_both_ways() -> None:
    """It fires when it should, and not for a healthy server."""
    alerts = re.findall(r"- alert: (\w+)", (_PROMETHEUS / "alerts.yml").read_text())
    tests = "".join((_PROMETHEUS / name).read_text() for name in _RULE_TESTS)
    for alert in alerts:
        assert f"name: {alert} fires" in tests
        assert re.search(rf"eval_time: 40m, alertname: {alert}\}}", tests)


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's package prometheus")
def test_promtool_agrees() -> None:
    """The rules are valid and pass their own tests."""
    command = ["promtool", "test", "rules", *_RULE_TESTS]
    result = subprocess.run(command, cwd=_PROMETHEUS, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    config = ["promtool", "check", "config", "prometheus.yml"]
    result = subprocess.run(config, cwd=_PROMETHEUS, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_metrics_documentation_is_generated_from_the_code() -> None:
    """After a change of the metrics, run `python -m scripts.metrics_docs`."""
    assert metrics_docs.PAGE.read_text() == metrics_docs.page()
    assert Path(metrics_docs.PAGE).is_relative_to(ROOT)
