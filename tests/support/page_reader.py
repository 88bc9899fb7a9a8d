"""Runs the commands of a page of the documentation, one after the other as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.support.server import ROOT, RunningServer, environment, serve_by

_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LOAD = re.compile(r"(vit-api (?:load|bench) .*?)--seconds \d+")
_LINKED = ("examples", "vit_api", "deploy")


def install_command(folder: Path) -> Path:
    """Write the command `vit-api` of this checkout; return the folder that has to be on the PATH."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    command = programs / "vit-api"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vit_api "$@"\n')
    command.chmod(0o755)
    return programs


def shortened(code: str) -> str:
    """Shorten the load tests of a command, which take both cores for as long as they last."""
    return _LOAD.sub(r"\1--seconds 0.5 --warm-up 0.2", code)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and the code of each program on a page."""
    return _BLOCK.findall(page)


def _server_of(code: str) -> tuple[list[str], dict[str, str]]:
    """Return the command of a line that starts a server, without a shell so that it is forked, and its variables."""
    words = shlex.split(code)
    at = words.index("serve")
    variables = dict(word.split("=", 1) for word in words[:at] if "=" in word)
    assert " ".join(words[len(variables) : at]) in ("vit-api", "python -m vit_api"), code
    return [sys.executable, "-m", "vit_api", *words[at:]], variables


class PageReader:
    """Runs commands in a folder like a checkout; the one that serves goes on until the end.

    Args:
        folder: An empty folder.
        stack: Ends the server.
        after: Called with the code of each command that has ended.

    Attributes:
        folder: See above.
        outputs: The code and the output of each command.
    """

    def __init__(self, folder: Path, stack: ExitStack, after: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self.outputs: list[tuple[str, str]] = []
        self._stack = stack
        self._after = after
        self._server: RunningServer | None = None
        for name in _LINKED:
            (folder / name).symlink_to(ROOT / name)
        (folder / ".curlrc").write_text("fail\nsilent\nshow-error\n")
        path = [str(install_command(folder)), str(Path(sys.executable).parent), os.environ["PATH"]]
        self._variables = {"PATH": os.pathsep.join(path), "CURL_HOME": str(folder), "PYTHONPATH": str(ROOT)}

    def run(self, language: str, code: str) -> None:
        """Run a command, or start the server if it serves; one that fails fails the test."""
        if " serve " in code:
            command, variables = _server_of(code)
            variables = self._variables | variables
            self._server = self._stack.enter_context(serve_by(command, self.folder, variables))
            return
        if self._server is not None:
            code = code.replace("http://127.0.0.1:7860", self._server.url)
        code = shortened(code)
        code = code.replace("curl --json", 'curl --header "content-type: application/json" --data')  # curl before 7.82
        program = [sys.executable, "-c"] if language == "python" else ["bash", "-e", "-o", "pipefail", "-c"]
        result = subprocess.run(
            [*program, code],
            cwd=self.folder,
            env=environment() | self._variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, f"{code}\n{result.stdout}{result.stderr}"
        self.outputs.append((code, result.stdout))
        self._after(code)

    def output_of(self, part: str) -> str:
        """Return the output of the command that has `part`."""
        (output,) = (output for code, output in self.outputs if part in code)
        return output
