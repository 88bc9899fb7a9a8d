"""A fake of the API for Inference Endpoints on the loopback interface, with the endpoints that `huggingface_hub` uses.

Paths, bodies and states are those of `huggingface_hub` 2.4.0 (hf_api.py, _inference_endpoints.py). What it does not say
is from reports of its users: the texts of 404 (MantisAI/hugie, issue 31), of a full quota (409) and of requests to a
paused Endpoint (elastic/elasticsearch, issue 112033).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar

from tests.support.fake_hugging_face import TOKEN, FakeHuggingFace, HubHandler, Response

NAME = "org/classifier"
MAIN = "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3"
"""The commit that the branch `main` of each model is at."""
_HARDWARE = {("gpu", "nvidia-t4", "x1"), ("gpu", "nvidia-l4", "x1"), ("cpu", "intel-spr", "x2")}
_COMPUTE = {"accelerator", "instanceType", "instanceSize"}


class FakeEndpoints(FakeHuggingFace):
    """The API with the Endpoints of one namespace.

    Attributes:
        endpoints: The Endpoints by name, as the API returns them.
        running: The `model` of each that the replicas run.
        stages: The states after each of the next changes, in order.
        application: Returns the application's status and body for a path, given the `model` that runs.
        sent: The bodies of all changes.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.running: dict[str, dict[str, Any]] = {}
        self.stages: deque[list[str]] = deque()
        self.pending: deque[str] = deque()
        self.application: Callable[[str, dict[str, Any]], Response] = classify
        self.sent: list[dict[str, Any]] = []
        self.quota = 2

    @property
    def api(self) -> str:
        """The address of the API; `huggingface_hub` takes it from a constant."""
        return f"{self.endpoint}/v2"

    @property
    def one(self) -> dict[str, Any]:
        """The Endpoint of the tests."""
        return self.endpoints[NAME.partition("/")[2]]

    @property
    def state(self) -> str:
        """Its state."""
        return str(self.one["status"]["state"])

    def add(self, image: dict[str, Any], state: str = "running", **fields: Any) -> None:
        """Add the Endpoint of the tests, with what its replicas run."""
        model = {"repository": "org/model", "framework": "custom", "task": "image-classification", "revision": MAIN}
        model |= {"image": image, "env": {"VIT_API_TOP_K": "3"}}
        scaling = {"minReplica": 1, "maxReplica": 4, "scaleToZeroTimeout": 60, "measure": {"pendingRequests": 8.0}}
        compute = {"accelerator": "gpu", "instanceType": "nvidia-l4", "instanceSize": "x1", "scaling": scaling}
        name = NAME.partition("/")[2]
        self.endpoints[name] = _described(name, {"type": "authenticated", "model": model, "compute": compute} | fields)
        self.running[name] = deepcopy(model)
        self.enter(self.endpoints[name], state)

    def enter(self, endpoint: dict[str, Any], state: str) -> None:
        """Put an Endpoint into a state."""
        status = endpoint["status"]
        status |= {"state": state, "message": f"Endpoint is {state}", "readyReplica": int(state == "running")}
        if state == "running":
            status["url"] = self.url
            self.running[endpoint["name"]] = deepcopy(endpoint["model"])

    def advance(self, endpoint: dict[str, Any]) -> None:
        """Go to the next state."""
        if self.pending:
            self.enter(endpoint, self.pending.popleft())

    def respond(self, path: str, headers: dict[str, str]) -> Response:
        """Return the proxy's response, or that of the replica behind it."""
        endpoint = self.one
        if endpoint["type"] == "authenticated" and headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if self.state == "paused":
            return 400, "Bad Request: Invalid state"
        if self.state == "scaledToZero" and not self.pending:
            self.pending = deque(["initializing", "running"])
        if not endpoint["status"]["readyReplica"] and self.state != "updating":
            self.advance(endpoint)
            return 503, {"error": "503 Service Unavailable"}
        return self.application(path, self.running[endpoint["name"]])


def classify(path: str, _: dict[str, Any]) -> Response:
    """Respond as the server does."""
    return 200, {"predictions": [{"label": "7", "confidence": 0.9}]} if path == "/predict" else {"status": "ready"}


def _described(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    by = {"id": "6273f303f6d63a28483fde12", "name": "org"}
    times = {"createdAt": "2026-11-01T12:41:53.263078506Z", "updatedAt": "2026-11-01T12:41:53.263079138Z"}
    status = {**times, "createdBy": by, "updatedBy": by, "private": None, "targetReplica": 1, "readyReplica": 0}
    described = {"name": name, "accountId": None, "provider": {"vendor": "aws", "region": "us-east-1"}, "tags": []}
    return described | {"healthRoute": "/health", "status": status} | fields


def _problem(body: dict[str, Any], *, is_new: bool) -> str | None:
    """Return what the API rejects in a body, or None."""
    model, compute = body.get("model", {}), body.get("compute", {})
    scaling, image = compute.get("scaling", {}), model.get("image", {})
    if is_new and not {"repository", "framework", "image"} <= model.keys():
        return "missing field in `model`"
    if "task" in model and model["task"] is None:
        return "invalid type: null, expected a string for key `model.task`"
    if image and (len(image) != 1 or ("url" not in next(iter(image.values())) and "huggingface" not in image)):
        return "missing field `url`"
    if compute.keys() & _COMPUTE and tuple(compute.get(key) for key in sorted(_COMPUTE)) not in {
        (accelerator, size, kind) for accelerator, kind, size in _HARDWARE
    }:
        return "Compute instance not available"
    if scaling and scaling.get("minReplica", 0) > scaling.get("maxReplica", 1):
        return "minReplica must not be greater than maxReplica"
    return None


class _Handler(HubHandler):
    server: FakeEndpoints
    calls: ClassVar[list[tuple[str, Callable[..., None]]]] = []
    not_found = {"error": "Not Found"}, {}

    def all(self, body: bytes) -> None:
        hub = self.server
        wanted = json.loads(body)
        if wanted["name"] in hub.endpoints:
            return self.answer(409, {"error": f"Conflict: Endpoint '{wanted['name']}' already exists"})
        if len(hub.endpoints) >= hub.quota:
            return self.answer(409, {"error": "Conflict: Quota exceeded: 2 of 2 endpoints are used"})
        if problem := _problem(wanted, is_new=True):
            return self.answer(400, {"error": f"Bad Request: {problem}"})
        hub.sent.append(deepcopy(wanted))
        endpoint = hub.endpoints[wanted["name"]] = _described(wanted["name"], wanted)
        self.normalise(endpoint)
        hub.enter(endpoint, "pending")
        hub.pending = deque(hub.stages.popleft() if hub.stages else ["initializing", "running"])
        return self.answer(202, self.public_view(endpoint))

    def one(self, body: bytes, name: str) -> None:
        hub = self.server
        endpoint = hub.endpoints.get(name)
        if endpoint is None:
            return self.answer(404, {"error": f"Endpoint '{name}' not found"})
        if self.command == "GET":
            hub.advance(endpoint)
            return self.answer(200, self.public_view(endpoint))
        wanted = json.loads(body)
        if problem := _problem(wanted, is_new=False):
            return self.answer(400, {"error": f"Bad Request: {problem}"})
        hub.sent.append(deepcopy(wanted))
        scaling = wanted.get("compute", {}).pop("scaling", {})
        endpoint["compute"]["scaling"] |= scaling
        for part, fields in wanted.items():
            endpoint[part] |= fields
        self.normalise(endpoint)
        # The state is still that of before; the first poll may be, too.
        hub.pending = deque(hub.stages.popleft() if hub.stages else [hub.state, "updating", "running"])
        return self.answer(200, self.public_view(endpoint))

    def act(self, _: bytes, name: str, action: str) -> None:
        hub = self.server
        endpoint = hub.endpoints[name]
        if action == "resume" and endpoint["status"]["state"] == "running":
            return self.answer(400, {"error": f"Bad Request: Endpoint '{name}' is already running"})
        hub.enter(endpoint, {"pause": "paused", "scale-to-zero": "scaledToZero", "resume": "initializing"}[action])
        return self.answer(200, self.public_view(endpoint))

    def normalise(self, endpoint: dict[str, Any]) -> None:
        model = endpoint["model"]
        model["revision"] = MAIN if model.get("revision") in (None, "main") else model["revision"]

    def public_view(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        """Return an Endpoint without what the API keeps to itself."""
        shown = deepcopy(endpoint)
        shown["model"]["secrets"] = dict.fromkeys(shown["model"].get("secrets", {}), "")
        for options in shown["model"]["image"].values():
            if "credentials" in options:
                options["credentials"] = {"username": options["credentials"]["username"]}
        return shown


_PATH = f"/v2/endpoint/{NAME.partition('/')[0]}"
_Handler.calls += [
    (_PATH, _Handler.all),
    (f"{_PATH}/([^/]+)", _Handler.one),
    (f"{_PATH}/([^/]+)/(pause|resume|scale-to-zero)", _Handler.act),
]
