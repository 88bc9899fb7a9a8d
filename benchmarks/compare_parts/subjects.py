"""The servers under comparison: how each is started, posted to, and read.

All run the same forward pass on the same checkpoint, in batches of up to 32, with one torch thread. The others decode
with Pillow (`baselines.pillow_api`). Ours and mosec have one process that runs batches and one per core for the rest;
Triton and LitServe, which decode where they run batches, have one instance per core.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.harness import machine, peers, servers, wrk
from benchmarks.harness.peer_environments import NotInstalled
from vit_api.load import client, client_processes, summary, uploads

OURS, STOCK = "this server", "stock LitServe"
MAX_BATCH_SIZE = 32
MAX_WAIT_MS = 5
_STALL_S = 3600
"""Longer than any pause, during which a worker makes no progress."""
_REQUEST_S = 60
_MAX_DIFFERENCE = 0.05
"""The tolerance of a probability. The JPEGs are noisy, so SIMD and Pillow resizes differ more than on a photo."""

_TRITON_HEADER = "inference-header-content-length"
Answer = dict[str, float]


@dataclass(frozen=True)
class Load:
    """What a server did in one turn.

    Attributes:
        load: The client's figures.
        cpu_s: CPU time of all the server's processes.
    """

    load: wrk.Load
    cpu_s: float

    @property
    def cpu_us(self) -> float | None:
        """CPU time per successful request in microseconds; None if none succeeded."""
        return self.cpu_s / self.load.successes * 1e6 if self.load.successes else None


def _read_predictions(response: httpx.Response) -> Answer:
    return {each["label"]: each["confidence"] for each in response.json()["predictions"]}


@dataclass(frozen=True)
class Subject:
    """A server under comparison, with the form of its requests and responses."""

    name: str
    server: servers.Server
    path: str = "/predict"
    is_form: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[httpx.Response], Answer] = _read_predictions

    def load(self, upload: bytes, connections: int, seconds: float, warm_up_s: float) -> Load:
        """Load it with unique uploads while all others are paused, after a warm-up that does not count."""
        post = self._post_with_wrk if wrk.is_installed() else self._post_with_bundled
        with self.server.turn():
            post(upload, connections, warm_up_s)
            self.server.settle()
            before = self.server.cpu_seconds()
            load = post(upload, connections, seconds)
            return Load(load, self.server.cpu_seconds() - before)

    def answer(self, upload: bytes) -> Answer:
        """Return the probabilities by label in its answer, while all others are paused.

        Raises:
            httpx.HTTPStatusError: It answered with an error.
        """
        body, content_type = self._body(upload)
        headers = {"content-type": content_type, **self.headers}
        with self.server.turn():
            url = self.server.url + self.path
            response = httpx.post(url, content=body, headers=headers, timeout=_REQUEST_S, **servers.PLAIN_HTTP)
        return self.read(response.raise_for_status())

    def _body(self, upload: bytes) -> tuple[bytes, str]:
        return (uploads.as_form(upload), uploads.FORM) if self.is_form else (upload, uploads.RAW)

    def _post_with_wrk(self, upload: bytes, connections: int, seconds: float) -> wrk.Load:
        body, content_type = self._body(wrk.marked(upload))
        url = self.server.url + self.path
        return wrk.post(url, body, content_type, connections=connections, seconds=seconds, headers=self.headers)

    def _post_with_bundled(self, upload: bytes, connections: int, seconds: float) -> wrk.Load:
        plan = client.LoadPlan(
            self.server.url + self.path,
            (upload,),
            concurrency=connections,
            warm_up_s=0,
            seconds=seconds,
            is_form=self.is_form,
            headers=self.headers,
        )
        result = summary.summarise(client_processes.run(plan), seconds)
        latency, errors = result["latency_ms"], sum(result["errors"].values())
        p50, p99 = latency.get("p50", 0.0), latency.get("p99", 0.0)
        return wrk.Load(result["requests"], seconds, errors, p50, p99, errors)


def _read_tensors(response: httpx.Response) -> Answer:
    """Read Triton's answer to a raw request: JSON, then the labels with their lengths, then float32."""
    length = int(response.headers[_TRITON_HEADER])
    sizes = [output["parameters"]["binary_data_size"] for output in json.loads(response.content[:length])["outputs"]]
    labels, confidences = response.content[length : length + sizes[0]], response.content[length + sizes[0] :]
    names = []
    while labels:
        (size,) = struct.unpack_from("<I", labels)
        names.append(labels[4 : 4 + size].decode())
        labels = labels[4 + size :]
    return dict(zip(names, (value for (value,) in struct.iter_unpack("<f", confidences)), strict=True))


_TRITON: dict[str, Any] = {
    "path": f"/v2/models/{peers.TRITON_MODEL}/infer",
    "headers": {_TRITON_HEADER: "0"},  # the whole body is the tensor
    "read": _read_tensors,
}
_POSTED_TO: dict[str, dict[str, Any]] = {"Triton": _TRITON, "mosec": {"path": "/inference"}}


def available(*, may_install: bool) -> tuple[list[peers.Peer], dict[str, str]]:
    """Return the peers that can run here, and the reason for each of the others, by name.

    Args:
        may_install: Whether to create missing environments.
    """
    found, missing = [], {}
    for peer in peers.all_peers():
        try:
            peer.require(may_install=may_install)
            found.append(peer)
        except NotInstalled as error:
            missing[peer.name] = str(error)
    return found, missing


def versions(of: list[peers.Peer]) -> dict[str, str]:
    """Return the versions of the compared servers, by name."""
    described = machine.describe()
    ours = {OURS: f"commit {described['commit']}", STOCK: f"litserve {described['versions']['litserve']}"}
    return ours | {peer.name: peer.version() for peer in of}


@contextlib.contextmanager
def running(model: str, dtype: str, of: list[peers.Peer]) -> Iterator[list[Subject]]:
    """Run the servers under comparison, all paused."""
    settings = {"cache_size": 0, "max_batch_size": MAX_BATCH_SIZE, "max_wait_ms": MAX_WAIT_MS, "cpu_threads": 1}
    settings |= {"worker_stall_s": _STALL_S, "request_timeout_s": _REQUEST_S}
    workers = len(os.sched_getaffinity(0))
    stock_options = {"dtype": dtype, "decoder": "pillow", "workers": workers}
    with contextlib.ExitStack() as stack:
        found = [Subject(OURS, stack.enter_context(servers.vit_api(model=model, dtype=dtype, **settings)))]
        found[0].server.pause()
        stock = stack.enter_context(servers.baseline("stock_litserve", "/health", model, **stock_options))
        stock.pause()
        found.append(Subject(STOCK, stock, is_form=True))
        for peer in of:
            server = stack.enter_context(peer.running(model, dtype))
            server.pause()
            found.append(Subject(peer.name, server, **_POSTED_TO[peer.name]))
        yield found


def check_answers(of: list[Subject], upload: bytes) -> None:
    """Compare the answers of all servers, since figures of a server with other results would be meaningless.

    Raises:
        RuntimeError: A server's answer differs from ours by more than 0.05.
    """
    ours, *others = of
    expected = ours.answer(upload)
    for subject in others:
        got = subject.answer(upload)
        if set(got) != set(expected) or any(abs(p - expected[label]) > _MAX_DIFFERENCE for label, p in got.items()):
            raise RuntimeError(f"{subject.name} answers {got}, and {ours.name} {expected}.")
