"""Our server on Ray Serve: each replica runs the whole server as its child and passes HTTP through to it.

    serve run deploy.ray_serve:app
    serve run deploy.ray_serve:app num_gpus=1 max_replicas=8

The replica has the server's batches, cache, limits and drain; Ray places replicas on nodes, scales and updates
them. The server itself knows nothing of Ray. docs/ray.md explains the options.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from deploy.serve_replica.child_server import ChildServer
from deploy.serve_replica.pass_through import Message, Receive, Send, new_session, pass_through

_IMAGES = "images"
_SHUTDOWN_S = 60.0
"""More than the server's drain takes."""


class Options(BaseModel):
    """Options of the application; those of the server are environment variables, or `user_config`.

    Attributes:
        num_gpus: GPUs of a replica; 0: the model runs on CPUs.
        num_cpus: CPUs of a replica, for its HTTP processes and decoding.
        max_ongoing_requests: Requests in a replica at once; the server itself refuses more than its queue holds.
        target_images: Images in a replica's server that autoscaling aims at: two full batches.
        min_replicas: Minimum number of replicas.
        max_replicas: Maximum number of replicas; without more than the minimum, there is no autoscaling.
        upscale_delay_s: How long more replicas must be wanted before they are started.
        downscale_delay_s: How long fewer replicas must be wanted before some are stopped.
        settings: Settings of the server, by name, such as {"model": "digits"}; `user_config` changes them.
    """

    model_config = ConfigDict(extra="forbid")

    num_gpus: float = Field(0, ge=0)
    num_cpus: float = Field(1, ge=0)
    max_ongoing_requests: int = Field(256, ge=1)
    target_images: float = Field(64, gt=0)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    upscale_delay_s: float = Field(10, ge=0)
    downscale_delay_s: float = Field(300, ge=0)
    settings: dict[str, Any] = Field(default_factory=dict)


@serve.deployment(
    name="vit-api",
    health_check_period_s=2,
    health_check_timeout_s=15,
    graceful_shutdown_timeout_s=_SHUTDOWN_S,
    graceful_shutdown_wait_loop_s=0.5,
)
@serve.ingress()
class VitApi:
    """A replica: one server and the way to it.

    Args:
        settings: Settings of the server, by name.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._base_settings = settings
        self._session = new_session()
        self._server = ChildServer(self._session, settings)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the ASGI application, which Ray asks for after the constructor."""

        async def handle(scope: Message, receive: Receive, send: Send) -> None:
            await self._handle(scope, receive, send)

        return handle  # uvicorn takes a bound method for another version of ASGI

    async def _handle(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await pass_through(self._session, self._server.url, scope, receive, send)
        elif scope["type"] == "lifespan":
            await live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change settings: a server with the new ones takes over when it is ready, and the old one drains.

        Args:
            user_config: Has `settings`, by name.

        Raises:
            ServerStopped: The new server does not start; the old one stays.
        """
        await self._server.change({**self._base_settings, **user_config.get("settings", {})})

    async def check_health(self) -> None:
        """Raise an exception if this replica must be replaced; the first call starts the server."""
        await self._server.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the number of images in the server, which `wanted_replicas` gets."""
        return {_IMAGES: await self._server.images()}

    async def server_pid(self) -> int:
        """Return the id of the server's main process, for operators."""
        return self._server.pid()

    async def __del__(self) -> None:
        """Have the server finish what it has: Ray calls this once no request is left, or time is up."""
        await self._server.stop()
        await self._session.close()


def wanted_replicas(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return how many replicas are wanted for the images that all servers have, Ray's `AutoscalingPolicy`.

    The queue of images is what a batching server is scaled by: ongoing requests count cache hits, which cost nothing,
    and a request may have 32 images.
    """
    by_replica = (context.aggregated_metrics or {}).get(_IMAGES, {})
    if not by_replica:
        return context.target_num_replicas, context.policy_state
    config = context.config
    return sum(by_replica.values()) / config.get_target_ongoing_requests(), context.policy_state


def app(arguments: dict[str, Any]) -> serve.Application:
    """Return the application, for `serve run` and configuration files.

    Args:
        arguments: Values of `Options`, by name.
    """
    options = Options.model_validate(arguments)
    deployment: serve.Deployment = VitApi.options(  # type: ignore[attr-defined]
        max_ongoing_requests=options.max_ongoing_requests,
        ray_actor_options={"num_gpus": options.num_gpus, "num_cpus": options.num_cpus},
    )
    if options.max_replicas > options.min_replicas:
        return deployment.options(autoscaling_config=_autoscaling(options)).bind(options.settings)
    return deployment.options(num_replicas=options.min_replicas).bind(options.settings)


def _autoscaling(options: Options) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=options.min_replicas,
        max_replicas=options.max_replicas,
        target_ongoing_requests=options.target_images,
        upscale_delay_s=options.upscale_delay_s,
        downscale_delay_s=options.downscale_delay_s,
        metrics_interval_s=1,
        look_back_period_s=5,
        policy=AutoscalingPolicy(policy_function=wanted_replicas),
    )


async def live(receive: Receive, send: Send) -> None:
    """Answer ASGI's lifespan messages until the shutdown; nothing is to be done for them."""
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
