"""Writes the alerts as a PrometheusRule of the Prometheus operator: python -m scripts.prometheus_rule."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).parent.parent
_ALERTS = _ROOT / "deploy" / "prometheus" / "alerts.yml"
RULE = _ROOT / "deploy" / "kubernetes" / "overlays" / "prometheus-operator" / "prometheusrule.yaml"

_HEAD = """\
# Generated from deploy/prometheus/alerts.yml by `python -m scripts.prometheus_rule`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: vit-api
  labels:
    app.kubernetes.io/name: vit-api
    app.kubernetes.io/instance: vit-api
    app.kubernetes.io/version: 0.1.0
    app.kubernetes.io/component: server
spec:
"""


def rendered() -> str:
    """Return the PrometheusRule: the file of alerts, indented, without its comments."""
    lines = [line for line in _ALERTS.read_text().splitlines() if not line.startswith("#")]
    return _HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines)


if __name__ == "__main__":
    RULE.write_text(rendered())
