"""The routes of the Open Inference Protocol, with a fake classifier and without a server."""

from __future__ import annotations

import asyncio
import base64
import math
import time
import tracemalloc
from typing import Any

import httpx
import pytest

from tests.support.door_transport import DoorTransport
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.errors import Overloaded, UploadTooLarge, ViTError
from vit_api.ipc.batch_stats import BatchStats
from vit_api.ipc.cache_board import CacheBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import AnswerRecord, Prediction, Status
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus
from vit_api.metrics import COUNTED
from vit_api.urgency import Urgency
from vit_api.web.application import create_app
from vit_api.web.bodies import BodyMemory
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.hot_calls import CallContext, HotCall
from vit_api.web.observers.exchange import Exchange
from vit_api.web.protocols.open_inference.inputs import Inputs
from vit_api.web.protocols.open_inference.model_info import ModelInfo, Statistics
from vit_api.web.protocols.open_inference.outputs import Outputs
from vit_api.web.protocols.open_inference.routes import OpenInferenceRoutes
from vit_api.web.protocols.open_inference.served_model import ServedModel
from vit_api.web.protocols.open_inference.tensors import pack_bytes
from vit_api.web.requests import Request, RequestLimits
from vit_api.web.responses import Response, to_json
from vit_api.web.routes import HotRoute

pytestmark = pytest.mark.anyio

_NAME = "google/vit-base-patch16-224"
_QUOTED = _NAME.replace("/", "%2F")
_TOP = Prediction((1, 0), (math.log(3), 0.0), 0.75)
_FULL = Overloaded("planted", 7)
_MAX_BODY_BYTES = 1000
_MAX_UPLOAD_BYTES = 100


def _inputs(max_upload_bytes: int) -> Inputs:
    return Inputs(load_checkpoint("digits").preprocessing, max_images=4, max_upload_bytes=max_upload_bytes)


class Scripted:
    """A fake classifier whose result depends on the upload, and the application around it."""

    def __init__(self, devices: tuple[str, ...] = ("cpu",), *, has_cache: bool = True) -> None:
        self.board = WorkerBoard(1)
        self.batch_stats = BatchStats(2, 8)
        self.asked: list[tuple[float, Urgency]] = []
        self.cache = CacheBoard(1) if has_cache else None
        self.counts = MetricsBoard(["http-0"], COUNTED)
        self.exchanges: list[Exchange] = []
        self.max_body_bytes = _MAX_BODY_BYTES
        self.inputs = _inputs(max_upload_bytes=_MAX_UPLOAD_BYTES)
        self.outputs = Outputs(_NAME, ["a", "b"])
        self.model = ModelInfo(
            _NAME,
            self.inputs.specs(),
            self.outputs.specs(),
            devices=devices,
            workers_per_device=2,
            max_batch_size=8,
            max_wait_ms=2.5,
            max_images=4,
            has_cache=has_cache,
        )

    def routes(self) -> OpenInferenceRoutes:
        """Return the routes, for one event loop."""
        anything: Any = self
        model = ServedModel(
            anything,
            self.inputs,
            self.outputs,
            self.model,
            statistics=Statistics(_NAME, self.counts, self.batch_stats, self.cache),
            worker_board=self.board,
            max_body_bytes=self.max_body_bytes,
        )
        return OpenInferenceRoutes([model], self.board)

    async def classify(self, upload: bytes, deadline: float, **options: Any) -> ClassifierResult:
        self.asked.append((deadline - time.monotonic(), options["caller"].urgency))
        if upload == b"cached":
            return ClassifierResult(CachedPrediction(_TOP), Source.HIT)
        if upload == b"full":
            raise _FULL
        return ClassifierResult(
            CachedPrediction(_TOP), Source.MISS, AnswerRecord(0, 1, Status.OK, _TOP, 1, 0.001, 0.002)
        )

    def observe(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request through the application."""

        async def nothing() -> None:
            pass

        app = create_app(
            self.routes().routes(),
            [self],
            start=nothing,
            stop=nothing,
            request_limits=RequestLimits(max_pending_bytes=10_000, request_timeout_s=30),
        )

        async with httpx.AsyncClient(transport=DoorTransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)

    async def infer(self, *uploads: bytes, path: str = f"/v2/models/{_NAME}/infer") -> httpx.Response:
        """Send image files to the model."""
        data = [base64.b64encode(upload).decode() for upload in uploads]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}
        return await self.send("POST", path, json={"inputs": [tensor], "outputs": [{"name": "labels"}]})


@pytest.mark.parametrize("name", [_NAME, _QUOTED])
@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_a_models_name_may_have_slashes(name: str, version: str) -> None:
    """They may be percent-encoded or not, in every path."""
    scripted = Scripted()
    scripted.board.publish(0, WorkerStatus(WorkerState.READY, "cpu", "CPU", "float32"))
    start = f"/v2/models/{name}{version}"
    for end in ("", "/ready", "/config"):
        assert (await scripted.send("GET", start + end)).json()["name"] == _NAME
    assert (await scripted.send("GET", f"{start}/stats")).json()["model_stats"][0]["name"] == _NAME
    assert (await scripted.infer(b"x", path=f"{start}/infer")).json()["outputs"][0]["data"] == ["b", "a"]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/vit-base-patch16-224",
        f"/v2/models/{_NAME}/versions/2/config",
        f"/v2/models/{_NAME}/x",
        "/v2/models/",
    ],
)
async def test_an_unknown_model_or_path_is_not_found(path: str) -> None:
    """The 404 has the body that all errors have."""
    response = await Scripted().send("GET", path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_headers_report_the_source() -> None:
    """A request with one image has the headers of `/predict`; observers see every image, at the protocol's endpoint."""
    scripted = Scripted()
    assert (await scripted.infer(b"cached")).headers["x-cache"] == "hit"
    assert (await scripted.infer(b"new")).headers["x-queue-time-ms"] == "1.000"
    assert "x-cache" not in (await scripted.infer(b"cached", b"new")).headers
    assert [len(exchange.outcomes) for exchange in scripted.exchanges] == [1, 1, 2]
    assert {exchange.request.endpoint for exchange in scripted.exchanges} == {"/v2/models/infer"}


@pytest.mark.parametrize(
    ("uploads", "start"),
    [
        pytest.param([b"full"], "planted", id="the only image"),
        pytest.param([b"x", b"full"], "Element 1 of 'image': planted", id="one of several"),
        pytest.param([b"full", b"full"], "planted", id="all"),
    ],
)
async def test_overload_has_retry_after(uploads: list[bytes], start: str) -> None:
    """The whole request is a 503, since the protocol has no partial responses."""
    response = await Scripted().infer(*uploads)
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert response.json()["error"].startswith(start)
    assert response.json()["code"] == "overloaded"
    assert _FULL.message == "planted"  # other requests may share the instance


def test_about_returns_a_copy_of_the_error() -> None:
    """This holds for each class of error, whatever its constructor takes."""
    for kind in ViTError.__subclasses__():
        error = kind.__new__(kind, "m")
        error.message = "m"
        same = error.about("this")
        assert (type(same), same.message, str(same), error.message) == (kind, "this: m", "this: m", "m")


async def test_a_body_over_the_limit_is_rejected() -> None:
    """The response is a 413, as for any other upload."""
    response = await Scripted().infer(*[b"x" * 100] * 4, b"x" * _MAX_BODY_BYTES)
    assert (response.status_code, response.json()["code"]) == (413, "upload_too_large")


async def _infer_directly(scripted: Scripted, chunks: list[bytes], **headers: str) -> Response:
    """Call the handler with a request whose body is read from `chunks`."""
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"method": "POST", "path": "/v2", "query_string": b"", "headers": sent}

    request = Request(scope, b"id", arrived_at=time.monotonic(), timeout_s=30)
    (route, *_) = (route for route in scripted.routes().routes() if isinstance(route, HotRoute))
    call = HotCall(request, route, CallContext(BodyMemory(scripted.max_body_bytes), 30, []))
    await call.admit()
    body = b""
    while chunks:
        body += chunks.pop(0)
        call.receive(len(body) - request.received_bytes)
    request.body, body = body, b""
    return await route.handler(request)


async def test_a_raw_body_has_the_limit_of_an_upload() -> None:
    """Reading stops at that limit, although other bodies may be longer."""
    chunks = [b"x" * _MAX_UPLOAD_BYTES, b"x", b"never read"]
    with pytest.raises(UploadTooLarge) as raised:
        await _infer_directly(Scripted(), chunks, inference_header_content_length="0")
    assert raised.value.message == UploadTooLarge(_MAX_UPLOAD_BYTES).message
    assert chunks == [b"never read"]


class _Measured(Scripted):
    """Waits until no more memory is held than allowed, records how much that is, then classifies."""

    held_bytes = 0
    max_held_bytes = 0

    async def classify(self, upload: bytes, deadline: float, **options: Any) -> ClassifierResult:
        deadline_at = time.monotonic() + 10  # the thread that parsed the body may release it a little later
        while (held := tracemalloc.get_traced_memory()[0]) > self.max_held_bytes and time.monotonic() < deadline_at:
            await asyncio.sleep(0.01)
        self.held_bytes = held
        return await super().classify(upload, deadline, **options)


@pytest.mark.parametrize("form", ["file", "binary", "json"])
async def test_a_body_is_released_once_it_is_parsed(form: str) -> None:
    """Only the uploads are held until the response, in whichever form they arrived."""
    size = 2**20
    scripted = _Measured()
    scripted.inputs = _inputs(max_upload_bytes=size)
    scripted.max_body_bytes = 2 * size
    scripted.max_held_bytes = size * 5 // 4
    tracemalloc.start()
    try:
        chunks, headers = _large_request(form, size)
        assert (await _infer_directly(scripted, chunks, **headers)).status == 200
    finally:
        tracemalloc.stop()
    assert size <= scripted.held_bytes <= scripted.max_held_bytes


def _large_request(form: str, size: int) -> tuple[list[bytes], dict[str, str]]:
    """Return a body with one upload of `size` bytes, and its headers."""
    if form == "file":
        return [bytes(size)], {"inference_header_content_length": "0"}
    tensor: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}
    if form == "json":
        return [to_json({"inputs": [tensor | {"data": [base64.b64encode(bytes(size)).decode()]}]})], {}
    packed = pack_bytes([bytes(size)])
    header = to_json({"inputs": [tensor | {"parameters": {"binary_data_size": len(packed)}}]})
    return [header + packed], {"inference_header_content_length": str(len(header))}


async def test_before_a_worker_is_ready() -> None:
    """The server is live but not ready, with `Retry-After`."""
    scripted = Scripted()
    assert (await scripted.send("GET", "/v2/health/live")).status_code == 200
    for path in ("/v2/health/ready", f"/v2/models/{_NAME}/ready"):
        response = await scripted.send("GET", path)
        assert (response.status_code, response.json()["code"], response.headers["retry-after"]) == (
            503,
            "not_ready",
            "5",
        )
    (entry,) = (await scripted.send("POST", "/v2/repository/index")).json()
    assert entry["state"] == "UNAVAILABLE"


@pytest.mark.parametrize("is_ready", [True, False])
async def test_probes_may_use_head(is_ready: bool) -> None:
    """HEAD returns the status of GET, as at /health/ready."""
    scripted = Scripted()
    if is_ready:
        scripted.board.publish(0, WorkerStatus(WorkerState.READY, "cpu", "CPU", "float32"))
    assert (await scripted.send("HEAD", "/v2/health/live")).status_code == 200
    assert (await scripted.send("HEAD", "/v2/health/ready")).status_code == (200 if is_ready else 503)


async def test_the_configuration_has_devices_and_batching() -> None:
    """It lists the GPUs, the workers on each, and the batching delay."""
    config = (await Scripted(("cuda:0", "cuda:1"), has_cache=False).send("GET", f"/v2/models/{_NAME}/config")).json()
    assert config["instance_group"] == [{"name": _NAME, "count": 2, "kind": "KIND_GPU", "gpus": [0, 1]}]
    batching = config["dynamic_batching"]
    assert batching["max_queue_delay_microseconds"] == 2500
    assert (batching["priority_levels"], batching["default_priority_level"]) == (2, 1)
    assert (config["max_batch_size"], config["response_cache"]) == (8, {"enable": False})


async def test_without_a_cache_its_counts_are_zero() -> None:
    """perf_analyzer reads every field."""
    (stats,) = (await Scripted(has_cache=False).send("GET", "/v2/models/stats")).json()["model_stats"]
    assert stats["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert stats["inference_stats"]["cache_miss"] == {"count": 0, "ns": 0}


async def test_the_statistics_are_those_of_triton() -> None:
    """An image counts the whole time of its batch, as a request does in Triton; a batch counts once for its size."""
    scripted = Scripted()
    scripted.batch_stats.add(0, 4, (0.001, 0.002, 0.003), 1000.0)
    scripted.batch_stats.add(1, 4, (0.001, 0.002, 0.003), 1234.5678)
    scripted.batch_stats.add(1, 1, (0.5, 0.25, 0.125), 1200.0)
    (stats,) = (await scripted.send("GET", "/v2/models/stats")).json()["model_stats"]
    assert (stats["inference_count"], stats["execution_count"], stats["last_inference"]) == (9, 3, 1200000)
    assert stats["inference_stats"]["compute_input"] == {"count": 9, "ns": 508_000_000}
    assert stats["inference_stats"]["compute_infer"] == {"count": 9, "ns": 266_000_000}
    assert stats["inference_stats"]["compute_output"] == {"count": 9, "ns": 149_000_000}
    one, four = stats["batch_stats"]
    assert one == {
        "batch_size": 1,
        "compute_input": {"count": 1, "ns": 500_000_000},
        "compute_infer": {"count": 1, "ns": 250_000_000},
        "compute_output": {"count": 1, "ns": 125_000_000},
    }
    assert (four["batch_size"], four["compute_infer"]) == (4, {"count": 2, "ns": 4_000_000})
    assert (stats["response_stats"], stats["memory_usage"]) == ({}, [])


_TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(b"x").decode()]}


@pytest.mark.parametrize(
    ("parameters", "headers", "urgency", "max_s"),
    [
        pytest.param({}, {}, Urgency.NORMAL, 30, id="neither"),
        pytest.param({"priority": 1}, {}, Urgency.NORMAL, 30, id="the first priority"),
        pytest.param({"priority": 2}, {}, Urgency.LOW, 30, id="the second"),
        pytest.param({"priority": 2**64 - 1}, {}, Urgency.LOW, 30, id="the last"),
        pytest.param({"priority": 0}, {"priority": "u=7"}, Urgency.LOW, 30, id="by default, what the header says"),
        pytest.param({"priority": 1}, {"priority": "u=7"}, Urgency.NORMAL, 30, id="rather than the header"),
        pytest.param({"timeout": 2_000_000}, {}, Urgency.NORMAL, 2, id="two seconds"),
        pytest.param({"timeout": 0}, {}, Urgency.NORMAL, 30, id="no timeout"),
        pytest.param({"timeout": 10**15}, {}, Urgency.NORMAL, 30, id="longer than the server's"),
        pytest.param({"timeout": 9_000_000}, {"prefer": "wait=3"}, Urgency.NORMAL, 3, id="the shorter one"),
    ],
)
async def test_request_parameters(
    parameters: dict[str, int], headers: dict[str, str], urgency: Urgency, max_s: float
) -> None:
    """Triton's `priority` and `timeout`, in microseconds, and the header fields that mean the same."""
    scripted = Scripted()
    body = {"inputs": [_TENSOR], "parameters": parameters}
    response = await scripted.send("POST", f"/v2/models/{_NAME}/infer", json=body, headers=headers)
    assert response.status_code == 200, response.text
    ((left_s, asked),) = scripted.asked
    assert asked is urgency
    assert max_s - 1 < left_s <= max_s


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        pytest.param({"sequence_id": 7}, "'sequence_id'", id="unknown"),
        pytest.param(
            {"triton_enable_empty_final_response": True}, "'triton_enable_empty_final_response'", id="Triton's"
        ),
        pytest.param({"priority": -1}, "'priority'", id="negative priority"),
        pytest.param({"priority": "high"}, "'priority'", id="text"),
        pytest.param({"priority": True}, "'priority'", id="boolean"),
        pytest.param({"timeout": 1.5}, "'timeout'", id="fraction"),
        pytest.param({"timeout": 2**64}, "'timeout'", id="too large"),
        pytest.param({"timeout": None}, "'timeout'", id="null"),
    ],
)
async def test_wrong_request_parameters(parameters: dict[str, Any], named: str) -> None:
    """They are refused, by name."""
    body = {"inputs": [_TENSOR], "parameters": parameters}
    response = await Scripted().send("POST", f"/v2/models/{_NAME}/infer", json=body)
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert named in response.json()["error"]
