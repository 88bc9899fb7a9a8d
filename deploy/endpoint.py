"""Deploys an image of the server to a Hugging Face Inference Endpoint, and rolls back if it does not work there.

    HF_TOKEN=... python -m deploy.endpoint --name ORGANISATION/NAME --container-image IMAGE@sha256:... --model MODEL

Creates or updates the Endpoint, waits until it runs, and runs a smoke test. If the start or the test fails, the former
image, model and settings are deployed again. The exit status is 0 if the new version runs, 1 if the Endpoint needs
attention, 2 if nothing was changed, and 3 after a rollback; see docs/hugging-face.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from deploy import command
from deploy.command import say
from deploy.endpoint_target import EndpointTarget, Wanted
from deploy.hub import HubError, login
from deploy.hub_endpoint import Hardware, HubEndpoint, Scaling
from deploy.rollout import Rollout, Status
from deploy.watch import Watch


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> Status:
    """Run the command and return its exit status.

    The environment must have `HF_TOKEN`, and may have `ENDPOINT_API_KEY`, `REGISTRY_USERNAME` and `REGISTRY_PASSWORD`.
    """
    options = _parser().parse_args(arguments)

    def run() -> Status:
        who = login(environment, None)
        patience = command.patience(options)
        smoke_test = command.smoke_test(options, environment, "ENDPOINT_API_KEY")
        endpoint = HubEndpoint(options.name, who)
        target = EndpointTarget(endpoint, _wanted(options, environment), who, patience, say)
        status = Rollout(target, Watch(endpoint, patience, say), smoke_test, say).run()
        if options.scale_to_zero and status in (Status.DEPLOYED, Status.ROLLED_BACK):
            _scale_to_zero(endpoint)
        return status

    return command.report(run, "Endpoint")


def _scale_to_zero(endpoint: HubEndpoint) -> None:
    """Stop the replicas; a failure is only logged, since the Endpoint does the same when it is idle."""
    try:
        endpoint.scale_to_zero()
    except HubError as error:
        say(f"The Endpoint was not scaled to zero. {error}")
    else:
        say("Scaled to zero: the next request starts a replica.")


def _wanted(options: argparse.Namespace, environment: Mapping[str, str]) -> Wanted:
    if missing := [name for name in options.secret if not environment.get(name)]:
        raise HubError(f"These secrets are not in the environment: {', '.join(missing)}.", is_transient=False)
    username, password = (environment.get(f"REGISTRY_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if bool(username) != bool(password):
        raise HubError("Set both REGISTRY_USERNAME and REGISTRY_PASSWORD, or neither.", is_transient=False)
    return Wanted(
        image_url=options.container_image,
        repository=options.model,
        revision=options.revision,
        env=dict(options.env),
        secrets={name: environment[name] for name in options.secret},
        scaling=Scaling(options.min_replicas, options.max_replicas, options.pending_requests, options.idle_min),
        hardware=Hardware(options.accelerator, options.instance_type, options.instance_size),
        vendor=options.vendor,
        region=options.region,
        type=options.type,
        credentials={"username": username, "password": password} if username else {},
    )


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _name(text: str) -> str:
    namespace, _, name = text.partition("/")
    if not (namespace and name) or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not ORGANISATION/NAME")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.endpoint", description=__doc__.partition("\n")[0])
    parser.add_argument("--name", required=True, type=_name, metavar="ORGANISATION/NAME", help="the Endpoint")
    parser.add_argument(
        "--container-image",
        required=True,
        type=command.container_image,
        metavar="IMAGE@sha256:...",
        help="the server's image",
    )
    parser.add_argument("--model", metavar="ORGANISATION/NAME", help="model, mounted at /repository")
    parser.add_argument("--revision", help="its revision; default: the newest for a new model")
    parser.add_argument(
        "--env", action="append", default=[], type=_variable, metavar="NAME=VALUE", help="environment variable"
    )
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="secret environment variable, with its value in this environment",
    )
    scaling = parser.add_argument_group("scaling")
    scaling.add_argument("--min-replicas", type=int, help="0 to scale to zero; default: 0")
    scaling.add_argument("--max-replicas", type=int, help="default: 2")
    scaling.add_argument(
        "--pending-requests", type=float, help="pending requests of a replica above which one is added; default: 32"
    )
    scaling.add_argument("--idle-min", type=int, help="minutes without a request until it scales to zero; default: 15")
    scaling.add_argument("--scale-to-zero", action="store_true", help="scale to zero after the smoke test")
    hardware = parser.add_argument_group("hardware, as listed by `hf endpoints hardware`")
    hardware.add_argument("--accelerator", help="default: gpu")
    hardware.add_argument("--instance-type", help="default: nvidia-t4")
    hardware.add_argument("--instance-size", help="default: x1")
    new = parser.add_argument_group("of a new Endpoint only")
    new.add_argument("--vendor", default="aws", help="default: aws")
    new.add_argument("--region", default="us-east-1", help="default: us-east-1")
    new.add_argument(
        "--type", choices=["authenticated", "public"], default="authenticated", help="default: authenticated"
    )
    command.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
