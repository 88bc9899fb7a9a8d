"""Response bodies, for clients and the OpenAPI description. Knows nothing of how they are produced."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Body(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class LabelConfidence(_Body):
    """A class and its probability."""

    label: str = Field(examples=["7"])
    confidence: float = Field(description="Probability, 0 to 1", examples=[0.93])
    flagged: bool | None = Field(
        None, description="Whether it is at or above the label's threshold; only with VIT_API_THRESHOLDS"
    )


class FramePrediction(_Body):
    """The classification of one frame of an animation, or page of a document."""

    index: int = Field(description="Its position among all frames, from 0")
    time_ms: float | None = Field(description="When it is shown, from the start; null for pages, which have no time")
    predictions: list[LabelConfidence]


class PredictResponse(_Body):
    """The classification of one image."""

    predictions: list[LabelConfidence] = Field(
        description="The `top_k` most probable classes, most probable first; with `frames`, of any frame"
    )
    flagged: bool | None = Field(
        None, description="Whether any label of the model is flagged, shown or not; only with VIT_API_THRESHOLDS"
    )
    thresholds_digest: str | None = Field(
        None, description="Identifies the thresholds, see /info; only with VIT_API_THRESHOLDS"
    )
    frames: list[FramePrediction] | None = Field(None, description="The frames one by one; only with `frames` over 1")
    cached: bool = Field(description="Whether the result came from the cache, without running the model")
    processing_time_ms: float = Field(description="Time from the request's arrival to the response", examples=[3.1])
    model: str = Field(examples=["digits"])


class LabelScore(_Body):
    """A class and its score, in the form of Hugging Face's API."""

    label: str = Field(examples=["7"])
    score: float = Field(description="The model's output after `function_to_apply`", examples=[0.93])


class ErrorResponse(_Body):
    """Why a request failed."""

    error: str = Field(description="What is wrong and what to do")
    code: str = Field(description="A stable, machine-readable error code", examples=["bad_image"])
    request_id: str


class OpenAIError(_Body):
    """What is wrong, in OpenAI's form."""

    message: str = Field(description="What is wrong and what to do")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None
    code: str = Field(description="A stable, machine-readable error code", examples=["bad_image"])


class OpenAIErrorResponse(_Body):
    """Why a request failed, in OpenAI's form; the request id is in `x-request-id`."""

    error: OpenAIError


class HealthResponse(_Body):
    """Whether the server accepts requests."""

    status: str = Field(description="`ok`; `degraded` while a worker restarts; `starting`; `stopping`")
    model_loaded: bool = Field(description="Whether the server accepts requests")
    gpu_available: bool
    device: str = Field(description="Device of the model; several are separated by commas", examples=["cuda:0"])
    model: str
    workers: int
    workers_ready: int
    reason: str = Field("", description="Why the server is not ready, or degraded; empty otherwise")


class ModelHealth(_Body):
    """Whether a version of a model accepts requests."""

    model: str
    version: str
    ready: bool = Field(description="Whether this version accepts requests")
    traffic: float = Field(description="Percentage of the model's clients that this version is to serve")
    mirror_traffic: float = Field(0.0, description="Percentage of the other versions' images that it computes as well")
    workers: int
    workers_ready: int
    reason: str = Field("", description="What its workers lack; empty if all are ready")


class SeveralHealthResponse(HealthResponse):
    """Whether a server with several models accepts requests: whether the default one's versions with traffic do."""

    models: list[ModelHealth]


class WorkerInfo(_Body):
    """One inference worker."""

    state: str
    device: str
    device_name: str
    dtype: str
    engine: str = Field(description="How the model runs: eager, compile or cudagraph")
    startup_s: float = Field(description="Seconds from start to ready")
    batches: int = Field(description="Batches run since the server started")
    images: int = Field(description="Images in these batches")
    restarts: int = Field(description="How often the worker was restarted after a crash")


class SharedCacheInfo(_Body):
    """The cache tier in shared memory, in which each HTTP process of this server finds what the others computed."""

    entries: int = Field(description="Results in shared memory now")
    hits: int = Field(description="Images that this HTTP process had not cached and found in shared memory")
    rejected: int = Field(description="Entries read while they were overwritten, or incomplete; each counts as a miss")


class RedisInfo(_Body):
    """The cache tier that several servers share, as seen by this server's HTTP processes."""

    processes_connected: int = Field(description="HTTP processes that are connected to Redis")
    hits: int
    misses: int
    rejected: int = Field(description="Entries that were corrupt, invalid or of another format; each counts as a miss")
    failures: int = Field(description="Commands that failed or timed out")
    skipped: int = Field(description="Look-ups and writes skipped because Redis was slow, down or full")


class CacheInfo(_Body):
    """Cache statistics of all HTTP processes since the server started."""

    entries: int = Field(description="Results cached now by the HTTP processes, each for itself")
    hits: int = Field(description="Images served from the cache, including shared memory and Redis")
    misses: int = Field(description="Images that were neither cached nor in flight")
    coalesced: int = Field(description="Images that waited for an identical image in flight")
    shared: SharedCacheInfo
    redis: RedisInfo | None = Field(description="Null if there is no Redis")


class CacheCleared(_Body):
    """How many entries were cleared."""

    entries: int = Field(description="Entries in the HTTP processes of this server")
    redis_entries: int | None = Field(description="Entries in Redis; null if there is no Redis")


class InfoResponse(_Body):
    """What this server runs."""

    model: str
    revision: str | None
    labels: int = Field(description="Number of classes")
    multi_label: bool = Field(description="Whether each class has a probability of its own, by a sigmoid")
    input_shape: tuple[int, int, int] = Field(description="Height, width and channels of the model's input")
    workers: list[WorkerInfo]
    slots: dict[str, int] = Field(description="Queue slots by state, including free ones")
    cache: CacheInfo | None = Field(description="Null if caching is off")
    thresholds: dict[str, float] | None = Field(description="Score from which each label is flagged; null without")
    thresholds_digest: str | None = Field(description="Identifies the thresholds, as in each answer; null without")
    resizer: str = Field(description="The package that resizes images: cykooz-resizer or pillow")
    versions: dict[str, str]
    settings: dict[str, object] = Field(description="The settings in effect, without secrets")


class ServedModelInfo(_Body):
    """A version of a model of a server with several."""

    model: str
    version: str
    traffic: float = Field(description="Percentage of the model's clients that this version is to serve")
    mirror_traffic: float = Field(description="Percentage of the other versions' images that it computes as well")
    ready: bool
    revision: str | None
    labels: int = Field(description="Number of classes")
    multi_label: bool = Field(description="Whether each class has a probability of its own, by a sigmoid")
    input_shape: tuple[int, int, int] = Field(description="Height, width and channels of the model's input")
    workers: list[WorkerInfo]
    cache: CacheInfo | None = Field(description="Null if caching is off")
    thresholds: dict[str, float] | None = Field(description="Score from which each label is flagged; null without")
    thresholds_digest: str | None = Field(description="Identifies the thresholds, as in each answer; null without")


class SeveralInfoResponse(InfoResponse):
    """What a server with several models runs; the other fields are of the default model."""

    models: list[ServedModelInfo]
