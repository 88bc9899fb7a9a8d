"""Fetches a checkpoint's files from the Hugging Face hub, or finds them in its local cache.

Knows nothing of what is in the files. The work is done in a child process that runs this module: name resolution can't
be timed out within a process, and the library may leave threads behind, which the main process must not have when it
forks the HTTP processes.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vit_api.checkpoints import weights
from vit_api.environment import home, space

T = TypeVar("T")

logger = logging.getLogger(__name__)

# A reachable hub lists a model's files in well under a second. With the child's start (1 to 2 s), a server that can't
# reach it reports that within about 10 s.
RESPONSE_TIMEOUT_S = 8.0

_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(Exception):
    """A checkpoint is available neither from the hub nor from the cache; the message says why and what to do."""


def fetch(name: str, revision: str | None) -> tuple[Path, str]:
    """Download the files of a hub model that the server needs, or find them in the local cache.

    Only JSON and safetensors files are fetched. Only the cache is used if the hub can't be reached, if HF_HUB_OFFLINE
    is set, or if the revision is a commit whose files are all cached.

    Args:
        name: The model id, such as `google/vit-base-patch16-224`.
        revision: A branch, tag or commit; None for the main branch.

    Returns:
        The folder with the files, and their commit.

    Raises:
        HubError: The model is not available. If the hub does not respond, this is raised within about 10 seconds; a
            download that makes progress is never interrupted.
    """
    package = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", __name__, name, revision or ""]
    caches = space.replaced_caches() or home.replaced_hub_caches(name)
    for variable, directory in caches.items():
        logger.warning("%s is %s, which can't be written: using %s instead.", variable, os.environ[variable], directory)
    environment = {**os.environ, **caches, "PYTHONPATH": search_path}
    # The child watches its standard input, so it ends when this process ends, for whatever reason. Ctrl-C reaches both,
    # and would end it with a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    with child:
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise HubError(f"the download ended unexpectedly (exit status {child.returncode}); see the log above") from None
    if "error" in answer:
        raise HubError(answer["error"])
    return Path(answer["folder"]), answer["commit"]


def _main() -> None:
    """Print the result as one line of JSON on standard output; progress and warnings go to standard error."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    name, revision = sys.argv[1:]
    try:
        folder = _fetch(name, revision or "main")
        answer = {"folder": str(folder), "commit": folder.name}
    except HubError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # a look-up that hangs in name resolution must not delay the exit


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _fetch(name: str, revision: str) -> Path:
    from huggingface_hub import HfApi, constants, errors, is_offline_mode

    if is_offline_mode():
        return _find_cached(name, revision, "HF_HUB_OFFLINE is set")
    if _COMMIT.fullmatch(revision) and (cached := _cached_folder(name, revision)):
        return cached  # a commit never changes, so the hub need not be asked
    try:
        api = HfApi()
        info = _within(RESPONSE_TIMEOUT_S, lambda: api.model_info(name, revision=revision, timeout=RESPONSE_TIMEOUT_S))
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
    """Call a function that may never return, with a time limit.

    Raises:
        TimeoutError: The function has not returned in time. Its thread is left running.
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
    """Download the files that are not cached yet, of a model whose repository has `files`."""
    if weights.SINGLE in files:
        wanted = [weights.SINGLE]
    elif weights.INDEX in files:
        wanted = [weights.INDEX]
    else:
        raise HubError(_without_safetensors(files))
    wanted = [file for file in _CONFIGS if file in files] + wanted
    folders = {_download_file(name, revision, file) for file in wanted}
    if wanted[-1] == weights.INDEX:
        folders |= {_download_file(name, revision, shard) for shard in weights.weight_files(folders.copy().pop())}
    if len(folders) > 1:
        raise HubError("it changed during the download; start again, or pin a commit as the revision")
    return folders.pop()


def _without_safetensors(files: list[str]) -> str:
    """Return why a repository without safetensors weights can't be served, and what to do."""
    reason = "its repository has no safetensors weights (model.safetensors); pickled weights are never loaded"
    if not set(weights.PICKLED) & set(files):
        return reason
    return (
        f"{reason}. If a pull request on its Community page adds safetensors, as the hub's converter does for many "
        "models, run that branch: --revision refs/pr/N. Otherwise convert it once, see docs/models.md#pickled-weights"
    )


def _download_file(name: str, revision: str, file: str) -> Path:
    """Download one file and return the folder of its commit. The library handles timeouts, retries and progress."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, revision=revision)).parent


def _find_cached(name: str, revision: str, reason: str) -> Path:
    if cached := _cached_folder(name, revision):
        print(f"Using {name} from the local cache, commit {cached.name}: {reason}.", file=sys.stderr)
        return cached
    raise HubError(
        f"{reason}, and the model is not complete in the local cache. "
        "To start without a download, use the embedded model: --model digits"
    )


def _cached_folder(name: str, revision: str) -> Path | None:
    """Find the folder of a revision in the cache; None if any required file is missing."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
        shards = weights.weight_files(folder)
    except (errors.HFValidationError, ValueError):
        return None
    has_processor = any((folder / file).is_file() for file in _CONFIGS[1:]) or _is_timm(folder)
    has_weights = bool(shards) and all((folder / shard).is_file() for shard in shards)
    return folder if has_processor and has_weights else None


def is_timm(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is in timm's format and not in that of transformers."""
    return isinstance(config.get("architecture"), str) and "architectures" not in config


def _is_timm(folder: Path) -> bool:
    """Return whether a folder has a checkpoint in timm's format, which has no file for a processor."""
    config = json.loads((folder / "config.json").read_bytes())
    return isinstance(config, dict) and is_timm(config)


def _refusal(error: Exception, revision: str) -> HubError:
    """Explain a refusal of the hub, or a failed download, to the operator."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return HubError("access to it is restricted; accept its terms on its page, and set HF_TOKEN to your token")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError("the hub has no such model, or it is private; check the name, or set HF_TOKEN to your token")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"the hub has the model, but no revision {revision!r}; check VIT_API_REVISION")
    if isinstance(error, errors.HFValidationError):
        return HubError("it is neither a directory nor a model id of the hub, such as google/vit-base-patch16-224")
    if _status(error) in (401, 403):
        return HubError("the hub denies access to it; set HF_TOKEN to a valid token with read access")
    return HubError(f"the download failed ({str(error).strip() or type(error).__name__})")


def _status(error: Exception) -> int | None:
    """Return the HTTP status behind an error of the library, if any."""
    return getattr(getattr(error, "response", None), "status_code", None)


if __name__ == "__main__":
    _main()
