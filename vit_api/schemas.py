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
    cached: bool = Field(description="Whether it was answered without running the model")
    processing_time_ms: float = Field(description="From the request's arrival to the answer", examples=[3.1])
    model: str = Field(examples=["digits"])


class ErrorResponse(_Body):
    """Why a request got no answer."""

    error: str = Field(description="What is wrong and what to do")
    code: str = Field(description="A stable name for programs", examples=["bad_image"])
    request_id: str


class HealthResponse(_Body):
    """Whether the server takes images."""

    status: str = Field(description="`ok`, or `starting` while a worker loads the model")
    model_loaded: bool = Field(description="Whether every worker is ready")
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


class InfoResponse(_Body):
    """What runs here."""

    model: str
    revision: str | None
    labels: int = Field(description="How many classes the model knows")
    input_shape: tuple[int, int, int] = Field(description="Height, width and channels that the model sees")
    workers: list[WorkerInfo]
    versions: dict[str, str]
    settings: dict[str, object] = Field(description="As started, without secrets")
