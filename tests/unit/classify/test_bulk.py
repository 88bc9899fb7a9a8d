"""`classify --out`: Parquet with one row a file, resumed after any end, in this process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support import forked_servers
from tests.support.ray_environment import (
    children_of,
    classify,
    classify_command,
    cluster_of_two_nodes,
    needs_ray,
    object_store,
    only_all,
    read_rows,
    variables,
    write_manifest,
)
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, environment, free_port, wait_until
from vit_api.labels.thresholds import Thresholds

_FLAGS = ("flagged", "flagged_labels", "thresholds_digest")
_DIGIT = ROOT / "examples" / "digit-7.png"


_THREADS = [
    pytest.param("1", id="an actor decodes"),
    pytest.param("2", id="tasks decode, as beside a GPU", marks=only_all),
]


def _copies(folder: Path, count: int) -> list[str]:
    """Return the names of distinct files that all show a seven."""
    folder.mkdir(parents=True, exist_ok=True)
    content = _DIGIT.read_bytes()
    for number in range(count):
        (folder / f"{number:04}.png").write_bytes(content + b"%d" % number)  # what follows the image is ignored
    return sorted(str(path) for path in folder.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--resume"], "requires --out", id="resume"),
        pytest.param(["--engine", "ray"], "requires --out", id="engine"),
        pytest.param(["--out", "x", "--json"], "leave out --json", id="json"),
        pytest.param(["--out", "x", "--url", "http://127.0.0.1"], "leave out --url", id="url"),
        pytest.param(["--out", "x", "--workers", "2"], "requires --engine ray", id="workers"),
        pytest.param(["--shard", "9/8"], "must be like 3/8", id="shard"),
        pytest.param(["s3://bucket/folder"], "require --out", id="object store"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str) -> None:
    """They are refused before anything is loaded, with pyarrow or without it."""
    command = [sys.executable, "-m", "vit_api", "classify", str(_DIGIT), *options]
    result = forked_servers.run(command, cwd=ROOT, env=environment(), timeout_s=60)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_shard_without_parquet(tmp_path: Path) -> None:
    """Two shards print what one run prints, each file once."""
    names = _copies(tmp_path, 7)
    printed = []
    for shard in ("1/2", "2/2"):
        command = [sys.executable, "-m", "vit_api", "classify", "--model", "digits", str(tmp_path), "--shard", shard]
        result = forked_servers.run(command, cwd=ROOT, env=environment(), timeout_s=120)
        assert result.returncode == 0, result.stderr
        printed += [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert sorted(printed) == names


@needs_ray
def test_the_rows(tmp_path: Path, digits_server: RunningServer) -> None:
    """They have the server's answers; a file that is damaged or missing costs its own row only."""
    (tmp_path / os.fsdecode(b"bad-\xff.png")).write_bytes(b"damaged")
    shutil.copy(_DIGIT, tmp_path)
    manifest = tmp_path / "files.parquet"
    write_manifest(manifest, [str(_DIGIT), "examples/digit-3.png", "gone.png", str(_DIGIT)])
    result = classify(tmp_path, manifest, _DIGIT, "--out", tmp_path / "out", "--top-k", "3")
    assert result.returncode == 1, result.stderr
    assert "5 images in" in result.stderr
    assert "2 failed" in result.stderr
    rows = {row["path"]: row for row in read_rows(tmp_path / "out")}
    assert list(rows) == [
        str(tmp_path / r"bad-\xff.png"),
        str(tmp_path / "digit-7.png"),
        str(_DIGIT),
        "examples/digit-3.png",
        "gone.png",
    ]
    for name in (str(_DIGIT), "examples/digit-3.png"):
        upload = (ROOT / name).read_bytes()
        row = rows[name]
        assert list(zip(row["labels"], map(pytest.approx, row["scores"]), strict=True)) == digits_server.top(upload, 3)
        assert row["sha256"] == hashlib.sha256(upload).hexdigest()
        assert row["error"] is row["code"] is None
    bad, gone = rows[str(tmp_path / r"bad-\xff.png")], rows["gone.png"]
    assert (bad["code"], bad["labels"]) == ("unsupported_image", None)
    assert bad["sha256"] == hashlib.sha256(b"damaged").hexdigest()
    assert (gone["code"], gone["sha256"]) == ("unreadable_input", None)
    assert "No such file" in gone["error"]


_ENGINES = [pytest.param("local", id="local"), pytest.param("ray", marks=only_all, id="ray")]


@needs_ray
def test_flags(tmp_path: Path) -> None:
    """With thresholds, a row has the flags that the server would return; without them, nulls."""
    thresholds = {"7": 0.5, "*": 1.0}
    images = [_DIGIT, ROOT / "examples" / "digit-3.png", ROOT / "README.md"]
    for number, text in enumerate([json.dumps(thresholds), ""]):
        variables = {"VIT_API_THRESHOLDS": text} if text else {}
        result = classify(*images, "--out", tmp_path / str(number), "--top-k", "2", **variables)
        assert result.returncode == 1, result.stderr
    with_flags, without = read_rows(tmp_path / "0"), read_rows(tmp_path / "1")
    digest = Thresholds(thresholds).digest
    assert [[row[name] for name in _FLAGS] for row in with_flags] == [
        [True, ["7"], digest],
        [False, [], digest],
        [None, None, None],
    ]
    assert [[row[name] for name in _FLAGS] for row in without] == [[None, None, None]] * 3


@needs_ray
@pytest.mark.parametrize("engine", _ENGINES)
def test_a_killed_run_is_resumed(engine: str, tmp_path: Path) -> None:
    """After SIGKILL each file gets exactly one row, and the files of finished parts are not read again."""
    names = _copies(tmp_path / "images", 100)
    blocked = tmp_path / "blocked.png"
    os.mkfifo(blocked)  # reading it blocks: the run can't end before it is killed
    out = tmp_path / "out"
    arguments = (tmp_path / "images", blocked, "--out", out, "--part-size", "10", "--engine", engine)
    process = forked_servers.start(classify_command(*arguments), cwd=ROOT, env=variables())
    try:
        wait_until(lambda: len(list(out.glob("part-*.parquet"))) >= 5, timeout_s=240)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    finished = [row["path"] for row in read_rows(out)]
    assert 50 <= len(finished) < 101
    for name in finished:
        Path(name).unlink()
    blocked.unlink()
    shutil.copy(_DIGIT, blocked)

    refused = classify(*arguments)
    assert refused.returncode == 2
    assert "add --resume" in refused.stderr
    refused = classify(*arguments, "--resume", "--top-k", "1")
    assert refused.returncode == 2
    assert "was started with top_k None, not 1" in refused.stderr

    resumed = classify(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{len(finished)} of 101 images were finished before." in resumed.stderr
    rows = read_rows(out)
    assert sorted(row["path"] for row in rows) == sorted([*names, str(blocked)])
    assert {row["labels"][0] for row in rows} == {"7"}


@needs_ray
@pytest.mark.parametrize(
    ("engine", "shards"),
    [
        pytest.param("local", ("1/2", "2/2", "2/2"), id="local"),
        pytest.param("ray", ("1/1",), marks=only_all, id="ray"),
    ],
)
def test_an_object_store(engine: str, shards: tuple[str, ...], tmp_path: Path) -> None:
    """Shards read from one and write to it; each file has one row, also after a second run of the same shard."""
    with object_store("bucket") as store:
        for number in range(6):
            url = f"{store['AWS_ENDPOINT_URL']}/bucket/images/{number % 2}/{number}.png"
            httpx.put(url, content=_DIGIT.read_bytes() + b"%d" % number, **PLAIN_HTTP).raise_for_status()
        httpx.put(f"{store['AWS_ENDPOINT_URL']}/bucket/images/notes.txt", content=b"x", **PLAIN_HTTP)
        for shard in shards:
            where = ("s3://bucket/images", "--out", "s3://bucket/out", "--engine", engine)
            result = classify(*where, "--resume", "--shard", shard, "--part-size", "2", **store)
            assert result.returncode == 0, result.stderr
        scheme, _, address = store["AWS_ENDPOINT_URL"].partition("://")
        rows = read_rows(f"s3://test:test@bucket/out?scheme={scheme}&endpoint_override={address}&region=us-east-1")
    assert sorted(row["path"] for row in rows) == sorted(f"s3://bucket/images/{n % 2}/{n}.png" for n in range(6))
    assert {row["labels"][0] for row in rows} == {"7"}


@needs_ray
@pytest.mark.parametrize("threads", _THREADS)
def test_the_engines_agree(tmp_path: Path, threads: str) -> None:
    """On Ray, each file has the row that it has without Ray."""
    _copies(tmp_path / "images", 5)
    for number in range(4):  # a part has nothing but bad files, too
        (tmp_path / "images" / f"bad-{number}.png").write_bytes(b"damaged")
    rows = {}
    for engine in ("local", "ray"):
        out = tmp_path / engine
        options = ("--engine", engine, "--out", out, "--part-size", "3")
        result = classify(tmp_path / "images", "examples", *options, VIT_API_CPU_THREADS=threads)
        assert result.returncode == 1, result.stderr
        assert "11 images in" in result.stderr
        rows[engine] = sorted(read_rows(out), key=lambda row: row["path"])
    assert [row["path"] for row in rows["ray"]] == [row["path"] for row in rows["local"]]
    for ray, local in zip(rows["ray"], rows["local"], strict=True):
        assert ray["scores"] == pytest.approx(local["scores"], abs=1e-4)
        assert ray | {"scores": None} == local | {"scores": None}


@needs_ray
def test_a_cluster_that_can_not_be_joined(tmp_path: Path) -> None:
    """The command ends with a sentence that names it, and can be resumed on another."""
    options = ("--out", tmp_path / "out", "--engine", "ray")
    result = classify(_DIGIT, *options, RAY_ADDRESS=f"127.0.0.1:{free_port()}")
    assert result.returncode == 1
    assert "error: The cluster at RAY_ADDRESS=127.0.0.1:" in result.stderr
    assert "with --resume." in result.stderr
    assert "Traceback" not in result.stderr
    assert classify(_DIGIT, *options, "--resume", "--engine", "local").returncode == 0


@needs_ray
@only_all
def test_decoding_stays_a_few_parts_ahead(tmp_path: Path) -> None:
    """On Ray, once the model is loaded, files are read only while few decoded parts wait for it."""
    unread = [tmp_path / f"{number:03}.png" for number in range(60)]
    for pipe in unread:
        os.mkfifo(pipe)  # a task that reads it waits for its content
    out, ahead = tmp_path / "out", [0]
    arguments = classify_command(*unread, "--out", out, "--part-size", "1", "--engine", "ray")

    def all_are_read() -> bool:
        done = len(list(out.glob("part-*.parquet")))
        for pipe in list(unread):
            if (done or len(unread) == 60) and _is_read(pipe, _DIGIT.read_bytes()):
                unread.remove(pipe)
        ahead.append(60 - len(unread) - len(list(out.glob("part-*.parquet"))))
        assert process.poll() is None or not unread
        return not unread

    environment = variables(VIT_API_CPU_THREADS="2")  # tasks decode, as beside a GPU
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_until(all_are_read, timeout_s=240)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait(timeout=30)
    assert len(read_rows(out)) == 60
    for_the_actor, in_tasks = 4, len(os.sched_getaffinity(0))
    assert max(ahead) <= for_the_actor + in_tasks


def _is_read(pipe: Path, content: bytes) -> bool:
    """Give a named pipe its content if a process has opened it."""
    with contextlib.suppress(OSError):
        writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, content)
        os.close(writer)
        return True
    return False


@needs_ray
@only_all
@pytest.mark.parametrize("threads", ["1", "2"])
def test_two_nodes_of_which_one_dies(tmp_path: Path, threads: str) -> None:
    """Both read at once; what reads on one, and the other with its model, are killed, and each file has its row."""
    names, pipes = _copies(tmp_path / "images", 30), [tmp_path / f"{number}.png" for number in range(6)]
    for pipe in pipes:
        os.mkfifo(pipe)
    held = [os.open(pipe, os.O_RDWR) for pipe in pipes]  # so that readers open them, and wait for content
    out = tmp_path / "out"
    arguments = (tmp_path / "images", *pipes, "--out", out, "--part-size", "1", "--engine", "ray")
    with cluster_of_two_nodes(cpus=2) as nodes:
        environment = variables(RAY_ADDRESS=nodes.address, VIT_API_CPU_THREADS=threads)
        process = subprocess.Popen(classify_command(*arguments), cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        try:
            wait_until(lambda: all(_readers(pipes) & {*children_of(node)} for node in nodes[1:]), timeout_s=240)
            wait_until(lambda: len(list(out.glob("part-*.parquet"))) == len(names), timeout_s=60)
            task = min(_readers(pipes) & {*children_of(nodes.head)})
            killed = [task, *children_of(nodes.other), nodes.other]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not _readers(pipes) & {*killed})
            unread = dict(zip(pipes, held, strict=True))
            wait_until(lambda: _feed(unread), timeout_s=120)
            _, log = process.communicate(timeout=240)
        finally:
            process.kill()
            process.wait(timeout=30)
    assert process.returncode == 0, log.decode()
    rows = read_rows(out)
    assert sorted(row["path"] for row in rows) == sorted([*names, *map(str, pipes)])
    assert {row["labels"][0] for row in rows} == {"7"}


@needs_ray
@only_all
def test_a_file_that_kills_its_reader_is_left_out(tmp_path: Path) -> None:
    """On Ray, its part fails in each round of attempts; all other files have rows, and the command says what to do."""
    os.mkfifo(pipe := tmp_path / "pipe.png")
    held = os.open(pipe, os.O_RDWR)
    names, out, killed = _copies(tmp_path / "images", 6), tmp_path / "out", set[int]()
    arguments = classify_command(pipe, tmp_path / "images", "--out", out, "--part-size", "1", "--engine", "ray")

    def has_ended() -> bool:
        for reader in _readers([pipe]) - killed:
            os.kill(reader, signal.SIGKILL)
            killed.add(reader)
        return process.poll() is not None

    process = subprocess.Popen(arguments, cwd=ROOT, env=variables(), stderr=subprocess.PIPE)
    try:
        wait_until(has_ended, timeout_s=240)
        _, log = process.communicate(timeout=60)
    finally:
        os.close(held)
        process.kill()
        process.wait(timeout=30)
    assert process.returncode == 1
    assert b"1 images have no results yet: run the command again with --resume." in log
    assert len(killed) >= 2 * 3
    assert sorted(row["path"] for row in read_rows(out)) == names


@needs_ray
@only_all
def test_a_model_that_is_missing_on_a_node(tmp_path: Path) -> None:
    """The run on Ray ends with the reason, in a sentence."""
    options = ("--model", tmp_path / "missing", "--out", tmp_path / "out", "--engine", "ray")
    result = classify(_DIGIT, *options)
    assert result.returncode == 1
    assert f"error: Ray gave up: The model '{tmp_path / 'missing'}' can't be used: there is no" in result.stderr


def _feed(unread: dict[Path, int]) -> bool:
    """Give each pipe that has a reader its content, and return whether all have been given it.

    A plain file takes its place, since Ray may run a part again.
    """
    for pipe in [pipe for pipe in unread if _readers([pipe])]:
        os.write(unread[pipe], _DIGIT.read_bytes())
        os.close(unread.pop(pipe))
        (copy := pipe.with_suffix(".new")).write_bytes(_DIGIT.read_bytes())
        copy.replace(pipe)
    return not unread


def _readers(pipes: list[Path]) -> set[int]:
    """Return the other processes that have one of the pipes open."""
    names = set(map(str, pipes))
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) in names:  # noqa: PTH115
                found.add(int(descriptor.parts[2]))
    return found - {os.getpid()}
