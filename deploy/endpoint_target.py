"""An Inference Endpoint as the target of a deployment, and what was asked for. Must not know the command's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from deploy.hub import HubError, Login
from deploy.hub_endpoint import HEALTH_ROUTE, PORT, Configuration, EndpointRuntime, Hardware, HubEndpoint, Scaling
from deploy.watch import NotRunning, Patience, Watch

NEW_SCALING = Scaling(min_replicas=0, max_replicas=2, pending_requests=32.0, idle_min=15)
"""Of a new Endpoint, unless options say otherwise. 32 pending requests are one full batch, as for the autoscalers on
Kubernetes; the hub's default of 1.5 would add replicas before one is used."""
NEW_HARDWARE = Hardware("gpu", "nvidia-t4", "x1")


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None for what stays as it is, or is the default of a new Endpoint.

    Attributes:
        image_url: The container image, with its digest.
        repository: The model's repository.
        revision: Its revision.
        env: Environment variables that are added or replaced.
        secrets: Secret environment variables, which replace all previous ones if there are any.
        scaling: How many replicas.
        hardware: What they run on.
        vendor: The cloud of a new Endpoint.
        region: Its region.
        type: `public` or `authenticated`.
        credentials: Of the image's registry: `username` and `password`.
    """

    image_url: str
    repository: str | None = None
    revision: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    scaling: Scaling = field(default_factory=Scaling)
    hardware: Hardware = field(default_factory=Hardware)
    vendor: str = "aws"
    region: str = "us-east-1"
    type: str = "authenticated"
    credentials: Mapping[str, str] = field(default_factory=dict)

    def configuration(self, before: Configuration | None) -> Configuration:
        """Return the whole configuration, given what the Endpoint runs now.

        Raises:
            HubError: A new Endpoint needs a model.
        """
        repository = self.repository or (before.repository if before else None)
        if repository is None:
            raise HubError("There is no such Endpoint yet, and a new one needs --model.", is_transient=False)
        is_same_model = before is not None and before.repository == repository
        wanted = Configuration(
            image={"custom": {"url": self.image_url, "port": PORT, "healthRoute": HEALTH_ROUTE}},
            repository=repository,
            revision=self.revision or (before.revision if before and is_same_model else None),
            env={**(before.env if before else {}), **self.env},
            scaling=_merged(before.scaling if before else NEW_SCALING, self.scaling),
            hardware=_merged(before.hardware if before else NEW_HARDWARE, self.hardware),
        )
        return wanted.with_credentials(self.credentials) if self.credentials else wanted

    def is_met_by(self, now: Configuration) -> bool:
        """Return whether an Endpoint already runs this."""
        wanted = self.configuration(now)
        return (
            not self.secrets
            and replace(wanted, image={}) == replace(now, image={})
            and (_options(wanted).items() <= _options(now).items())
        )


def _options(configuration: Configuration) -> dict[str, Any]:
    """Return the image's reference, port and health route; the hub adds others, and hides credentials."""
    options = configuration.image.get("custom", {})
    return {name: options.get(name) for name in ("url", "port", "healthRoute")}


def _merged(defaults: Any, given: Any) -> Any:
    return replace(defaults, **{name: value for name, value in asdict(given).items() if value is not None})


@dataclass
class EndpointTarget:
    """An Endpoint, and what it is to run.

    Attributes:
        endpoint: The Endpoint.
        wanted: What it is to run.
        login: Who calls the hub.
        patience: How long to wait until an update by another client has ended.
        log: Called with a line for each step.
        kind: The word for it, in messages.
    """

    endpoint: HubEndpoint
    wanted: Wanted
    login: Login
    patience: Patience
    log: Callable[[str], None]
    kind: str = "Endpoint"

    def deploy(self) -> tuple[Configuration, Configuration | None]:
        """Create or update the Endpoint; return its configuration, and the one that worked before, or None.

        Raises:
            HubError: Nothing was changed.
            UncertainChangeError: The hub did not respond to the change.
        """
        if self.endpoint.find() is None:
            return self._create(), None
        try:
            before: EndpointRuntime = Watch(self.endpoint, self.patience, self.log).until_settled()
        except NotRunning as error:
            raise HubError(str(error), is_transient=False) from error
        self._check(before)
        good = before.configuration if before.is_healthy else None
        if before.is_healthy and self.wanted.is_met_by(before.configuration):
            self.log("The Endpoint already has this configuration.")
            return before.configuration, good
        after = self.endpoint.update(self.wanted.configuration(before.configuration), self.wanted.secrets)
        self.log(f"Updated: {after.configuration}.")
        return after.configuration, good

    def _create(self) -> Configuration:
        wanted = self.wanted
        after = self.endpoint.create(
            wanted.configuration(None),
            vendor=wanted.vendor,
            region=wanted.region,
            type=wanted.type,
            secrets=wanted.secrets,
        )
        self.log(f"Created {self.endpoint.name}: {after.configuration}.")
        return after.configuration

    def _check(self, before: EndpointRuntime) -> None:
        self.log(f"The Endpoint {self.endpoint.name} is {before}: {before.configuration}.")
        if before.state == "paused":
            raise HubError("The Endpoint is paused and would not run a new version: resume it.", is_transient=False)
        if before.type == "private":
            raise HubError("The Endpoint is private: it can't be tested from here.", is_transient=False)
        if before.configuration.has_credentials and not self.wanted.credentials:
            raise HubError(
                "The Endpoint's image needs the credentials of its registry, which the hub does not return: set "
                "REGISTRY_USERNAME and REGISTRY_PASSWORD, so that a rollback can restore it.",
                is_transient=False,
            )

    def restore(self, good: Configuration, failed: Configuration) -> Configuration:
        """Deploy a former configuration again.

        Raises:
            HubError: Another client has changed the Endpoint since, or the hub did not accept it.
        """
        if not self.endpoint.runtime().configuration.is_same_version(failed):
            raise HubError("Another client has changed the Endpoint since.", is_transient=False)
        if good.has_credentials:
            good = good.with_credentials(self.wanted.credentials)
        restored = self.endpoint.update(good, {}).configuration
        self.log(f"Updated: {restored}, as before.")
        return restored

    def address(self) -> tuple[str | None, str | None]:
        """Return the Endpoint's address, and the token that its proxy needs.

        The first request of the smoke test starts an Endpoint that is scaled to zero.

        Raises:
            HubError: The hub rejected the call or did not respond.
        """
        runtime = self.endpoint.runtime()
        return runtime.url, self.login.current_token() if runtime.type != "public" else None
