"""The manifests for Kubernetes and the Helm chart, rendered by kubectl and helm, without a cluster."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import vit_api
from scripts import prometheus_rule
from tests.support.server import ROOT
from vit_api.settings import ENV_PREFIX, Settings

KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "vit-api"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
FOLDERS = ["base", *(f"overlays/{name}" for name in OVERLAYS)]
CUSTOM_GROUPS = ("keda.sh", "serving.kserve.io", "monitoring.coreos.com", "gateway.networking.k8s.io")
CHART_LABELS = {"app.kubernetes.io/managed-by", "helm.sh/chart"}
"""Labels that only Helm sets."""
END_S = 10
"""Time for the processes to end after the last response."""

Manifest = dict[str, Any]


def program(name: str) -> str:
    """Return the path of kubectl or helm; skip the test without it."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"needs {name}: python -m scripts.kubernetes_tools installs it")
    return found


@functools.cache
def rendered(*command: str) -> list[Manifest]:
    """Run a command once, however many tests read what it prints."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[:1000]
    return [manifest for manifest in yaml.safe_load_all(result.stdout) if manifest]


def kustomized(folder: str) -> list[Manifest]:
    return rendered(program("kubectl"), "kustomize", str(KUBERNETES / folder))


def chart(*options: str, release: str = "vit-api") -> list[Manifest]:
    return rendered(program("helm"), "template", release, str(CHART), *options)


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = of_kind(manifests, kind)
    return found


def containers(manifest: Manifest) -> list[Manifest]:
    spec = manifest["spec"]
    found: list[Manifest] = spec["template"]["spec"]["containers"] if "template" in spec else spec["containers"]
    return found


def is_custom(manifest: Manifest) -> bool:
    return manifest["apiVersion"].partition("/")[0] in CUSTOM_GROUPS


def without_chart_labels(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_chart_labels(item) for name, item in value.items() if name not in CHART_LABELS}
    return [without_chart_labels(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("folder", FOLDERS)
def test_built_in_kinds_are_valid(folder: str) -> None:
    """Kubernetes' own schemas accept each manifest and know each field."""
    manifests = [manifest for manifest in kustomized(folder) if not is_custom(manifest)]
    assert manifests or folder == "overlays/kserve"
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="defaults"),
        pytest.param(("--set", "autoscaling.kind=hpa"), id="hpa"),
        pytest.param(("--set", "gpus=2,cache.existingClaim=models,service.type=LoadBalancer"), id="gpu"),
        pytest.param(("--set", f"image.digest=sha256:{'0' * 64}"), id="digest"),
    ],
)
def test_the_chart_is_valid(options: tuple[str, ...]) -> None:
    """Kubernetes' own schemas accept each manifest and know each field."""
    for manifest in chart(*options, release="moderation"):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def custom_manifests() -> list[Manifest]:
    found = [manifest for folder in FOLDERS for manifest in kustomized(folder)]
    found += chart("--set", "autoscaling.kind=keda,podMonitor.enabled=true")
    return [manifest for manifest in found if is_custom(manifest)]


def test_custom_kinds_are_valid() -> None:
    """The schemas of KEDA, KServe, the Prometheus operator and Gateway API accept each manifest.

    They are files such as `keda.sh_v1alpha1_scaledobject.json`, in the folder that CRD_SCHEMAS names, or in
    `shared/crds` beside the checkout.
    """
    folder = Path(os.environ.get("CRD_SCHEMAS", ROOT.parent / "shared" / "crds"))
    if not folder.is_dir():
        pytest.skip("needs the schemas of the custom kinds, in the folder that CRD_SCHEMAS names")
    manifests = custom_manifests()
    kinds = {"ScaledObject", "HTTPRoute", "InferenceService", "ServingRuntime", "PodMonitor", "PrometheusRule"}
    assert {manifest["kind"] for manifest in manifests} == kinds
    for manifest in manifests:
        name = f"{manifest['apiVersion'].replace('/', '_')}_{manifest['kind']}.json".lower()
        # Not jsonschema.validate: it would check the schemas, too, and their patterns are of Go.
        validator = jsonschema.Draft202012Validator(json.loads((folder / name).read_text()))
        assert [error.message for error in validator.iter_errors(manifest)] == []


def test_the_chart_renders_the_base() -> None:
    """By default, both install the same objects."""

    def by_kind(manifests: list[Manifest]) -> dict[str, Manifest]:
        return {manifest["kind"]: without_chart_labels(manifest) for manifest in manifests}

    ours, base = by_kind(chart()), by_kind(kustomized("base"))
    for manifest in (ours, base):
        manifest["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"].sort(key=lambda entry: entry["name"])
    assert ours == base


@pytest.mark.parametrize(("kind", "overlay"), [("hpa", "hpa"), ("keda", "keda")])
def test_the_chart_scales_as_the_overlays_do(kind: str, overlay: str) -> None:
    """The target, the bounds and the behaviour are the same, and no number of replicas is set."""
    name = {"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}[kind]
    ours, theirs = chart("--set", f"autoscaling.kind={kind}"), kustomized(f"overlays/{overlay}")
    spec, expected = one(ours, name)["spec"], one(theirs, name)["spec"]
    for trigger in spec.get("triggers", ()):
        trigger["metadata"]["query"] = trigger["metadata"]["query"].replace('namespace="default",', "")
    assert spec == expected
    for manifests in (ours, theirs):
        assert "replicas" not in one(manifests, "Deployment")["spec"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_are_restricted(folder: str) -> None:
    """They meet the Pod Security Standard `restricted`, with a read-only root."""
    for manifest in kustomized(folder):
        if manifest["kind"] not in ("Deployment", "ServingRuntime"):
            continue
        pod = manifest["spec"].get("template", {}).get("spec", {}).get("securityContext", {})
        for container in containers(manifest):
            own = pod | container["securityContext"]
            assert own["runAsNonRoot"]
            assert own["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not own["allowPrivilegeEscalation"]
            assert own["readOnlyRootFilesystem"]
            assert own["capabilities"] == {"drop": ["ALL"]}


def server_containers() -> list[tuple[str, Manifest, Manifest]]:
    """Return (folder, manifest, container) for each container of the server."""
    found = []
    for folder in FOLDERS:
        for manifest in kustomized(folder):
            if manifest["kind"] in ("Deployment", "ServingRuntime"):
                found += [(folder, manifest, c) for c in containers(manifest) if c["image"].startswith("vit-api:")]
    assert len(found) == len(FOLDERS) + 1  # the canary
    return found


def settings_of(container: Manifest) -> Settings:
    values = {entry["name"].removeprefix(ENV_PREFIX).lower(): entry["value"] for entry in container["env"]}
    assert values.keys() <= Settings.model_fields.keys()
    return Settings(_env_file=None, api_servers=int(container["resources"]["limits"]["cpu"]), **values)  # type: ignore[call-arg]


def test_settings_are_valid_and_fit_the_memory() -> None:
    """Uploads and decoding of all HTTP processes, and 512 MiB for the model, stay below the memory limit."""
    for folder, _, container in server_containers():
        settings = settings_of(container)
        limit = container["resources"]["limits"]["memory"]
        memory_mb = int(limit.removesuffix("Gi")) * 1024
        assert settings.api_servers * (settings.max_pending_mb + settings.max_decode_mb) + 512 < memory_mb, folder


def test_a_pod_has_time_to_drain() -> None:
    """Kubernetes kills it only after the drain delay, the drain timeout, and some seconds for the end."""
    for folder, manifest, container in server_containers():
        if manifest["kind"] == "Deployment":
            settings = settings_of(container)
            grace = manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert grace > settings.drain_delay_s + settings.drain_timeout_s + END_S, folder


def test_a_pod_of_kserve_has_time_to_drain() -> None:
    """Its ServingRuntime has no such field, so the InferenceService says so."""
    manifests = kustomized("overlays/kserve")
    (container,) = containers(one(manifests, "ServingRuntime"))
    settings = settings_of(container)
    grace = one(manifests, "InferenceService")["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert grace > settings.drain_delay_s + settings.drain_timeout_s + END_S


@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_have_the_recommended_labels(folder: str) -> None:
    """The objects and the pods, with the version of the package."""
    version = vit_api.__version__
    for manifest in kustomized(folder):
        found = [manifest["metadata"]["labels"]]
        if manifest["kind"] == "Deployment":
            found.append(manifest["spec"]["template"]["metadata"]["labels"])
        for labels in found:
            names = {name.removeprefix("app.kubernetes.io/") for name in labels}
            assert names >= {"name", "instance", "version", "component"}, manifest["kind"]
            if labels["app.kubernetes.io/component"] == "server":
                assert labels["app.kubernetes.io/version"] == version


def test_a_pod_leaves_the_service_before_it_closes_its_port() -> None:
    """The drain delay is longer than readiness needs to turn off."""
    for folder, _, container in server_containers():
        probe = container["readinessProbe"]
        assert settings_of(container).drain_delay_s > probe["periodSeconds"], folder


def test_probes_ask_what_the_server_serves() -> None:
    """Readiness for traffic, liveness for the start and for a restart: a long download is no reason for one."""
    for _, _, container in server_containers():
        paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
        assert paths == {"startup": "/health/live", "readiness": "/health/ready", "liveness": "/health/live"}
        assert container["ports"][0]["containerPort"] == Settings.model_fields["port"].default


def test_objects_refer_to_each_other() -> None:
    """Selectors, names and ports match, in each overlay."""
    for folder in FOLDERS:
        manifests = kustomized(folder)
        labels = [m["spec"]["template"]["metadata"]["labels"].items() for m in of_kind(manifests, "Deployment")]
        for service in of_kind(manifests, "Service"):
            assert sum(service["spec"]["selector"].items() <= each for each in labels) == 1, folder
        services = {service["metadata"]["name"] for service in of_kind(manifests, "Service")}
        for route in of_kind(manifests, "HTTPRoute"):
            assert {ref["name"] for rule in route["spec"]["rules"] for ref in rule["backendRefs"]} == services
        for scaler in of_kind(manifests, "ScaledObject") + of_kind(manifests, "HorizontalPodAutoscaler"):
            assert scaler["spec"]["scaleTargetRef"]["name"] == one(manifests, "Deployment")["metadata"]["name"]


def test_the_canary_gets_its_share() -> None:
    """One Service selects each Deployment, and the weights add up to 100."""
    manifests = kustomized("overlays/gateway")
    (rule,) = one(manifests, "HTTPRoute")["spec"]["rules"]
    assert {ref["name"]: ref["weight"] for ref in rule["backendRefs"]} == {"vit-api": 90, "vit-api-canary": 10}


def test_the_prometheus_rule_is_that_of_the_alerts() -> None:
    """It is generated from the file that `promtool test rules` tests."""
    assert prometheus_rule.RULE.read_text() == prometheus_rule.rendered()


def test_queries_name_metrics_that_exist() -> None:
    """Autoscalers and the rule of prometheus-adapter."""
    text = "".join(path.read_text() for path in (KUBERNETES / "overlays").rglob("*.yaml"))
    documented = (ROOT / "docs" / "metrics.md").read_text()
    found = re.findall(r"(?<!:)\binference_\w+", text)  # names with colons are those of recording rules
    metrics = {re.sub("_(bucket|count|sum)$", "", name) for name in found}
    assert metrics >= {"inference_slots", "inference_rejected_total"}
    assert {name for name in metrics if f"`{name}`" not in documented} == set()


def test_helm_lint_agrees() -> None:
    result = subprocess.run(
        [program("helm"), "lint", "--strict", str(CHART)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "option",
    [
        pytest.param("replica=3", id="misspelt"),
        pytest.param("settings.VIT_API_MAX_WAIT_MS=5", id="a number where a string is needed"),
        pytest.param("autoscaling.kind=magic", id="no such autoscaler"),
        pytest.param("image.digest=sha256:abc", id="half a digest"),
    ],
)
def test_wrong_values_are_refused(option: str) -> None:
    """The chart's schema names the value."""
    command = [program("helm"), "template", "vit-api", str(CHART), "--set", option]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert re.search(r"schema", result.stderr)


def test_the_ten_commands_install_what_scales() -> None:
    """The chart takes the options of the page, and renders an autoscaler, its metrics, and a GPU for each pod."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    block = page.partition("## From an empty cluster")[2].partition("```sh\n")[2].partition("```")[0]
    commands = block.splitlines()
    assert len(commands) == 10
    (install,) = (shlex.split(command) for command in commands if "deploy/helm/vit-api" in command)
    objects = chart(*install[install.index("deploy/helm/vit-api") + 1 :])
    assert {"ScaledObject", "PodMonitor"} <= {each["kind"] for each in objects}
    (server,) = containers(one(objects, "Deployment"))
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "VIT_API_METRICS_PUBLIC", "value": "1"} in server["env"]
