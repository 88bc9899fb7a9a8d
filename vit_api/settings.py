"""Every knob of the server: name, default, limits and what it does. Knows nothing of how a knob is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vit_api.access.api_keys import MIN_KEY_LENGTH, check_key, digest_of, parse_keys
from vit_api.access.client_address import IPNetwork, parse_networks
from vit_api.access.origins import parse_origins
from vit_api.access.rates import Rate, parse_rates
from vit_api.cores import available_cores

ENV_PREFIX = "VIT_API_"
MAX_SLOTS_PER_PROCESS = 2048
"""What one answer pipe carries within the 1 MiB that Linux grants a pipe of an unprivileged user."""

_DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d+(,\d+)*)?)$"
_PARSERS: dict[str, Callable[[str], object]] = {
    "rate_limit": parse_rates,
    "trusted_proxies": parse_networks,
    "cors_origins": parse_origins,
}
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
DEVICE_MEANING = "auto, cpu, cuda (all GPUs), cuda:0 or cuda:0,1"


class Settings(BaseSettings):
    """The server's settings, from the command line, `VIT_API_*` in the environment, and `.env`, in this order."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        protected_namespaces=(),
        cli_prog_name="server.py",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    model: Annotated[
        str, Field(min_length=1, description="Hub id, local directory in Hugging Face format, or `digits` (embedded)")
    ] = "google/vit-base-patch16-224"
    revision: Annotated[str | None, Field(description="Branch, tag or commit of a hub model; a commit pins it")] = None
    host: Annotated[
        str, Field(min_length=1, description="Address to listen on; 127.0.0.1: this machine alone; ::: all of IPv6")
    ] = "0.0.0.0"
    port: Annotated[int, Field(ge=1, le=65535, description="Port to listen on")] = 7860
    api_servers: Annotated[
        int, Field(ge=1, le=128, default_factory=available_cores, description="HTTP processes; default: one a core")
    ]
    workers_per_device: Annotated[int, Field(ge=1, le=16, description="Inference workers on each device")] = 1
    device: Annotated[
        str, Field(pattern=_DEVICE_PATTERN, description=f"Where the model runs: {DEVICE_MEANING}; auto: GPUs if any")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="What the model computes in; auto: the fastest that the hardware has instructions for"),
    ] = "auto"
    engine: Annotated[
        Literal["auto", "eager", "compile", "cudagraph"],
        Field(description="How the model runs; auto: recorded CUDA graphs on a GPU, eagerly on the CPU"),
    ] = "auto"
    max_batch_size: Annotated[int, Field(ge=1, le=256, description="Images in a batch at the most")] = 32
    max_wait_ms: Annotated[
        float, Field(ge=0, le=10_000, description="How long an image waits for company at the most, in milliseconds")
    ] = 5.0
    queue_size: Annotated[
        int,
        Field(ge=1, le=32_768, description="Images that the server holds at once; more get 503 until one is answered"),
    ] = 1024
    request_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="Seconds from a request's arrival to a 504")
    ] = 30.0
    body_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="Seconds from a request's arrival that its body may take, or 408")
    ] = 10.0
    worker_stall_s: Annotated[
        float, Field(gt=0, le=86_400, description="Seconds without progress after which a worker is killed")
    ] = 60.0
    drain_delay_s: Annotated[
        float, Field(ge=0, le=3600, description="Seconds from a stop's signal, and `not ready`, to the port's closing")
    ] = 0.0
    drain_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="Seconds that requests under way get when the server stops")
    ] = 30.0
    max_upload_mb: Annotated[
        float, Field(gt=0, le=1024, description="Megabytes (2**20 bytes) of one upload at the most")
    ] = 10.0
    max_batch_upload_mb: Annotated[
        float, Field(gt=0, le=4096, description="Megabytes of one request with several uploads at the most")
    ] = 100.0
    max_pending_mb: Annotated[
        float, Field(gt=0, le=1_048_576, description="Megabytes of uploads that an HTTP process holds at once, or 503")
    ] = 512.0
    max_image_side: Annotated[
        int, Field(ge=16, le=65_535, description="Pixels of an image's width and height at the most")
    ] = 4096
    exact_decode: Annotated[
        bool, Field(description="Decode every pixel of a large JPEG instead of scaling it while it is decoded")
    ] = False
    decode_threads: Annotated[
        int, Field(ge=1, le=64, description="Threads in each HTTP process that decode images")
    ] = 2
    cache_size: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000,
            description="Answers that each HTTP process remembers, 1.2 to 2 KB each; 0: compute every one",
        ),
    ] = 10_000
    cache_ttl_s: Annotated[float, Field(gt=0, le=31_536_000, description="Seconds that an answer is remembered")] = (
        1800.0
    )
    redis_url: Annotated[
        SecretStr | None,
        Field(description="Redis that remembers for several processes and servers: redis://, rediss:// or unix://"),
    ] = None
    operator_key: Annotated[
        SecretStr | None, Field(min_length=MIN_KEY_LENGTH, description="Key for POST /cache/clear; none: nobody may")
    ] = None
    api_keys: Annotated[
        SecretStr | None,
        Field(description="Keys that clients need, with commas; each plain or as sha256:<digest>; none: all may"),
    ] = None
    metrics_public: Annotated[bool, Field(description="Show /metrics also to those who have no key")] = False
    rate_limit: Annotated[
        str | None,
        Field(description="Images that a client may send, as 600/minute or 10/second;5000/hour; none: no limit"),
    ] = None
    trusted_proxies: Annotated[
        str | None,
        Field(description="Addresses or networks, with commas, of proxies whose X-Forwarded-For is believed"),
    ] = None
    cors_origins: Annotated[
        str | None,
        Field(description="Origins whose pages may use this server, with commas, or * for all; none: its own alone"),
    ] = None
    cpu_threads: Annotated[
        int | None,
        Field(ge=1, le=256, description="Threads of one operation on the CPU; default: one a core; 1 for small models"),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], Field(description="Least severe messages to log")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Field(description="A line of text for each message, or a JSON object")
    ] = "text"
    access_log: Annotated[bool, Field(description="Log a line for each request")] = False
    traces: Annotated[
        bool, Field(description="Send OpenTelemetry traces, as OTEL_* in the environment say; see docs/tracing.md")
    ] = False

    @field_validator("log_level", "log_format", "dtype", "engine", "device", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("operator_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_key(value.get_secret_value())
        return value

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_keys(value.get_secret_value())
        return value

    @field_validator("rate_limit", "trusted_proxies", "cors_origins")
    @classmethod
    def _check_parts(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _PARSERS[str(info.field_name)](value)
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_redis_url(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _check_redis(self) -> Settings:
        if self.redis_url is not None and self.cache_size == 0:
            raise ValueError(f"{ENV_PREFIX}REDIS_URL: needs a cache, but {ENV_PREFIX}CACHE_SIZE is 0")
        return self

    @model_validator(mode="after")
    def _check_pending(self) -> Settings:
        most = max(self.max_upload_mb, self.max_batch_upload_mb)
        if self.max_pending_mb < most:
            raise ValueError(f"{ENV_PREFIX}MAX_PENDING_MB: at least {most:g}, so that one request has room")
        return self

    @model_validator(mode="after")
    def _check_slots(self) -> Settings:
        if self.slots_per_process > MAX_SLOTS_PER_PROCESS:
            most = MAX_SLOTS_PER_PROCESS * self.api_servers
            raise ValueError(
                f"{ENV_PREFIX}QUEUE_SIZE: at most {MAX_SLOTS_PER_PROCESS} images for each HTTP process "
                f"({most} for {ENV_PREFIX}API_SERVERS={self.api_servers}), got {self.queue_size}"
            )
        return self

    @property
    def slots_per_process(self) -> int:
        """Images that one HTTP process holds at once: its share of the queue, rounded up."""
        return -(-self.queue_size // self.api_servers)

    @property
    def max_upload_bytes(self) -> int:
        """Bytes of one upload at the most."""
        return int(self.max_upload_mb * 2**20)

    @property
    def max_batch_upload_bytes(self) -> int:
        """Bytes of one request with several uploads at the most."""
        return int(self.max_batch_upload_mb * 2**20)

    @property
    def max_pending_bytes(self) -> int:
        """Bytes of uploads that an HTTP process holds at once."""
        return int(self.max_pending_mb * 2**20)

    @property
    def key_digests(self) -> tuple[bytes, ...]:
        """Digests of the keys that clients may present; the operator's opens everything, too."""
        if self.api_keys is None:
            return ()
        operator = () if self.operator_key is None else (digest_of(self.operator_key.get_secret_value()),)
        return (*parse_keys(self.api_keys.get_secret_value()), *operator)

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """Origins whose pages may use the server."""
        return () if self.cors_origins is None else parse_origins(self.cors_origins)

    @property
    def trusted_networks(self) -> tuple[IPNetwork, ...]:
        """Proxies whose `X-Forwarded-For` is believed."""
        return () if self.trusted_proxies is None else parse_networks(self.trusted_proxies)

    @property
    def rates(self) -> tuple[Rate, ...]:
        """What each client may use."""
        return () if self.rate_limit is None else parse_rates(self.rate_limit)

    @property
    def max_wait_s(self) -> float:
        """Seconds that an image waits for company at the most."""
        return self.max_wait_ms / 1000


def _check_redis_url(url: str) -> None:
    """Refuse what is no address of a Redis, without repeating any of it: it may have a password."""
    try:
        parts = urlsplit(url)
        is_address = bool(parts.path) if parts.scheme == "unix" else bool(parts.hostname) and parts.port != 0
        database = parts.path.removeprefix("/")
        is_address = is_address and (parts.scheme == "unix" or not database or database.isdecimal())
    except ValueError:
        is_address = False
    if not is_address or not url.startswith(_REDIS_SCHEMES) or parts.query or parts.fragment:
        raise ValueError(
            f"Input should be {'host:port/database, '.join(_REDIS_SCHEMES)}path, without options; "
            "special characters in a password have to be percent-encoded"
        )
