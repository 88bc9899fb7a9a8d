"""The bodies of responses, as clients and the API's description see them. Knows nothing of how they come about."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Body(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class LabelConfidence(_Body):
    """One class and how sure the model is of it."""

    label: str = Field(examples=["7"])
    confidence: float = Field(description="Probability, 0 to 1", examples=[0.93])


class PredictResponse(_Body):
    """What the model says of one image."""

    predictions: list[LabelConfidence] = Field(description="The `top_k` most probable classes, most probable first")
    cached: bool = Field(description="Whether it was remembered, so that the model did not run")
    processing_time_ms: float = Field(description="From the request's arrival to the answer", examples=[3.1])
    model: str = Field(examples=["digits"])


class LabelScore(_Body):
    """One class as Hugging Face's API has it."""

    label: str = Field(examples=["7"])
    score: float = Field(description="What `function_to_apply` makes of the model's output", examples=[0.93])


class ErrorResponse(_Body):
    """Why a request got no answer."""

    error: str = Field(description="What is wrong and what to do")
    code: str = Field(description="A stable name for programs", examples=["bad_image"])
    request_id: str


class HealthResponse(_Body):
    """Whether the server takes images."""

    status: str = Field(description="`ok`; `degraded` while a worker is started again; `starting`; `stopping`")
    model_loaded: bool = Field(description="Whether images are welcome")
    gpu_available: bool
    device: str = Field(description="Where the model runs; several are separated by commas", examples=["cuda:0"])
    model: str
    workers: int
    workers_ready: int


class WorkerInfo(_Body):
    """One inference worker."""

    state: str
    device: str
    device_name: str
    dtype: str
    engine: str = Field(description="How the model runs: eager, compile or cudagraph")
    startup_s: float = Field(description="Seconds that it took to get ready")
    batches: int = Field(description="Batches that it ran since the start")
    images: int = Field(description="Images in these batches")
    restarts: int = Field(description="How often it died and was started again")


class RedisInfo(_Body):
    """The tier that several servers share, as the HTTP processes of this one see it."""

    processes_connected: int = Field(description="HTTP processes for which Redis is up")
    hits: int
    misses: int
    rejected: int = Field(description="Entries of another format, damaged or senseless; each is a miss")
    failures: int = Field(description="Commands that failed or took too long")
    skipped: int = Field(description="Look-ups and writes given up because Redis was slow, down or full")


class CacheInfo(_Body):
    """What the caches of all HTTP processes did since the start."""

    entries: int = Field(description="Answers that are remembered now")
    hits: int = Field(description="Images answered without the model, Redis included")
    misses: int = Field(description="Images that were neither remembered nor under way")
    coalesced: int = Field(description="Images that waited for an identical one under way")
    redis: RedisInfo | None = Field(description="Null if there is none")


class CacheCleared(_Body):
    """How much was forgotten."""

    entries: int = Field(description="Answers in the HTTP processes of this server")
    redis_entries: int | None = Field(description="Answers in Redis; null if there is none")


class InfoResponse(_Body):
    """What runs here."""

    model: str
    revision: str | None
    labels: int = Field(description="How many classes the model knows")
    input_shape: tuple[int, int, int] = Field(description="Height, width and channels that the model sees")
    workers: list[WorkerInfo]
    slots: dict[str, int] = Field(description="Places for images, by what becomes of the image; free ones included")
    cache: CacheInfo | None = Field(description="Null if it is off")
    versions: dict[str, str]
    settings: dict[str, object] = Field(description="As started, without secrets")
