"""Servers that are forked from a process that has imported what they import, which takes most of a server's start.

Apart from that they are started as by `subprocess.Popen`: a process and a session of their own, with these variables,
folder and output. The processes of a run of pytest share one such parent for each interpreter, and others that are
forked from it and import more. The command `classify` and baselines of benchmarks are forked too. Knows nothing of what
the servers do.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import hashlib
import importlib
import itertools
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks.harness import ray_environment
from benchmarks.harness.servers import environment_with
from vit_api.environment.garbage import collection_paused

_ROOT = Path(__file__).resolve().parents[2]
_MAX_REQUEST = 1 << 20
_ATTEMPTS, _PAUSE_S = 100, 0.1
_UNUSED_S = 60.0
"""Who starts a parent connects to it at once, unless it is killed."""
_OUR_MODULES = ("tests.support.", "benchmarks.gpu", "benchmarks.baselines.")
_READ_AT_IMPORT = ("HF_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "TORCH", "CUDA_", "MALLOC_", "LD_", "PYTHON", "OTEL_")
"""Beginnings of variables that are read before a server runs: with others than the parent's, nothing is forked."""


class _Request(NamedTuple):
    arguments: list[str]
    where: str
    variables: dict[str, str]


def start(
    command: Sequence[str],
    *,
    cwd: str | Path,
    env: Mapping[str, str] | None,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
    start_new_session: bool = True,
    imports: tuple[str, ...] = (),
    is_parent: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a Python program as `subprocess.Popen` does, forked where it makes no difference.

    Args:
        command: The program, with its interpreter.
        cwd: The working directory.
        env: All environment variables (default: this process's).
        stdout: Its output (default: this process's).
        stderr: Its errors (default: this process's).
        start_new_session: True.
        imports: Modules that it is forked with, beside those of every server.
        is_parent: Whether it is forked from this process; see `this_process`.
    """
    assert start_new_session
    variables = dict(os.environ if env is None else env)
    if not _is_ours(command) or _read_at_import(variables) != _read_at_import(os.environ):
        return subprocess.Popen(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr, start_new_session=True)
    request = pickle.dumps(_Request(list(command[1:]), str(cwd), variables))
    ours, theirs = _connected()
    with theirs:
        parent, lock = this_process() if is_parent else _parent(command[0], imports)
        with lock, Path(os.devnull).open("rb") as stdin:
            files = [stdin.fileno(), 1 if stdout is None else stdout.fileno(), 2 if stderr is None else stderr.fileno()]
            socket.send_fds(parent, [request], [*files, theirs.fileno()])
    return ForkedServer(command, ours)


def run(
    command: Sequence[str],
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    timeout_s: float,
    imports: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end as `subprocess.run` does, forked where it makes no difference.

    Raises:
        subprocess.TimeoutExpired: It has not ended in time; it was killed.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = start(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr, imports=imports)
        try:
            process.wait(timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, stdout.read().decode(), stderr.read().decode())


def start_and_end(**settings: object) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to end during its start."""
    command = [sys.executable, str(_ROOT / "server.py")]
    return run(command, cwd=_ROOT, env=environment_with(**settings), timeout_s=120)


def _is_ours(command: Sequence[str]) -> bool:
    """Return whether it runs our server or `classify`, a variant or program for tests, or a part of a benchmark."""
    executable, *arguments = command
    if executable not in (sys.executable, str(ray_environment.PYTHON)):
        return False
    if arguments[0] != "-m":
        return arguments[0] == str(_ROOT / "server.py")
    module, *others = arguments[1:]
    if module == "vit_api":
        return others[:1] in (["serve"], ["classify"], ["models"])
    return module.startswith(_OUR_MODULES) or (module == "uvicorn" and others[0].startswith(_OUR_MODULES))


def _read_at_import(variables: Mapping[str, str]) -> dict[str, str]:
    # The parent has the search path already.
    return {k: v for k, v in variables.items() if k.startswith(_READ_AT_IMPORT) and k != "PYTHONPATH"}


@functools.cache
def _parent(executable: str, imports: tuple[str, ...] = ()) -> tuple[socket.socket, threading.Lock]:
    """Connect to the process that an interpreter's servers are forked from, with these imports.

    Who asks first starts it; it ends with the last process that is connected to it.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    address = f"\0vit-api-tests-{run}-{_hash_of(executable, *imports)}"
    connection = _socket()
    for attempt in itertools.count(1):
        with _socket() as listener, contextlib.suppress(OSError):  # another process has started it
            listener.bind(address)
            listener.listen()
            _start_parent(executable, imports, listener)
        try:
            connection.connect(address)
            break
        except ConnectionRefusedError:  # it is between `bind` and `listen`, or has just ended
            if attempt == _ATTEMPTS:
                raise
            time.sleep(_PAUSE_S)
    atexit.register(connection.close)
    return connection, threading.Lock()


def _hash_of(*texts: str) -> str:
    """Return a short name for some texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _start_parent(executable: str, imports: tuple[str, ...], listener: socket.socket) -> None:
    arguments = ["-m", __name__, *imports]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("VIT_API_")}
    variables |= {"PYTHONPATH": str(_ROOT)}
    if imports:
        request = pickle.dumps(_Request(arguments, str(_ROOT), variables))
        parent, lock = _parent(executable)
        unread, answer = _connected()  # its end is not awaited
        with lock, unread, answer:
            socket.send_fds(parent, [request], [listener.fileno(), 1, 2, answer.fileno()])
    else:
        command = [executable, *arguments]
        subprocess.Popen(
            command, env=variables, cwd=_ROOT, stdin=listener, start_new_session=True
        ).returncode = 0  # its end is not awaited


@functools.cache
def this_process() -> tuple[socket.socket, threading.Lock]:
    """Fork a copy of this process as it is now, that servers are forked from; it ends with this one.

    Threads are not copied, and what is undone at this process's exit is also undone at that of each server.
    """
    ours, theirs = _connected()
    with theirs:
        if os.fork() == 0:
            ours.close()
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os._exit(_run(_serve([theirs])))
    return ours, threading.Lock()


def _socket() -> socket.socket:
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_REQUEST)
    return ours


def _connected() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_REQUEST)
    return ours, theirs


class ForkedServer(subprocess.Popen[bytes]):
    """A server that is a child of another process than this one, which says when it has ended."""

    def __init__(self, command: Sequence[str], parent: socket.socket) -> None:
        self._child_created = False  # for `Popen`: there is nothing to wait for
        self.args = command
        self.stdin = self.stdout = self.stderr = None
        self._parent = parent
        self.returncode: int | None = None  # type: ignore[assignment]
        self.pid = int.from_bytes(self._parent.recv(8), "little")
        if not self.pid:
            raise RuntimeError("The process that servers are forked from has ended.")

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return the exit status.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._parent], [], [], timeout)[0]:
            answer = self._parent.recv(8)
            self.returncode = int.from_bytes(answer, "little", signed=True) if answer else -signal.SIGKILL
            self._parent.close()
        return self.returncode


def _serve(clients: list[socket.socket], listener: socket.socket | None = None) -> _Request:
    """Fork a process for each request, and report its end. Returns in the forked ones; exits without clients.

    Args:
        clients: The connections that requests come from.
        listener: Accepts further ones.
    """
    children = _Children()
    listening = [] if listener is None else [listener]
    while True:
        timeout_s = None if clients else _UNUSED_S
        found = select.select([*listening, *clients, *children.running, *children.reported], [], [], timeout_s)[0]
        for ready in found:
            if ready in listening:
                clients.append(ready.accept()[0])
            elif ready in children.running:
                children.report(ready)
            elif ready in children.reported:
                children.reap(ready)
            elif (received := _receive(ready)) is None:
                clients.remove(ready)
                ready.close()
            elif (request := children.fork(*received, [*listening, *clients])) is not None:
                return request
        if not clients:
            os._exit(0)


class _Children:
    """The processes that were forked.

    Attributes:
        running: By their pidfd: the id, and where the end is reported.
        reported: By where their ends were reported: the ids.
    """

    def __init__(self) -> None:
        self.running: dict[int, tuple[int, socket.socket]] = {}
        self.reported: dict[socket.socket, int] = {}

    def fork(self, message: bytes, files: list[int], inherited: Sequence[socket.socket]) -> _Request | None:
        """Fork a process, and return its request there; in this process, return None."""
        *files, answer = files
        client = socket.socket(fileno=answer)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            _send(client, os.getpid())  # now that signals to its process group reach it
            for pidfd in self.running:
                os.close(pidfd)
            for one in [client, *inherited, *self.reported, *(other for _, other in self.running.values())]:
                one.close()
            return _become(pickle.loads(message), files)
        for file in files:
            os.close(file)
        self.running[os.pidfd_open(pid)] = pid, client
        return None

    def report(self, pidfd: int) -> None:
        """Say how a process has ended."""
        pid, client = self.running.pop(pidfd)
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        os.close(pidfd)
        _send(client, ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
        self.reported[client] = pid

    def reap(self, client: socket.socket) -> None:
        """Reap a process whose status the test has seen, until when its id is not given to another one."""
        os.waitpid(self.reported.pop(client), 0)
        client.close()


def _receive(client: socket.socket) -> tuple[bytes, list[int]] | None:
    """Return a request and its files; None if there will be no further one."""
    try:
        message, files, _, _ = socket.recv_fds(client, _MAX_REQUEST, 4)
    except ConnectionResetError:  # it was killed
        return None
    return (message, files) if message else None


def _send(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the test has ended
        client.send(number.to_bytes(8, "little", signed=True))


def _become(request: _Request, files: list[int]) -> _Request:
    for number, opened in enumerate(files):
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request.where)
    os.environ.clear()
    os.environ.update(request.variables)
    return request


def _run(request: _Request) -> int:
    """Run a Python program as the interpreter does with these arguments, up to its exit handlers; return the status."""
    try:
        _run_program(request)
        status = 0
    except SystemExit as error:
        status = _status_of(error)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _status_of(error: SystemExit) -> int:
    if isinstance(error.code, str):
        print(error.code, file=sys.stderr)
        return 1
    return error.code or 0


def _run_program(request: _Request) -> None:
    if request.arguments[0] == "-m":
        sys.argv = request.arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = request.arguments
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    with collection_paused():
        import vit_api.app
        import vit_api.model.model
        import vit_api.web.process

        for name in sys.argv[1:]:
            importlib.import_module(name)
        with contextlib.suppress(ImportError):  # only the environment of `make ray` has it
            import pyarrow.parquet  # noqa: F401
        vit_api.web.process.prepare()
    gc.freeze()
    # What is imported is not taken apart at the end, which takes longer than the forked server's start.
    os._exit(_run(_serve([], socket.socket(fileno=os.dup(0)))))
