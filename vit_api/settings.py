"""Every setting of the server: its name, default, limits and meaning. Must not know how a setting is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from vit_api.access.api_keys import MIN_KEY_LENGTH, check_key, digest_of, parse_keys
from vit_api.access.client_address import IPNetwork, parse_networks
from vit_api.access.origins import parse_origins
from vit_api.access.rates import Rate, parse_rates
from vit_api.deployments.listing import DTYPES, MAX_DEPLOYMENTS, NAME_PATTERN, Deployment, load_deployments
from vit_api.environment import capacity, platforms
from vit_api.environment.cores import available_cores
from vit_api.labels.categories import Categories
from vit_api.labels.thresholds import Thresholds
from vit_api.redis_url import check_redis_url

ENV_PREFIX = "VIT_API_"
MAX_SLOTS_PER_PROCESS = 2048
"""Answers that fit into one pipe of 1 MiB, the largest that Linux grants an unprivileged user."""

LIVE_INPUT_SIDE = 384
"""Slots hold the input of models of this size that are loaded while the server runs, in pixels of one side."""

_DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d+(,\d+)*)?)$"
_PARSERS: dict[str, Callable[[str], object]] = {
    "rate_limit": parse_rates,
    "trusted_proxies": parse_networks,
    "cors_origins": parse_origins,
    "models": load_deployments,
    "thresholds": Thresholds.load,
    "categories": Categories.load,
}
"""By setting, what raises a ValueError unless it is valid."""

_MAX_DECODE_THREADS = 64
DEVICE_CHOICES = "auto, cpu, cuda (all GPUs), cuda:0 or cuda:0,1"


class _PlatformSource(InitSettingsSource):
    """Settings that the platform provides, and those that fit its memory; its revision is that of its model only."""

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()
        if "model" in self.current_state or "models" in self.current_state:
            values.pop("revision", None)
        if "models" in self.current_state:
            values.pop("model", None)
        return values | self._fitting()

    def _fitting(self) -> dict[str, Any]:
        memory, given = capacity.memory_mb(), self.current_state
        if memory is None:
            return {}
        fields = self.settings_cls.model_fields
        names = ("max_pending_mb", "max_decode_mb", "max_upload_mb", "max_batch_upload_mb")
        try:
            pending_mb, decode_mb, *requests_mb = (float(given.get(name, fields[name].default)) for name in names)
            processes = int(given["api_servers"]) if "api_servers" in given else None
        except (TypeError, ValueError):  # reported as an invalid value
            return {}
        if processes is not None and processes < 1:
            return {}
        cores = available_cores()
        fitting, fitting_mb = capacity.fit(
            memory,
            cores,
            processes=processes,
            pending_mb=pending_mb,
            decode_mb=decode_mb,
            request_mb=max(requests_mb) if "max_pending_mb" not in given else max(pending_mb, *requests_mb),
        )
        few = {"api_servers": fitting} if fitting < cores else {}
        return (few | {"max_pending_mb": fitting_mb}) if fitting_mb < pending_mb else few


class Settings(BaseSettings):
    """The server's settings. The command line wins over `VIT_API_*` in the environment, and that over `.env`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        env_file_encoding="utf-8-sig",  # some editors begin a file with a byte order mark
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
        str, Field(min_length=1, description="Hub id, local directory in Hugging Face format, or `digits` (built in)")
    ] = "google/vit-base-patch16-224"
    model_name: Annotated[
        str | None,
        Field(
            pattern=NAME_PATTERN,
            description="Name of the model in responses, /info and /v2/models/{name}; default: that of the hub, "
            "or of the directory",
        ),
    ] = None
    revision: Annotated[
        str | None, Field(description="Branch, tag or commit of a hub model; use a commit to pin it")
    ] = None
    models: Annotated[
        str | None,
        Field(
            description='Several models or versions in one server: a JSON list such as [{"name": "nsfw", "version": '
            '"1", "model": "Falconsai/nsfw_image_detection"}], or the path of a file with it; see '
            "docs/several-models.md"
        ),
    ] = None
    max_models: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_DEPLOYMENTS,
            description="Maximum number of versions of models; setting it allows the operator to load and unload them "
            "while the server runs; default: those that are listed",
        ),
    ] = None
    max_input_side: Annotated[
        int | None,
        Field(
            ge=16,
            le=2048,
            description="Largest input of models that are loaded while the server runs, in pixels of one side; "
            f"default: {LIVE_INPUT_SIDE}, or that of the largest listed model",
        ),
    ] = None
    state_dir: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Directory to keep what was loaded, unloaded and given traffic while the server runs; without "
            "it, a restart begins with the list",
        ),
    ] = None
    host: Annotated[
        str,
        Field(
            min_length=1,
            description="Address to listen on: `127.0.0.1` for local access only, `::` for all IPv6 interfaces",
        ),
    ] = "0.0.0.0"
    port: Annotated[
        int,
        Field(ge=1, le=65535, description="Port to listen on; `PORT`, which some platforms set, is used without it"),
    ] = 7860
    api_servers: Annotated[
        int,
        Field(
            ge=1,
            le=128,
            default_factory=available_cores,
            description="Number of HTTP processes; default: one per core, or fewer if memory is short",
        ),
    ]
    workers_per_device: Annotated[int, Field(ge=1, le=16, description="Inference workers per device")] = 1
    device: Annotated[
        str,
        Field(
            pattern=_DEVICE_PATTERN, description=f"Device of the model: {DEVICE_CHOICES}; auto: all GPUs, or the CPU"
        ),
    ] = "auto"
    dtype: Annotated[
        DTYPES,
        Field(
            description="Precision of the model; auto: the fastest that the hardware supports natively, never int8 "
            "or fp8: these need a copy of the model that passed its gate, see docs/quantization.md"
        ),
    ] = "auto"
    engine: Annotated[
        Literal["auto", "eager", "compile", "cudagraph", "openvino"],
        Field(
            description="How the model is executed; auto: CUDA graphs on a GPU, eager on the CPU; openvino needs the "
            "extra openvino, and runs on the CPU"
        ),
    ] = "auto"
    allow_unverified_int8: Annotated[
        bool,
        Field(description="Serve an int8 or fp8 model though the verdict on it is missing, failed, or on other files"),
    ] = False
    max_batch_size: Annotated[int, Field(ge=1, le=256, description="Maximum batch size, in images")] = 32
    max_wait_ms: Annotated[
        float,
        Field(ge=0, le=10_000, description="Maximum time that an image waits for its batch to fill, in milliseconds"),
    ] = 5.0
    queue_size: Annotated[
        int,
        Field(ge=1, le=32_768, description="Maximum number of images in the server; further ones get a 503"),
    ] = 1024
    request_timeout_s: Annotated[
        float,
        Field(
            gt=0, le=3600, description="Time limit of a request once its body has arrived, in seconds; past it a 504"
        ),
    ] = 30.0
    header_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            le=3600,
            description="Time limit for receiving the headers of a request, in seconds; past it the response is a 408",
        ),
    ] = 10.0
    body_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            le=3600,
            description="Time limit between two pieces of a request body, in seconds; past it the response is a 408",
        ),
    ] = 10.0
    keep_alive_s: Annotated[
        float,
        Field(
            gt=0,
            le=86_400,
            description="Seconds that an idle connection is kept; more than a load balancer in front keeps it",
        ),
    ] = 75.0
    worker_stall_s: Annotated[
        float,
        Field(gt=0, le=86_400, description="Seconds without a heartbeat after which a worker is killed and replaced"),
    ] = 60.0
    drain_delay_s: Annotated[
        float,
        Field(ge=0, le=3600, description="Seconds from SIGTERM, when readiness turns 503, until the port is closed"),
    ] = 0.0
    drain_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="Seconds that requests in flight get to finish during shutdown")
    ] = 30.0
    max_upload_mb: Annotated[float, Field(gt=0, le=1024, description="Maximum size of one upload, in MiB")] = 32.0
    max_batch_upload_mb: Annotated[
        float, Field(gt=0, le=4096, description="Maximum size of one request with several uploads, in MiB")
    ] = 100.0
    max_pending_mb: Annotated[
        float,
        Field(
            gt=0,
            le=1_048_576,
            description="Maximum memory for uploads in each HTTP process, in MiB; beyond it requests get a 503; by "
            "default less if memory is short",
        ),
    ] = 512.0
    max_image_side: Annotated[
        int, Field(ge=16, le=65_535, description="Maximum width and height of an image, in pixels")
    ] = 65_535
    max_decode_mb: Annotated[
        float,
        Field(
            ge=16,
            le=16_384,
            description="Maximum memory to decode images and parse bodies in each HTTP process, in MiB; an image over "
            "it gets a 413",
        ),
    ] = 350.0
    background: Annotated[
        str,
        Field(description="Colour behind transparent pixels: none (alpha is dropped), white, black or #rrggbb"),
    ] = "none"
    exact_decode: Annotated[
        bool,
        Field(description="Decode pixels exactly as transformers does: JPEGs at full size, Pillow's resize"),
    ] = False
    decode_threads: Annotated[
        int | None,
        Field(
            ge=1,
            le=_MAX_DECODE_THREADS,
            description="Images that each HTTP process decodes at once; default: its share of the cores, rounded up",
        ),
    ] = None
    cache_size: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000,
            description="Cache entries of each HTTP process, 1.5 to 2.3 KB each; 0 turns the cache off",
        ),
    ] = 10_000
    cache_ttl_s: Annotated[
        float, Field(gt=0, le=31_536_000, description="Lifetime of a cache entry (TTL), in seconds")
    ] = 1800.0
    thresholds: Annotated[
        str | None,
        Field(
            description='Score from which a label is flagged: JSON such as {"nsfw": 0.85, "*": 0.5}, or the path of a '
            "file with it; * stands for all other labels"
        ),
    ] = None
    categories: Annotated[
        str | None,
        Field(
            description='Categories of /v1/moderations that labels belong to: JSON such as {"nsfw": "sexual"}, or the '
            "path of a file with it; default: each label is a category"
        ),
    ] = None
    redis_url: Annotated[
        SecretStr | None,
        Field(
            description="Redis to share the cache and the rate limits through: redis://, rediss:// or unix://; for a "
            "private CA, rediss://...?ssl_ca_certs=/path/ca.pem"
        ),
    ] = None
    operator_key: Annotated[
        SecretStr | None,
        Field(
            min_length=MIN_KEY_LENGTH,
            description="Key that authorises clearing the cache and loading models; without it, both are disabled",
        ),
    ] = None
    api_keys: Annotated[
        SecretStr | None,
        Field(
            description="API keys, comma-separated, each plain or as sha256:<digest>; without them, no key is required"
        ),
    ] = None
    metrics_public: Annotated[bool, Field(description="Serve /metrics without a key, even when API keys are set")] = (
        False
    )
    rate_limit: Annotated[
        str | None,
        Field(description="Images allowed per client, such as 600/minute or 10/second;5000/hour; default: no limit"),
    ] = None
    trusted_proxies: Annotated[
        str | None,
        Field(description="Addresses or networks, comma-separated, of proxies whose X-Forwarded-For is trusted"),
    ] = None
    cors_origins: Annotated[
        str | None,
        Field(description="Origins whose pages may call the API, comma-separated, or *; default: same origin only"),
    ] = None
    cpu_threads: Annotated[
        int | None,
        Field(
            ge=1, le=256, description="Threads per operation on the CPU; default: one per core, or 1 for small models"
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], Field(description="Minimum log level")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Field(description="Format of log lines: plain text, or one JSON object per line")
    ] = "text"
    decision_log: Annotated[
        SecretStr | None,
        Field(
            description="Where each answer is logged: a file, a JSON object per line, or an https:// URL that gets "
            "CloudEvents; see docs/moderation.md"
        ),
    ] = None
    decision_sample: Annotated[
        float, Field(ge=0, le=1, description="Fraction of the requests that are in the decision log")
    ] = 1.0
    access_log: Annotated[bool, Field(description="Log one line per request")] = False
    access_log_user_agent: Annotated[
        bool, Field(description="Add the User-Agent header to the lines of the access log")
    ] = False
    traces: Annotated[
        bool,
        Field(description="Export OpenTelemetry traces, configured by the usual OTEL_* variables; see docs/tracing.md"),
    ] = False

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *_: Any, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings are read from, in order of precedence."""
        return (
            sources["init_settings"],
            sources["env_settings"],
            sources["dotenv_settings"],
            _PlatformSource(settings_cls, platforms.defaults()),
        )

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

    @field_validator("background")
    @classmethod
    def _check_background(cls, value: str) -> str:
        if not re.fullmatch(r"none|white|black|#[0-9a-fA-F]{6}", value):
            raise ValueError("Input should be none, white, black or #rrggbb")
        return value.lower()

    @field_validator(*_PARSERS)
    @classmethod
    def _check_parts(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _PARSERS[str(info.field_name)](value)
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_redis_url(value.get_secret_value())
        return value

    @field_validator("decision_log")
    @classmethod
    def _check_decision_log(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_log_target(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _check_redis(self) -> Settings:
        if self.redis_url is not None and self.cache_size == 0:
            raise ValueError(
                f"{ENV_PREFIX}REDIS_URL: Redis is a tier of the cache, but {ENV_PREFIX}CACHE_SIZE is 0. "
                "Turn the cache on, or leave this setting out."
            )
        return self

    @model_validator(mode="after")
    def _check_pending(self) -> Settings:
        largest = max(self.max_upload_mb, self.max_batch_upload_mb)
        if self.max_pending_mb < largest:
            raise ValueError(
                f"{ENV_PREFIX}MAX_PENDING_MB: Input should be at least {largest:g}, the size of the largest request. "
                f"Got {self.max_pending_mb:g}."
            )
        return self

    @model_validator(mode="after")
    def _check_slots(self) -> Settings:
        if self.slots_per_process > MAX_SLOTS_PER_PROCESS:
            maximum = MAX_SLOTS_PER_PROCESS * self.api_servers
            raise ValueError(
                f"{ENV_PREFIX}QUEUE_SIZE: Input should be at most {MAX_SLOTS_PER_PROCESS} per HTTP process, "
                f"which is {maximum} for {ENV_PREFIX}API_SERVERS={self.api_servers}. Got {self.queue_size}."
            )
        return self

    @model_validator(mode="after")
    def _check_one_list(self) -> Settings:
        both = [name for name in ("model", "model_name", "revision") if name in self.model_fields_set]
        if self.models is not None and both:
            raise ValueError(
                f"{ENV_PREFIX}MODELS: The list has the models, so {ENV_PREFIX}{both[0].upper()} would be ignored. "
                "Leave one of the two settings out."
            )
        return self

    @model_validator(mode="after")
    def _check_int8_engine(self) -> Settings:
        if self.device.startswith("cuda"):
            return self
        has_int8 = self.dtype == "int8" if self.models is None else any(one.dtype == "int8" for one in self.deployments)
        if has_int8 and self.engine not in ("auto", "openvino"):
            raise ValueError(
                f"{ENV_PREFIX}ENGINE: On the CPU, a model in int8 runs in OpenVINO only. Set auto or openvino, or "
                f"on a GPU {ENV_PREFIX}DEVICE=cuda. Got {self.engine!r}."
            )
        return self

    @model_validator(mode="after")
    def _check_max_models(self) -> Settings:
        for name in ("max_models", "max_input_side", "state_dir"):
            needed = "models" if name == "max_models" else "max_models"
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(
                    f"{ENV_PREFIX}{name.upper()}: It has no effect without {ENV_PREFIX}{needed.upper()}. Set that, "
                    "too, or leave this setting out."
                )
        count = 0 if self.models is None else len(load_deployments(self.models))
        if self.max_models is not None and self.max_models < count:
            raise ValueError(
                f"{ENV_PREFIX}MAX_MODELS: Input should be at least {count}, as many as {ENV_PREFIX}MODELS lists. "
                f"Got {self.max_models}."
            )
        return self

    @model_validator(mode="after")
    def _check_slots_of_deployments(self) -> Settings:
        count = 1 if self.models is None else max(len(load_deployments(self.models)), self.max_models or 0)
        if count > 1 and self.slots_per_process < 2 * count:
            raise ValueError(
                f"{ENV_PREFIX}QUEUE_SIZE: Input should be at least {2 * count * self.api_servers}, which is two for "
                f"each of {count} versions of models in each of {self.api_servers} HTTP processes. "
                f"Got {self.queue_size}."
            )
        return self

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """What `models` lists, with the server's settings for what an entry does not say; empty without a list."""
        return () if self.models is None else tuple(map(self.complete, self.written_deployments))

    @property
    def written_deployments(self) -> tuple[Deployment, ...]:
        """What `models` lists, without the server's settings."""
        return () if self.models is None else load_deployments(self.models)

    def complete(self, deployment: Deployment) -> Deployment:
        """Return a deployment with the server's settings for what it does not say."""
        names = ("workers_per_device", "dtype", "max_batch_size", "thresholds", "categories")
        missing = {name: getattr(self, name) for name in names if getattr(deployment, name) is None}
        return deployment.model_copy(update=missing)

    @property
    def slots_per_process(self) -> int:
        """Slots of one HTTP process: its share of the queue, rounded up."""
        return -(-self.queue_size // self.api_servers)

    @property
    def decoded_at_once(self) -> int:
        """Images that each HTTP process decodes at once."""
        share = -(-available_cores() // self.api_servers)
        return self.decode_threads or min(share, _MAX_DECODE_THREADS)

    @property
    def max_upload_bytes(self) -> int:
        """Maximum size of one upload, in bytes."""
        return int(self.max_upload_mb * 2**20)

    @property
    def max_decode_bytes(self) -> int:
        """Maximum memory to decode images in each HTTP process, in bytes."""
        return int(self.max_decode_mb * 2**20)

    @property
    def max_batch_upload_bytes(self) -> int:
        """Maximum size of one request with several uploads, in bytes."""
        return int(self.max_batch_upload_mb * 2**20)

    @property
    def max_pending_bytes(self) -> int:
        """Maximum memory for uploads in each HTTP process, in bytes."""
        return int(self.max_pending_mb * 2**20)

    @property
    def key_digests(self) -> tuple[bytes, ...]:
        """Digests of the keys that are accepted, the operator key included; empty if no key is required."""
        if self.api_keys is None:
            return ()
        operator = () if self.operator_key is None else (digest_of(self.operator_key.get_secret_value()),)
        return (*parse_keys(self.api_keys.get_secret_value()), *operator)

    @property
    def has_decision_log_file(self) -> bool:
        """Whether decisions are logged to a file, which can be rotated."""
        return self.decision_log is not None and not is_url(self.decision_log.get_secret_value())

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """Origins allowed to call the API from a browser."""
        return () if self.cors_origins is None else parse_origins(self.cors_origins)

    @property
    def trusted_networks(self) -> tuple[IPNetwork, ...]:
        """Networks of the proxies whose `X-Forwarded-For` is trusted."""
        return () if self.trusted_proxies is None else parse_networks(self.trusted_proxies)

    @property
    def rates(self) -> tuple[Rate, ...]:
        """The rate limits that apply to each client."""
        return () if self.rate_limit is None else parse_rates(self.rate_limit)

    @property
    def max_wait_s(self) -> float:
        """Maximum time that an image waits for its batch to fill, in seconds."""
        return self.max_wait_ms / 1000


def is_url(target: str) -> bool:
    """Return whether a decision log is a URL; otherwise it is the path of a file."""
    return "://" in target


def _check_log_target(target: str) -> None:
    """Raise ValueError for anything but a path or a URL. The message never quotes it: it may contain a token."""
    if not is_url(target):
        if not target or "\0" in target or target.endswith("/"):
            raise ValueError("Input should be the path of a file, or an https:// URL")
        return
    try:
        parts = urlsplit(target)
        is_address = bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:
        is_address = False
    if not is_address or (parts.scheme != "https" and (parts.scheme != "http" or not _is_loopback(parts.hostname))):
        raise ValueError(
            "Input should be the path of a file, or an https:// URL; http:// is accepted for this machine only "
            "(127.0.0.1, ::1 or localhost)"
        )


def _is_loopback(host: str | None) -> bool:
    return host in ("127.0.0.1", "::1", "localhost")
