"""The configurations of nginx and HAProxy, with the real proxies in front of real servers, under load."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.harness import servers
from benchmarks.harness.process_group import kinds
from benchmarks.harness.servers import free_port
from tests.support import forked_servers
from tests.support.server import PLAIN_HTTP, ROOT, environment, wait_until

REQUESTS = int(os.environ.get("PROXY_REQUESTS", "1000"))
"""The fewest requests of each load; 100,000 take minutes on two cores."""
TURN_S = 1
CONNECTIONS = 16
THINK_MS = 20
"""Pause of each connection between requests during a roll-out: otherwise no core is left for the new servers."""
DRAIN_DELAY_S = 3
IMAGE = ROOT / "examples" / "digit-7.png"
LIMIT = 100_000_000
"""Images an hour, of each client."""


@dataclass
class Proxy:
    """A running proxy, with the ports of the servers behind it."""

    url: str
    ports: Sequence[int]


def nginx_command(folder: Path, port: int, ports: Sequence[int]) -> list[str]:
    """Write the configuration for these ports, and return the command that runs it in the foreground."""
    site = (ROOT / "deploy/nginx/vit-api.conf").read_text()
    first, *others = ports
    site = site.replace("listen 80;", f"listen 127.0.0.1:{port};").replace("7860", str(first), 1)
    (commented,) = re.findall(r" *# server 127.0.0.1:7861.*\n", site)
    listed = [commented.replace("# ", "").replace("7861", str(other)) for other in others]
    site = site.replace(commented, "".join(listed))
    (folder / "vit-api.conf").write_text(site)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root; " if os.geteuid() == 0 else ""  # nginx would give up its rights, and could not read the folder
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {temporary} include {folder}/vit-api.conf; }}\n"
    )
    return ["nginx", "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def haproxy_command(folder: Path, port: int, ports: Sequence[int]) -> list[str]:
    """Write the configuration for these ports, and return the command that runs it in the foreground."""
    config = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    first, *others = ports
    config = config.replace("maxconn 8000", "maxconn 200")  # each takes two file descriptors, which may be few here
    config = config.replace("bind :80", f"bind 127.0.0.1:{port}").replace("127.0.0.1:7860", f"127.0.0.1:{first}")
    listed = [f"server vit-api-{number} 127.0.0.1:{other}" for number, other in enumerate(others, 2)]
    config = config.replace("# server vit-api-2 127.0.0.1:7861", "\n    ".join(listed))
    (folder / "haproxy.cfg").write_text(config)
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


COMMANDS = {"nginx": nginx_command, "haproxy": haproxy_command}


@contextlib.contextmanager
def server_on(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    variables = environment(
        model="digits",
        host="127.0.0.1",
        port=port,
        api_servers=1,
        cpu_threads=1,
        drain_delay_s=DRAIN_DELAY_S,
        trusted_proxies="127.0.0.1",
        rate_limit=f"{LIMIT}/hour",
    )
    command = [sys.executable, str(ROOT / "server.py")]
    url = f"http://127.0.0.1:{port}/health"
    with servers.running(command, url, cwd=ROOT, environment=variables, log=log, start=forked_servers.start) as process:
        yield process


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Run two servers, and return their ports."""
    folder = tmp_path_factory.mktemp("servers")
    first, second = free_port(), free_port()
    with server_on(first, folder / "first.log"), server_on(second, folder / "second.log"):
        yield first, second


@contextlib.contextmanager
def running_proxy(name: str, ports: Sequence[int], folder: Path) -> Iterator[Proxy]:
    if shutil.which(name) is None:
        pytest.skip(f"needs Debian's package {name}")
    port = free_port()
    command = COMMANDS[name](folder, port, ports)
    url = f"http://127.0.0.1:{port}"
    with servers.running(command, url + "/health", cwd=folder, log=folder / "log"):
        yield Proxy(url, ports)


@pytest.fixture(params=COMMANDS)
def proxy(request: pytest.FixtureRequest, ports: tuple[int, int], tmp_path: Path) -> Iterator[Proxy]:
    with running_proxy(request.param, ports, tmp_path) as running:
        yield running


class Load:
    """A load on a proxy, by several connections, in turns of wrk.

    Args:
        proxy: The proxy.
        folder: For the script.
        image: What is posted.
        think_ms: Pause of each connection between two requests.

    Attributes:
        requests: Number of requests so far, each of which got a 200.
        turns: Number of turns so far.
    """

    def __init__(self, proxy: Proxy, folder: Path, image: Path = IMAGE, think_ms: int = 0) -> None:
        script = folder / f"{proxy.url.rpartition(':')[2]}.lua"
        pause = f" function delay() return {think_ms} end" if think_ms else ""
        post = f'local file = io.open("{image}", "rb") wrk.body = file:read("*a") wrk.method = "POST"'
        script.write_text(post + pause)
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{TURN_S}s", "--timeout", "30s", "-s", str(script)]
        self._command = [*command, proxy.url + "/predict"]
        self.requests = 0
        self.turns = 0

    def turn(self) -> None:
        """Post for `TURN_S` seconds."""
        turn = subprocess.run(self._command, capture_output=True, text=True, timeout=TURN_S + 60, check=True)
        report = turn.stdout
        assert "Non-2xx" not in report, report
        assert "Socket errors" not in report, report
        requests = re.search(r"(\d+) requests in", report)
        assert requests is not None
        self.requests += int(requests[1])
        self.turns += 1

    @property
    def is_enough(self) -> bool:
        """Whether there were `REQUESTS`."""
        return self.requests >= REQUESTS

    def keep_up(self, is_over: threading.Event) -> None:
        """Post until the event, and until there were enough requests."""
        self.turn()
        while not is_over.is_set() or not self.is_enough:
            self.turn()


needs_wrk = pytest.mark.skipif(not shutil.which("wrk"), reason="needs Debian's package wrk")


@needs_wrk
def test_no_request_fails(proxy: Proxy, tmp_path: Path) -> None:
    """Under load, over connections that are kept alive on both sides."""
    load = Load(proxy, tmp_path)
    while not load.is_enough:
        load.turn()
    print(f"{load.requests} requests")


@contextlib.contextmanager
def loaded(processes: dict[int, subprocess.Popen[bytes]], folder: Path, image: Path = IMAGE) -> Iterator[list[Load]]:
    """Run both proxies in front of two servers, and loads on them, none of whose requests may fail.

    Args:
        processes: Gets the servers, by their ports.
        folder: For files.
        image: What is posted.
    """
    is_over = threading.Event()
    with ThreadPoolExecutor() as threads, contextlib.ExitStack() as stack:
        for _ in range(2):
            port = free_port()
            processes[port] = stack.enter_context(server_on(port, folder / f"{port}.log"))
        loads, running = [], []
        try:
            for name in COMMANDS:
                (folder / name).mkdir()
                proxy = stack.enter_context(running_proxy(name, list(processes), folder / name))
                loads.append(Load(proxy, folder, image, THINK_MS))
                running.append(threads.submit(loads[-1].keep_up, is_over))
            yield loads
        finally:
            is_over.set()
        for load in running:
            load.result()
    print(*(f"{load.requests} requests" for load in loads))


@needs_wrk
def test_no_request_fails_during_a_roll_out(tmp_path: Path) -> None:
    """One server after the other is stopped and replaced, while the load on both proxies goes on."""
    processes: dict[int, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as replaced, loaded(processes, tmp_path) as loads:
        while not all(load.is_enough for load in loads) or len(list(tmp_path.glob("*-replaced*"))) < 2:
            for port, process in list(processes.items()):
                os.kill(process.pid, signal.SIGTERM)
                assert process.wait(30) == 0
                log = tmp_path / f"{port}-replaced-{process.pid}.log"
                processes[port] = replaced.enter_context(server_on(port, log))


@needs_wrk
def test_a_killed_http_process_fails_no_request(tmp_path: Path) -> None:
    """Both proxies send its requests again, photos included: HAProxy's buffer must have all of a body for that."""
    photo = tmp_path / "photo.jpg"
    Image.effect_noise((400, 400), 60).convert("RGB").save(photo, quality=80)
    assert 60_000 < photo.stat().st_size < 120_000
    processes: dict[int, subprocess.Popen[bytes]] = {}
    with loaded(processes, tmp_path, photo) as loads:
        for port, process in list(processes.items()) * 2:
            os.kill(*http_processes(process), signal.SIGKILL)
            servers.wait_until_ready(process, f"http://127.0.0.1:{port}/health")
            wait_for_turns(loads, 4)  # until both proxies have noticed that it is back


def wait_for_turns(loads: Sequence[Load], count: int) -> None:
    before = [load.turns for load in loads]
    wait_until(lambda: all(load.turns >= had + count for load, had in zip(loads, before, strict=True)), 120)


def http_processes(server: subprocess.Popen[bytes]) -> set[int]:
    return {pid for pid, kind in kinds(server.pid).items() if kind == "http"}


def test_a_request_of_the_largest_size_passes(proxy: Proxy) -> None:
    """The proxy takes what the server takes; more is refused."""
    megabyte = b"x" * 2**20
    assert httpx.post(proxy.url + "/predict", content=megabyte * 33, timeout=60, **PLAIN_HTTP).status_code == 413
    response = httpx.post(proxy.url + "/predict", content=megabyte, timeout=60, **PLAIN_HTTP)
    assert response.status_code == 415
    assert response.headers["content-type"] == "application/json"


def remaining(proxy: Proxy, address: str, headers: dict[str, str]) -> int:
    """Post an image from an address of this machine; return what is left of its rate limit."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=60) as client:
        response = client.post(proxy.url + "/predict", content=IMAGE.read_bytes(), headers=headers)
    assert response.status_code == 200
    return int(response.headers["ratelimit-remaining"])


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs Debian's package openssl")
def test_nginx_with_https(ports: tuple[int, int], tmp_path: Path) -> None:
    """The lines for it, which are a comment, need only the certificate."""
    if shutil.which("nginx") is None:
        pytest.skip("needs Debian's package nginx")
    port, tls_port = free_port(), free_port()
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(request, capture_output=True, timeout=60, check=True)
    command = nginx_command(tmp_path, port, ports)
    site = tmp_path / "vit-api.conf"
    text, lines = re.subn(r"# (?=listen 443|ssl_certificate)", "", site.read_text())
    assert lines == 3
    text = text.replace("/etc/letsencrypt/live/example.org", str(tmp_path))
    site.write_text(text.replace("listen 443", f"listen 127.0.0.1:{tls_port}"))
    with servers.running(command, f"http://127.0.0.1:{port}/health", cwd=tmp_path, log=tmp_path / "log"):
        trusted = ssl.create_default_context(cafile=certificate)
        answer = httpx.post(f"https://127.0.0.1:{tls_port}/predict", content=IMAGE.read_bytes(), verify=trusted)
    assert answer.json()["predictions"][0]["label"] == "7"


def test_clients_are_told_apart(proxy: Proxy) -> None:
    """Each address has a rate limit of its own, and does not get another by claiming to be somebody else."""
    forger, other = f"127.0.0.{free_port() % 100 + 2}", f"127.0.0.{free_port() % 100 + 102}"
    left = [remaining(proxy, forger, {"X-Forwarded-For": f"203.0.113.{number}"}) for number in range(9)]
    assert min(left) <= LIMIT - 5  # of nine requests, five met the same server
    assert remaining(proxy, other, {}) >= LIMIT - 2  # a proxy sends a request again if a connection breaks


def test_metrics_are_not_public(proxy: Proxy) -> None:
    assert httpx.get(proxy.url + "/metrics", timeout=60, **PLAIN_HTTP).status_code == 403
    assert httpx.get(f"http://127.0.0.1:{proxy.ports[0]}/metrics", timeout=60, **PLAIN_HTTP).status_code == 200


class Ready(BaseHTTPRequestHandler):
    """A server that is ready, and counts the health checks since the proxy's start."""

    probes = 0

    def do_GET(self) -> None:
        type(self).probes += 1
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.mark.parametrize("name", COMMANDS)
def test_servers_that_die_together_cost_no_request(name: str, ports: tuple[int, int], tmp_path: Path) -> None:
    """Two of four are gone at once, before a check can see it; another server answers each request."""
    dying = [ThreadingHTTPServer(("127.0.0.1", 0), Ready) for _ in range(2)]
    for server in dying:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    with running_proxy(name, (*(server.server_port for server in dying), *ports), tmp_path) as proxy:
        wait_until(lambda: Ready.probes >= 8 or name == "nginx")  # nginx has no health checks
        for server in dying:
            server.shutdown()
            server.server_close()
        with ThreadPoolExecutor(CONNECTIONS) as clients:
            answers = clients.map(lambda _: post(proxy).status_code, range(10 * CONNECTIONS))
            assert set(answers) == {200}


def post(proxy: Proxy) -> httpx.Response:
    return httpx.post(proxy.url + "/predict", content=IMAGE.read_bytes(), timeout=60, **PLAIN_HTTP)


class SlowHealth(BaseHTTPRequestHandler):
    """A server that is so busy that a health check takes 1.5 s, while it answers requests."""

    probes = 0

    def do_GET(self) -> None:
        threading.Event().wait(1.5)
        self.respond()
        type(self).probes += self.path == "/health/ready"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.respond()

    def respond(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_haproxy_keeps_servers_that_are_only_slow(tmp_path: Path) -> None:
    """Where all are busy, all are slow to answer health checks: without them, every request would be a 503."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowHealth) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with running_proxy("haproxy", (server.server_port, server.server_port), tmp_path) as proxy:
            wait_until(lambda: SlowHealth.probes >= 8)
            assert post(proxy).status_code == 200
        server.shutdown()
