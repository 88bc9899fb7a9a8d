"""The examples in README.md and docs/, except those in `_NOT_RUN`, run as written and print the output shown.

They share one server, which is started with the first command of the README. Only load tests are shorter than written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.harness import ray_environment
from tests.support.page_reader import install_command, shortened
from tests.support.server import ROOT, RunningServer, environment, serve_by
from vit_api.access.api_keys import parse_keys

_ADDRESS = "127.0.0.1:7860"
_OPERATOR_KEY = "the-operators-key"
_START = "make run\n"

_DOCKER = "builds or runs the container image; make container-test does"
_CLUSTER = "needs a cluster; tests/deploy/test_kubernetes.py renders and validates the manifests"
_SPACE = "needs a Hugging Face account; tests/deploy/test_deploy_space.py tests the deployment"
_NOT_RUN = {
    ("README.md", 'make run ARGS="--host 127.0.0.1"'): "downloads a model of 350 MB",
    ("docs/container.md", "docker build"): _DOCKER,
    ("docs/container.md", "docker run"): _DOCKER,
    ("docs/container.md", "docker compose"): _DOCKER,
    ("docs/container.md", "VIT_API_MODEL=digits docker compose"): _DOCKER,
    ("docs/proxies.md", ""): "needs root and port 80; tests/deploy/test_proxies.py runs both configurations",
    ("docs/first-model.md", ""): "needs a server of its own; tests/project/test_first_model_docs.py runs all of them",
    (
        "docs/install.md",
        "make run",
    ): "the README's first command is the same; of another index, tests/project/test_torch_index.py checks it",
    (
        "docs/several-models.md",
        "export VIT_API_OPERATOR_KEY",
    ): "needs two models of a user; tests/e2e/test_live_models.py runs them",
    (
        "docs/several-models.md",
        "vit-api models load",
    ): "needs two models of a user; tests/e2e/test_live_models.py runs them",
    ("docs/gpu.md", "make run TORCH_INDEX"): "installs packages; tests/project/test_torch_index.py checks the commands",
    ("docs/gpu.md", "pip install"): "installs packages; tests/benchmarks/test_benchmark_gpu.py runs the benchmark",
    ("docs/hugging-face.md", "pip install"): (
        "needs a Hugging Face account; tests/deploy/test_deploy_endpoint.py tests the deployment"
    ),
    ("docs/kubernetes.md", "docker build"): _CLUSTER,
    ("docs/kubernetes.md", "helm"): _CLUSTER,
    ("docs/kubernetes.md", "kubectl"): _CLUSTER,
    ("docs/moderation.md", ""): "needs a server of its own; tests/project/test_moderation_docs.py runs all of them",
    (
        "docs/models.md",
        "export HF_TOKEN",
    ): "needs a token; tests/unit/checkpoints/test_hub.py has the errors",
    (
        "docs/models.md",
        "from transformers",
    ): "downloads a model; tests/unit/checkpoints/test_checkpoint.py converts one",
    (
        "docs/quantization.md",
        "pip install",
    ): "installs packages and downloads a model; tests/e2e/test_quantized.py runs both commands",
    (
        "docs/quantization.md",
        "python -m vit_api quantize",
    ): "downloads a model and serves it on a GPU; tests/unit/quantization/test_scaled.py runs the command",
    ("docs/ray.md", "pip install"): "installs packages; `make ray` installs the same",
    ("docs/ray.md", "python -m vit_api classify s3"): "tests/unit/classify/test_bulk.py runs it on an S3 server",
    (
        "docs/ray.md",
        "VIT_API_MODEL=digits serve run",
    ): "runs until it is stopped; tests/deploy/test_ray_serve.py runs it",
    ("docs/space.md", "pip install"): _SPACE,
    ("docs/space.md", "hf "): _SPACE,
    ("docs/space.md", "export"): _SPACE,
    ("docs/space.md", "curl"): _SPACE,
    ("docs/space.md", "python -m deploy.space"): _SPACE,
    ("docs/tracing.md", ".venv/bin/pip install"): "installs packages; tests/e2e/test_tracing.py traces a server",
}
"""The reason why an example is not run, by page and beginning of the example."""
if os.environ.get("RAY_TESTS") != "all":
    _RAY_RUN = "docs/ray.md", "python -m vit_api classify examples --model digits --out results --engine ray"
    _NOT_RUN[_RAY_RUN] = "starts Ray, which takes half a minute; `make ray-test` runs it"

_COMMANDS = {
    "sh": ["bash", "-e", "-o", "pipefail", "-c"],
    "python": [sys.executable, "-c"],
    "javascript": ["node", "--input-type=module", "--eval"],
}
_OUTPUTS = ("text", "json")
_RUN_ELSEWHERE = ("docs/moderation.md", "docs/first-model.md")
"""Pages whose examples run in tests of their own."""
_ON_RAY = "docs/ray.md"
"""The page whose examples run in the environment of `make ray`."""
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_ANOTHER_HOST = re.compile(r"https?://(?!127\.0\.0\.1)|\bpip3? install\b|\bgit (?:push|clone)\b")
_FIRST_LABEL = re.compile(r'\[\{"label":"(\d)"')


@dataclass(frozen=True)
class Example:
    """A command or a program in the documentation.

    Attributes:
        page: The file.
        language: The language of its fence.
        code: Its code.
        output: The expected output, in the block right after it; None if there is none.
    """

    page: str
    language: str
    code: str
    output: str | None

    @property
    def reason(self) -> str | None:
        """The reason why it is not run, or None."""
        return next((why for (page, start), why in _NOT_RUN.items() if self._is(page, start)), None)

    def _is(self, page: str, start: str) -> bool:
        return self.page == page and self.code.startswith(start)


def _blocks(page: Path) -> list[tuple[int, int, str, str]]:
    """Return the start, end, language and text of each block, dedented."""
    return [
        (found.start(), found.end(), found[2], re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE))
        for found in _FENCE.finditer(page.read_text())
    ]


def _examples() -> Iterator[Example]:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = _blocks(page)
        outputs = {start: text for start, _, language, text in blocks if language in _OUTPUTS}
        for _, end, language, code in blocks:
            if language in _COMMANDS:
                # Only an empty line may be between the code and its output.
                yield Example(str(page.relative_to(ROOT)), language, code, outputs.get(end + 2))


_ALL = list(_examples())
_RUN = [example for example in _ALL if example.reason is None and example.code != _START]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run the server as in the README's first example, but on a free port and with the installed packages."""
    (start,) = [example for example in _ALL if example.code == _START and example.page == "README.md"]
    # As an option: make ignores it in MAKEFLAGS, and would install packages once a requirements file is newer.
    packages = f"--assume-old=.venv/run.stamp BIN={Path(sys.executable).parent}"
    command = ["bash", "-c", f"exec {start.code.replace('make', f'make {packages}', 1)}"]
    with serve_by(command, ROOT, {}, operator_key=_OPERATOR_KEY) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a writable folder with what examples need of the repository."""
    for name in ("README.md", "examples", "vit_api"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".curlrc").write_text("fail\nsilent\nshow-error\n")
    return tmp_path


def _output(example: Example, server: RunningServer, folder: Path) -> str:
    """Run an example with the address of the test's server, and return its output."""
    command = _COMMANDS[example.language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    code = shortened(example.code).replace(_ADDRESS, server.url.removeprefix("http://"))
    code = code.replace("curl --json", 'curl --header "content-type: application/json" --data')  # curl before 7.82
    programs = Path(sys.executable).parent
    if example.page == _ON_RAY:
        if not ray_environment.is_installed():
            pytest.skip("needs Ray: run `make ray`")
        programs = ray_environment.PYTHON.parent
    variables = {
        "PATH": os.pathsep.join([str(install_command(folder)), str(programs), os.environ["PATH"]]),
        "CURL_HOME": str(folder),
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        [*command, code],
        cwd=folder,
        env=environment(operator_key=_OPERATOR_KEY) | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("example", [pytest.param(x, id=f"{x.page}: {x.code.splitlines()[0]}") for x in _RUN])
def test_an_example(example: Example, server: RunningServer, folder: Path) -> None:
    """It succeeds and prints the output shown, or without one, the digits in its images' names."""
    printed = _output(example, server, folder)
    if example.output is None:
        if example.language == "sh":
            assert _FIRST_LABEL.findall(printed) == re.findall(r"digit-(\d)\.png", example.code)
    elif '"predictions"' in example.output:
        shown, found = json.loads(example.output), json.loads(printed)
        assert found.keys() == shown.keys()
        assert [p["label"] for p in found["predictions"]] == [p["label"] for p in shown["predictions"]]
        confidences = [p["confidence"] for p in shown["predictions"]]
        assert [p["confidence"] for p in found["predictions"]] == pytest.approx(confidences, abs=1e-3)
    else:
        assert _rounded(printed) == _rounded(example.output)


def _rounded(text: str) -> str:
    """Round probabilities to two digits, since further digits depend on the CPU."""
    return re.sub(r"0\.\d+", lambda number: f"{float(number[0]):.2f}", text).strip()


def test_the_documented_key_is_valid(server: RunningServer, folder: Path) -> None:
    """The key that the example in docs/security.md writes to `.env` is accepted."""
    (example,) = [example for example in _RUN if "VIT_API_API_KEYS" in example.code]
    _output(example, server, folder)
    name, _, value = (folder / ".env").read_text().strip().partition("=")
    assert name == "VIT_API_API_KEYS"
    assert len(parse_keys(value)) == 1


def test_each_block_has_a_known_language() -> None:
    """Each block is either run or an output, so that no example is missed."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    languages = {language for page in pages for _, _, language, _ in _blocks(page)}
    assert languages <= {*_COMMANDS, *_OUTPUTS, ""}
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) for page in pages)
    assert fences == 2 * sum(len(_blocks(page)) for page in pages)


def test_no_example_connects_to_other_hosts() -> None:
    """Examples that do must be listed in `_NOT_RUN` with a reason."""
    assert [example.code for example in _RUN if _ANOTHER_HOST.search(example.code)] == []


def test_not_run_has_no_stale_entries() -> None:
    """Each entry matches an example, and about half of the examples are run."""
    used = {key for key in _NOT_RUN for example in _ALL if example._is(*key)}
    assert used == set(_NOT_RUN)
    assert len(_RUN) >= len([example for example in _ALL if example.page not in _RUN_ELSEWHERE]) * 0.45
