"""`python -m vit_api classify`: files, output and exit status, in process and with a scripted server."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import forked_servers
from tests.support.scripted_server import ANSWER, Fault, Request, error, ok, reply, scripted
from tests.support.server import ROOT, environment, wait_until
from vit_api.classify.image_files import find_images
from vit_api.classify.progress import Progress
from vit_api.classify.report import JsonLines, Report, Table, printable
from vit_api.client.results import Classification, ClassifyError, Outcome, Rejected, ScoredLabel
from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc import records
from vit_api.labels.thresholds import Thresholds
from vit_api.worker.outcomes import NOT_FINITE

EXAMPLES = [str(ROOT / "examples" / f"digit-{digit}.png") for digit in (3, 7)]


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "vit_api", "classify", *map(str, arguments)]


def _run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return forked_servers.run(_command(*arguments), cwd=ROOT, env=environment() | variables, timeout_s=120)


def _touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image")
    return path


def _nothing_fails(path: Path, why: str) -> None:
    raise AssertionError(f"{path}: {why}")


def test_folders_are_walked_in_order(tmp_path: Path) -> None:
    """Files by name come before sub-folders by name; hidden and other files are skipped."""
    names = ["b.PNG", "a.jpg", "sub/c.webp", "a-sub/z.tiff"]
    others = [".hidden.png", "notes.txt", ".git/x.png"]
    for name in [*names, *others]:
        _touch(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    found = list(find_images([tmp_path], _nothing_fails))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.jpg", "b.PNG", "a-sub/z.tiff", "sub/c.webp"]


def test_named_files_are_always_included(tmp_path: Path) -> None:
    """Files given by name are kept in order, regardless of their suffix and of whether they exist."""
    names = [_touch(tmp_path / "z"), tmp_path / "missing", _touch(tmp_path / "a")]
    assert list(find_images(names, _nothing_fails)) == names


def test_paths_without_a_stat_are_included(tmp_path: Path) -> None:
    """Opening a broken link or an invalid name gives the error that is reported."""
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "gone.png")
    names = [tmp_path, tmp_path / ("x" * 300)]
    assert list(find_images(names, _nothing_fails)) == [link, names[1]]


def test_a_folder_without_images_fails(tmp_path: Path) -> None:
    """A named folder in which nothing is found is reported."""
    _touch(tmp_path / "notes.txt")
    failures: list[Path] = []
    assert list(find_images([tmp_path], lambda path, _: failures.append(path))) == []
    assert failures == [tmp_path]


RESULT = Classification((ScoredLabel("7", 0.9), ScoredLabel("1", 0.1)), cached=False, processing_time_ms=1.0, model="m")


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_progress_bar() -> None:
    """It is drawn in one line at a limited rate, and cleared before other output."""
    now = [0.0]
    terminal = Terminal()
    progress = Progress(terminal, 4, lambda: now[0])
    progress.draw(1, 0)
    progress.draw(2, 0)  # too soon
    now[0] = 1.0
    progress.draw(3, 1)
    progress.clear()
    progress.clear()
    lines = [line.removeprefix("\x1b[K") for line in terminal.getvalue().split("\r")]
    assert lines == [
        "",
        f"[{'#' * 7}{'.' * 23}] 1/4",
        f"[{'#' * 22}{'.' * 8}] 3/4, 1 failed, 2.0 images/s, 0:00:00 left",
        "",
    ]


def test_progress_in_a_log() -> None:
    """A line at each interval has the rate since the start, not counting what was done before, and the time left."""
    now = [10.0]
    log = io.StringIO()
    progress = Progress(log, 20_000, lambda: now[0], log_every_s=30)
    for at, done in ((10.0, 5_000), (20.0, 6_000), (40.0, 8_000), (70.0, 11_000)):
        now[0] = at
        progress.draw(done, 0)
    progress.clear()
    assert log.getvalue().splitlines() == [
        "5000/20000",
        "8000/20000, 100.0 images/s, 0:02:00 left",
        "11000/20000, 100.0 images/s, 0:01:30 left",
    ]


def test_no_progress_bar_without_a_terminal() -> None:
    """Nothing is drawn in a log or pipe."""
    stream = io.StringIO()
    Progress(stream, 4).draw(1, 0)
    assert stream.getvalue() == ""


def _report(lines: JsonLines | Table) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    report = Report(out, err, lines, Progress(err, 2))
    report.add(Path("good.png"), RESULT)
    report.add(Path("bad.png"), Rejected("it is\x1b[2J corrupt", code="bad_image", status=400, request_id="id-1"))
    report.close()
    assert report.failed == 1
    return out.getvalue(), err.getvalue()


def test_the_table() -> None:
    """Failures go to stderr, and control characters are replaced."""
    out, err = _report(Table(8))
    heading, row = (line.split() for line in out.splitlines())
    assert heading == ["FILE", "LABEL", "CONF", "NEXT"]
    assert row == ["good.png", "7", "90.0%", "1", "10.0%"]
    assert err == "bad.png: it is\ufffd[2J corrupt (bad_image)\n1 of 2 images failed.\n"


def test_json_lines() -> None:
    """Each image gives one object, in order, with its result or its error."""
    out, err = _report(JsonLines())
    good, bad = map(json.loads, out.splitlines())
    assert (good["file"], good["predictions"][0]) == ("good.png", {"label": "7", "confidence": 0.9})
    assert bad == {
        **{"file": "bad.png", "error": "it is\x1b[2J corrupt"},
        **{"code": "bad_image", "status": 400, "request_id": "id-1"},
    }
    assert err == "1 of 2 images failed.\n"


def test_printable() -> None:
    """Control characters and surrogates are replaced; letters of any script are kept."""
    assert printable("naïve 数字\n\x07\udcff") == "naïve 数字" + "\ufffd" * 3


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no files"),
        pytest.param(["x.png", "--top-k", "0"], id="top-k"),
        pytest.param(["x.png", "--concurrency", "0"], id="concurrency"),
        pytest.param(["x.png", "--url", "ftp://host"], id="url"),
        pytest.param(["x.png", "--url", "http://host", "--model", "digits"], id="url and model"),
        pytest.param(["x.png", "--url", "http://host", "--key-env", "VIT_API_NO_SUCH"], id="no key"),
        pytest.param(["x.png", "--key-env", "HOME"], id="key without url"),
        pytest.param(["x.png", "--url", "http://host", "--key", "PATH"], id="key on the command line"),
    ],
)
def test_misuse(arguments: list[str]) -> None:
    """Invalid arguments end with exit status 2 and a usage message."""
    result = _run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage:")
    assert "Traceback" not in result.stderr


def test_a_bad_setting_is_misuse() -> None:
    """In process, the server's settings apply."""
    result = _run(EXAMPLES[0], VIT_API_DTYPE="int3")
    assert result.returncode == 2
    assert "VIT_API_DTYPE" in result.stderr


def test_an_unknown_model() -> None:
    """The error is a single line."""
    result = _run("--model", "no-such-folder/x/y", EXAMPLES[0])
    assert result.returncode == 1
    assert result.stderr.startswith("error: The model")


def test_in_process() -> None:
    """The embedded model classifies the examples; unreadable files are reported and do not affect the others."""
    result = _run("--model", "digits", "--top-k", "1", EXAMPLES[0], "README.md", "missing.png", EXAMPLES[1])
    rows = [line.split()[1:] for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == ["LABEL", "3", "7"]
    assert result.stderr.splitlines()[0].startswith("README.md: ")
    assert result.stderr.splitlines()[1:] == [
        "missing.png: The file can't be read: No such file or directory. (unreadable_input)",
        "2 of 4 images failed.",
    ]
    assert result.returncode == 1


def test_with_a_server() -> None:
    """The key comes from the environment; a folder's images are uploaded."""
    with scripted(ok(), ok()) as server:
        result = _run("--url", server.url, "--json", "--key-env", "MY_KEY", "examples", MY_KEY="k-1")
        assert {request.headers["authorization"] for request in server.requests} == {"Bearer k-1"}
    files = [json.loads(line)["file"] for line in result.stdout.splitlines()]
    assert files == ["examples/digit-3.png", "examples/digit-7.png"]
    assert (result.returncode, result.stderr) == (0, "")


def test_an_error_of_the_server() -> None:
    """It is reported in a single line with the API's message."""
    with scripted(error(401, "unauthorized")) as server:
        result = _run("--url", server.url, EXAMPLES[0])
    assert result.stderr.splitlines() == [f"{EXAMPLES[0]}: what is wrong (unauthorized)", "1 of 1 images failed."]
    assert result.returncode == 1


def test_odd_file_names(tmp_path: Path) -> None:
    """Names that are not valid UTF-8 or contain line breaks are reported in one line each."""
    names = [os.fsdecode(b"\xff.png"), "two\nlines.png"]
    for name in names:
        _touch(tmp_path / name)
    with scripted(ok(), ok()) as server:
        table = _run("--url", server.url, tmp_path)
    assert (table.returncode, len(table.stdout.splitlines())) == (0, 3)
    with scripted(ok(), ok()) as server:
        lines = _run("--url", server.url, "--json", tmp_path)
    found = [json.loads(line)["file"] for line in lines.stdout.splitlines()]
    assert found == sorted(str(tmp_path / name) for name in names)


def test_ctrl_c() -> None:
    """The command exits at once, without a traceback, with status 130 as shells expect."""
    with scripted(handler=lambda _: Fault.SILENCE) as server:
        process = subprocess.Popen(
            _command("--url", server.url, EXAMPLES[0]),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            preexec_fn=_restore_sigint,  # noqa: PLW1509
        )
        with process:
            try:
                wait_until(lambda: bool(server.requests))
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=60)
            finally:
                process.kill()  # if it still runs, so that no open pipe fails another test
    assert (process.returncode, err) == (130, b"")


def _restore_sigint() -> None:
    """Restore SIGINT, which shells have background commands, and so tests, ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_closed_pipe(tmp_path: Path) -> None:
    """With `| head`, the command exits without a traceback."""
    for number in range(50):
        _touch(tmp_path / f"{number}.png")

    def handler(request: Request) -> bytes:
        return reply(200, ANSWER | {"model": "long " * 10_000})

    with scripted(handler=handler) as server:
        process = subprocess.Popen(
            _command("--url", server.url, "--json", tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        process.stderr.close()
        assert (process.wait(30), err) == (141, b"")


_NAN = 98


class FakeApi:
    """A LitAPI whose device fits two images at once; the value of an image decides its outcome."""

    def __init__(self, checkpoint: Any) -> None:
        self.checkpoint = checkpoint
        self.batches: list[int] = []
        self.is_broken = False

    def decode_request(self, request: bytes) -> int:
        return int(request)

    def batch(self, images: list[int]) -> list[int]:
        return images

    def predict(self, images: list[int]) -> list[int]:
        self.batches.append(len(images))
        if len(images) > 2 or 99 in images:
            raise OutOfDeviceMemory("planted")
        return images

    def unbatch(self, images: list[int]) -> list[records.Prediction]:
        return [records.Prediction((value,), (0.0,), math.nan if value == _NAN else 1.0) for value in images]

    def free_memory(self) -> None:
        """Do nothing."""

    def has_working_device(self) -> bool:
        return not self.is_broken

    def encode_response(self, output: records.Prediction, **_: Any) -> dict[str, Any]:
        return {"predictions": [{"label": str(output.indices[0]), "confidence": output.top_probability}]}


def _classify(tmp_path: Path, api: FakeApi, *contents: str, max_batch_size: int = 4, lanes: int = 1) -> list[Outcome]:
    from vit_api.classify.local import LocalClassifier

    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    classifier = LocalClassifier(api, max_batch_size=max_batch_size, threads=2, lanes=lanes)  # type: ignore[arg-type]
    return list(classifier.classify_many(paths, 1))


_LANES = pytest.mark.parametrize("lanes", [1, 3])


@pytest.fixture
def api() -> FakeApi:
    """Return the LitAPI of a device that fits two images at once."""
    from vit_api.checkpoints.checkpoint import load_checkpoint

    return FakeApi(load_checkpoint("digits"))


@_LANES
def test_batches_that_do_not_fit_are_halved(tmp_path: Path, api: FakeApi, lanes: int) -> None:
    """Only an image that does not fit on its own fails."""
    outcomes = _classify(tmp_path, api, "0", "1", "2", "99", "4", lanes=lanes)
    found = [outcome.code if isinstance(outcome, ClassifyError) else outcome.top.label for outcome in outcomes]
    assert found == ["0", "1", "2", "out_of_memory", "4"]
    ran = api.batches if lanes == 1 else sorted(api.batches, reverse=True)
    assert ran == [4, 2, 2, 1, 1, 1]


def test_a_model_that_fails_is_reported(tmp_path: Path, api: FakeApi) -> None:
    """Each image of the batch fails with the reason."""
    api.batch = lambda _: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    (outcome,) = _classify(tmp_path, api, "1")
    assert isinstance(outcome, ClassifyError)
    assert outcome.code == "inference_failed"
    assert "ZeroDivisionError" in outcome.message


@_LANES
def test_every_image_is_reported_when_the_device_breaks(tmp_path: Path, api: FakeApi, lanes: int) -> None:
    """No other process can take over, so all remaining images fail."""
    api.is_broken = True
    api.batch = lambda _: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    outcomes = _classify(tmp_path, api, "1", "2", "3", max_batch_size=2, lanes=lanes)
    assert [getattr(outcome, "code", None) for outcome in outcomes] == ["inference_failed"] * 3


def test_a_result_that_is_not_finite_is_a_failure(tmp_path: Path, api: FakeApi) -> None:
    """JSON has no infinity or NaN; the image fails with the same message as in the server's log."""
    outcomes = _classify(tmp_path, api, "1", str(_NAN))
    out, err = io.StringIO(), io.StringIO()
    report = Report(out, err, JsonLines(), Progress(err, 2))
    for outcome in outcomes:
        report.add(Path("image.png"), outcome)
    good, bad = (json.loads(line, parse_constant=pytest.fail) for line in out.getvalue().splitlines())
    assert good["predictions"] == [{"label": "1", "confidence": 1.0}]
    assert (bad["code"], bad["error"]) == ("inference_failed", NOT_FINITE.reason)


def test_json_lines_reject_nan() -> None:
    """An error is better than a line that no parser can read."""
    result = Classification((ScoredLabel("7", math.nan),), cached=False, processing_time_ms=1.0, model="m")
    with pytest.raises(ValueError, match="not JSON compliant"):
        JsonLines().format(Path("image.png"), result)


def test_flags_in_process() -> None:
    """With VIT_API_THRESHOLDS, lines have the flags of the labels and the image, and the digest; else none of them."""
    result = _run("--model", "digits", "--json", "--top-k", "1", *EXAMPLES, VIT_API_THRESHOLDS='{"7": 0.5, "*": 1}')
    assert result.returncode == 0, result.stderr
    three, seven = map(json.loads, result.stdout.splitlines())
    assert (three["flagged"], three["predictions"][0]["flagged"]) == (False, False)
    assert (seven["flagged"], seven["predictions"][0]["flagged"]) == (True, True)
    assert seven["thresholds_digest"] == Thresholds({"7": 0.5, "*": 1.0}).digest
    result = _run("--model", "digits", "--json", EXAMPLES[0])
    assert "flagged" not in result.stdout
    assert "thresholds" not in result.stdout
