"""Fetches a checkpoint's files from the Hugging Face hub, or finds them in its local cache.

Knows nothing of what is in the files. The work is done in a process of its own, which runs this module: name resolution
can't be timed out inside a process, and the library may leave threads behind, which the main process must not have when
it forks the HTTP processes.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vit_api import space
from vit_api.checkpoints import weights

T = TypeVar("T")

logger = logging.getLogger(__name__)

# The hub, when it can be reached, lists a model's files in well under a second. With the child's start (1-2 s) this
# keeps a server that can't reach it from hanging for more than about 10 s before it says so.
ANSWER_S = 8.0

_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(Exception):
    """A checkpoint can't be had from the hub, nor from the cache; the message says why and what to do."""


def fetch(name: str, revision: str | None) -> tuple[Path, str]:
    """Download the files of a hub model that the server needs, or find them in the local cache.

    Only JSON and safetensors files are fetched. The cache alone is used where the hub can't be reached, where
    HF_HUB_OFFLINE is set, and where the revision is a commit whose files are all there.

    Args:
        name: The model's id, such as `google/vit-base-patch16-224`.
        revision: A branch, a tag or a commit; None is the main branch.

    Returns:
        The folder that holds the files, and the commit that they are of.

    Raises:
        HubError: The model can't be had. Where the hub doesn't answer, that is known within about 10 seconds; a
            download that has begun is never cut off while it gets on.
    """
    package = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", __name__, name, revision or ""]
    caches = space.replaced_caches()
    for variable, directory in caches.items():
        logger.warning("%s=%s can't be written; using %s instead", variable, os.environ[variable], directory)
    environment = {**os.environ, **caches, "PYTHONPATH": search_path}
    # The child watches its standard input: it ends when this process does, however this process ends.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise HubError(f"the download ended unexpectedly (exit status {child.returncode}); see the log") from None
    if "error" in answer:
        raise HubError(answer["error"])
    return Path(answer["folder"]), answer["commit"]


def _main() -> None:
    """Answer with one line of JSON on standard output; progress and warnings go to standard error."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    name, revision = sys.argv[1:]
    try:
        folder = _fetch(name, revision or "main")
        answer = {"folder": str(folder), "commit": folder.name}
    except HubError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # a look-up that hangs in name resolution must not delay the end


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _fetch(name: str, revision: str) -> Path:
    from huggingface_hub import HfApi, constants, errors, is_offline_mode

    if is_offline_mode():
        return _find_cached(name, revision, "HF_HUB_OFFLINE is set")
    if _COMMIT.fullmatch(revision) and (cached := _cached_folder(name, revision)):
        return cached  # a commit never changes, so there is nothing to ask
    try:
        info = _within(ANSWER_S, lambda: HfApi().model_info(name, revision=revision, timeout=ANSWER_S))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise _refusal(error, revision) from error
    except Exception as error:
        if _status(error) in (401, 403):
            raise _refusal(error, revision) from error
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return _find_cached(name, revision, f"the hub at {constants.ENDPOINT} can't be reached ({reason})")
    try:
        return _download(name, revision, [sibling.rfilename for sibling in info.siblings or []])
    except (HubError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _refusal(error, revision) from error


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Call a function that may never return; give up after so many seconds.

    Raises:
        TimeoutError: It hasn't returned. Its thread is left behind.
        Exception: What the function raises.
    """
    results: queue.SimpleQueue[tuple[T, None] | tuple[None, Exception]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((call(), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def _download(name: str, revision: str, files: list[str]) -> Path:
    """Download what isn't cached yet of a model whose repository has these files."""
    if weights.SINGLE in files:
        wanted = [weights.SINGLE]
    elif weights.INDEX in files:
        wanted = [weights.INDEX]
    else:
        raise HubError("its repository has no safetensors weights (model.safetensors); pickled ones are never loaded")
    wanted = [file for file in _CONFIGS if file in files] + wanted
    folders = {_download_file(name, revision, file) for file in wanted}
    if wanted[-1] == weights.INDEX:
        folders |= {_download_file(name, revision, shard) for shard in weights.weight_files(folders.copy().pop())}
    if len(folders) > 1:
        raise HubError("it changed while it was downloaded; start again, or pin a commit as the revision")
    return folders.pop()


def _download_file(name: str, revision: str, file: str) -> Path:
    """Download one file and return the folder of its commit. Timeouts, retries and progress are the library's."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, revision=revision)).parent


def _find_cached(name: str, revision: str, reason: str) -> Path:
    if cached := _cached_folder(name, revision):
        print(f"{reason}; using {name} from the local cache, commit {cached.name}", file=sys.stderr)
        return cached
    raise HubError(
        f"{reason}, and the model isn't complete in the local cache. "
        "The embedded model needs no download: start with --model digits"
    )


def _cached_folder(name: str, revision: str) -> Path | None:
    """Find the folder of a revision in the cache; None where any of the files needed is missing."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
        shards = weights.weight_files(folder)
    except (errors.HFValidationError, ValueError):
        return None
    has_processor = any((folder / file).is_file() for file in _CONFIGS[1:])
    has_weights = bool(shards) and all((folder / shard).is_file() for shard in shards)
    return folder if has_processor and has_weights else None


def _refusal(error: Exception, revision: str) -> HubError:
    """Say what the hub's refusal, or a failed download, means to the person who starts the server."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return HubError("access to it is restricted: accept its terms on its page, and set HF_TOKEN to your token")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError("the hub has no such model, or it is private: check the name, or set HF_TOKEN to your token")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"the hub has the model, but no revision {revision!r}")
    if isinstance(error, errors.HFValidationError):
        return HubError("this is neither a directory nor a model id of the hub, such as google/vit-base-patch16-224")
    if _status(error) in (401, 403):
        return HubError("the hub refuses access to it: set HF_TOKEN to a token that is valid and may read it")
    return HubError(f"the download failed: {str(error).strip() or type(error).__name__}")


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of the library stands for, if any."""
    return getattr(getattr(error, "response", None), "status_code", None)


if __name__ == "__main__":
    _main()
