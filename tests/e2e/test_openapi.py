"""The running server against its own description, by schemathesis: valid, unusual and invalid requests.

New operations are covered without a change here. `make api-fuzz` runs longer, with random requests, until its time is
up: an example takes up to half a second, most of it to generate it, and a stateful one is a sequence of requests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import ROOT, RunningServer, serve

_LONG_RUN = os.environ.get("API_FUZZ_EXAMPLES")
_EXAMPLES = _LONG_RUN or "8"
_FUZZ_S = int(os.environ.get("API_FUZZ_S", "600"))
"""How long a long run generates requests, after those of a fixed list."""
_LONGEST_S = 120 if _LONG_RUN is None else _FUZZ_S + 600
_KEY = "the-key-that-opens-everything"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server with all optional parts of the description, and limits that are not reached."""
    with serve(operator_key=_KEY, api_keys="another-key-of-this-test", rate_limit="1000000000/day") as running:
        yield running


def _schemathesis(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run schemathesis; requests are the same each time, except in a long run."""
    options = [
        "--checks",
        "all",
        "--max-examples",
        _EXAMPLES,
        "--header",
        f"Authorization: Bearer {_KEY}",
        "--no-color",
    ]
    if _LONG_RUN is None:
        options += ["--generation-deterministic", "--no-shrink"]
    else:
        # The server's limit, which a batch may come close to while the machine generates requests.
        options += ["--max-time", str(_FUZZ_S), "--workers", "2", "--max-response-time", "30"]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            "tests/support/api_fuzz.toml",
            "run",
            *options,
            *arguments,
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=_LONGEST_S,
        check=False,
    )


def test_the_server_does_what_it_describes(server: RunningServer) -> None:
    """Every operation is tested, and every response matches the description."""
    described = server.get("/openapi.json").json()["paths"]
    count = sum(len(operations) for operations in described.values())
    result = _schemathesis(f"{server.url}/openapi.json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Tested: {count}\n" in result.stdout
    assert "Warnings:" not in result.stdout, result.stdout


@pytest.mark.skipif(_LONG_RUN is not None, reason="what a short run tells, a long one need not")
def test_a_wrong_description_is_detected(server: RunningServer, tmp_path: Path) -> None:
    """The same run fails on a status that is missing, and on a body that differs."""
    description = server.get("/openapi.json").json()
    responses = description["paths"]["/"]["post"]["responses"]
    responses["200"]["content"]["application/json"]["schema"] = {"type": "object"}
    del responses["401"]
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(description))
    result = _schemathesis(str(file), "--url", server.url, "--include-path", "/")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Undocumented status code" in result.stdout
    assert "Response violates schema" in result.stdout
