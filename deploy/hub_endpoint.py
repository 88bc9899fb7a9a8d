"""An Inference Endpoint of Hugging Face: its configuration, and what it is doing. Must not decide when to deploy.

By `huggingface_hub` 2.4, whose `update_inference_endpoint` leaves unset what is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from huggingface_hub import HfApi, InferenceEndpoint

from deploy.hub import HubError, Login, explaining

PORT = 7860
HEALTH_ROUTE = "/health/ready"

_BUSY = {"pending", "initializing", "updating"}
_FAILED = {"failed", "updateFailed", "paused"}
_HEALTHY = {"running", "scaledToZero"}
_NOT_FOUND = 404


@dataclass(frozen=True)
class Scaling:
    """How many replicas there are; None for what is left as it is.

    Attributes:
        min_replicas: At least so many; 0 to scale to zero.
        max_replicas: At most so many.
        pending_requests: Requests without a response for each replica, above which one is added.
        idle_min: Minutes without a request after which it scales to zero.
    """

    min_replicas: int | None = None
    max_replicas: int | None = None
    pending_requests: float | None = None
    idle_min: int | None = None


@dataclass(frozen=True)
class Hardware:
    """What a replica runs on; None for what is left as it is. `hf endpoints hardware` lists the combinations.

    Attributes:
        accelerator: `cpu` or `gpu`.
        instance_type: `nvidia-t4`.
        instance_size: `x1`.
    """

    accelerator: str | None = None
    instance_type: str | None = None
    instance_size: str | None = None


@dataclass(frozen=True)
class Configuration:
    """What an Endpoint runs; its text names the image and the model.

    Attributes:
        image: The hub's description of the image: `{"custom": {"url": ...}}`.
        repository: The model's repository.
        revision: Its revision; None for the newest.
        env: The environment variables.
        scaling: How many replicas.
        hardware: What they run on.
    """

    image: Mapping[str, Any]
    repository: str
    revision: str | None
    env: Mapping[str, str] = field(default_factory=dict)
    scaling: Scaling = field(default_factory=Scaling)
    hardware: Hardware = field(default_factory=Hardware)

    def __str__(self) -> str:
        revision = f" at {self.revision[:12]}" if self.revision else ""
        return f"{_short(self.image_url)} with {self.repository}{revision}"

    @property
    def image_url(self) -> str:
        """The image's reference; of Hugging Face's own images, their name."""
        ((variant, options),) = self.image.items()
        return str(options.get("url", variant))

    @property
    def has_credentials(self) -> bool:
        """Whether the image's registry requires a password, which the hub does not return."""
        return any("credentials" in options for options in self.image.values())

    def is_same_version(self, other: Configuration) -> bool:
        """Return whether the image, the model and the environment are the same; scaling and hardware may differ."""
        return (self.image_url, self.repository, self.env) == (other.image_url, other.repository, other.env)

    def with_credentials(self, credentials: Mapping[str, str]) -> Configuration:
        """Return this configuration with the credentials of the image's registry."""
        image = {variant: {**options, "credentials": dict(credentials)} for variant, options in self.image.items()}
        return replace(self, image=image)


def _short(url: str) -> str:
    name, at, digest = url.partition("@sha256:")
    return f"{name}{at}{digest[:12]}"


@dataclass(frozen=True)
class EndpointRuntime:
    """What an Endpoint is doing.

    Attributes:
        state: The name that the hub uses: pending, initializing, updating, updateFailed, running, paused, failed or
            scaledToZero.
        message: The hub's explanation.
        url: Its address; None before its first start.
        type: `public`, `authenticated` or `private`.
        configuration: What it runs, or is to run.
        is_unchanged: Whether this command has changed nothing, so that the report is of what runs.
    """

    state: str
    message: str
    url: str | None
    type: str
    configuration: Configuration
    is_unchanged: bool

    def __str__(self) -> str:
        return f"{self.state} ({self.message.removesuffix('.')})" if self.message else self.state

    @property
    def is_busy(self) -> bool:
        """Whether a start or an update is in progress."""
        return self.state in _BUSY

    @property
    def is_healthy(self) -> bool:
        """Whether the configuration works, or worked until the Endpoint was scaled to zero."""
        return self.state in _HEALTHY

    @property
    def has_failed(self) -> bool:
        """Whether it will not run without another change."""
        return self.state in _FAILED

    def names(self, version: Configuration) -> bool:
        """Return whether nothing was changed; otherwise the hub reports what is wanted while the previous one runs."""
        return self.is_unchanged

    def runs(self, version: Configuration, is_new: bool) -> bool:
        """Return whether a configuration runs, or did until the Endpoint was scaled to zero again."""
        return is_new and self.is_healthy


class HubEndpoint:
    """An Inference Endpoint.

    Args:
        name: `namespace/name`.
        login: Who calls the hub, with access to the namespace's Endpoints.
    """

    kind = "Endpoint"

    def __init__(self, name: str, login: Login) -> None:
        self.name = name
        self._namespace, _, self._name = name.partition("/")
        self._api = HfApi(token=login.token)
        self._is_unchanged = True

    def runtime(self) -> EndpointRuntime:
        """Return what the Endpoint is doing.

        Raises:
            HubError: There is no such Endpoint, or the hub did not respond.
        """
        with explaining(self.kind):
            endpoint = self._api.get_inference_endpoint(self._name, namespace=self._namespace)
        return _runtime(endpoint, self._is_unchanged)

    def find(self) -> EndpointRuntime | None:
        """Return what the Endpoint is doing, or None if there is no such Endpoint.

        Raises:
            HubError: The hub rejected the call or did not respond.
        """
        try:
            return self.runtime()
        except HubError as error:
            if getattr(getattr(error.__cause__, "response", None), "status_code", None) == _NOT_FOUND:
                return None
            raise

    def create(
        self, wanted: Configuration, *, vendor: str, region: str, type: str, secrets: Mapping[str, str]
    ) -> EndpointRuntime:
        """Create the Endpoint; each field of its scaling and hardware must be set.

        Args:
            wanted: What it is to run.
            vendor: The cloud, such as `aws`.
            region: The cloud's region.
            type: `public` or `authenticated`.
            secrets: Secret environment variables.

        Raises:
            HubError: The hub rejected the call, for example because the name is taken or a quota is reached.
            UncertainChangeError: The hub did not respond.
        """
        self._is_unchanged = False
        with explaining(self.kind, changes=True):
            endpoint = self._api.create_inference_endpoint(
                self._name,
                namespace=self._namespace,
                framework="custom",
                task="image-classification",
                vendor=vendor,
                region=region,
                type=type,
                secrets=dict(secrets),
                **_arguments(wanted),
            )
        return _runtime(endpoint, is_unchanged=False)

    def update(self, wanted: Configuration, secrets: Mapping[str, str]) -> EndpointRuntime:
        """Change what the Endpoint runs; return what the hub made of it.

        Args:
            wanted: What it is to run.
            secrets: Secret environment variables that replace the previous ones; empty to keep those.

        Raises:
            HubError: The hub rejected the call.
            UncertainChangeError: The hub did not respond.
        """
        self._is_unchanged = False
        with explaining(self.kind, changes=True):
            endpoint = self._api.update_inference_endpoint(
                self._name, namespace=self._namespace, secrets=dict(secrets) or None, **_arguments(wanted)
            )
        return _runtime(endpoint, is_unchanged=False)

    def scale_to_zero(self) -> None:
        """Stop all replicas until the next request.

        Raises:
            HubError: The hub rejected the call or did not respond.
        """
        with explaining(self.kind):
            self._api.scale_to_zero_inference_endpoint(self._name, namespace=self._namespace)

    def log_page(self, runtime: EndpointRuntime) -> str:
        """Return the address of the replicas' log."""
        return f"https://endpoints.huggingface.co/{self._namespace}/endpoints/{self._name}/logs"


def _runtime(endpoint: InferenceEndpoint, is_unchanged: bool) -> EndpointRuntime:
    raw = endpoint.raw
    model, compute = raw["model"], raw["compute"]
    scaling = compute.get("scaling") or {}
    measure = scaling.get("measure") or {}
    configuration = Configuration(
        image=model["image"],
        repository=model["repository"],
        revision=model.get("revision"),
        env=model.get("env") or {},
        scaling=Scaling(
            scaling.get("minReplica"),
            scaling.get("maxReplica"),
            measure.get("pendingRequests"),
            scaling.get("scaleToZeroTimeout"),
        ),
        hardware=Hardware(compute.get("accelerator"), compute.get("instanceType"), compute.get("instanceSize")),
    )
    status = raw["status"]
    message = status.get("errorMessage") or status.get("message") or ""
    return EndpointRuntime(status["state"], message, status.get("url"), raw["type"], configuration, is_unchanged)


def _arguments(wanted: Configuration) -> dict[str, Any]:
    """Return what the library's functions take; they don't touch what is None."""
    scaling = wanted.scaling
    by_requests = scaling.pending_requests is not None
    return {
        "repository": wanted.repository,
        "revision": wanted.revision,
        "custom_image": dict(wanted.image),
        "env": dict(wanted.env),
        "min_replica": scaling.min_replicas,
        "max_replica": scaling.max_replicas,
        "scaling_metric": "pendingRequests" if by_requests else None,
        "scaling_threshold": scaling.pending_requests,
        "scale_to_zero_timeout": scaling.idle_min,
        **asdict(wanted.hardware),
    }
