"""The command `vit-api models`: lists, loads and unloads the models of a running server, and changes their traffic.

It knows a server by its HTTP API alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any
from urllib.parse import quote

_DEFAULT_URL = "http://127.0.0.1:7860"
_KEY = "VIT_API_OPERATOR_KEY"
_FAILED = 1
_COLUMNS = ("model", "version", "state", "traffic", "workers")


class _Refused(Exception):
    """The server did not do it, or can't be reached."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments to a parser's subcommands."""
    models = commands.add_parser(
        "models",
        help="list, load and unload the models of a running server",
        description=f"List, load and unload the models of a running server, and change their traffic. The operator key "
        f"is read from {_KEY}.",
    )
    actions = models.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="show what the server serves, and what it loads")
    load = actions.add_parser("load", help="load a model, or a further version of one")
    load.add_argument("name", help="the model's name for clients")
    load.add_argument("model", nargs="?", help="hub id, or a directory on the server; default: as when it was unloaded")
    load.add_argument("--version", help="the version's name; default: the next number")
    load.add_argument("--revision", help="branch, tag or commit of a hub model")
    load.add_argument("--traffic", type=float, metavar="PERCENT", help="taken from its other versions; default: none")
    load.add_argument(
        "--mirror-traffic",
        type=float,
        metavar="PERCENT",
        help="part of the others' images to compute, too",
    )
    load.add_argument("--dtype", help="precision; default: the server's")
    load.add_argument("--max-batch-size", type=int, metavar="NUMBER", help="default: the server's")
    load.add_argument("--workers-per-device", type=int, metavar="NUMBER", help="default: the server's")
    load.add_argument("--thresholds", metavar="JSON", help="score from which a label is flagged; default: the server's")
    traffic = actions.add_parser("traffic", help="change the traffic of a model's versions")
    traffic.add_argument("name", help="the model's name")
    traffic.add_argument("shares", nargs="*", metavar="VERSION=PERCENT", type=_share, help="all make 100 together")
    traffic.add_argument(
        "--mirror",
        metavar="VERSION=PERCENT",
        type=_share,
        action="append",
        default=[],
        help="part of the others' images that this version computes as well, without answering; 0 ends that",
    )
    unload = actions.add_parser("unload", help="unload a model or a version, once it has answered what it has")
    unload.add_argument("name", help="the model's name")
    unload.add_argument("version", nargs="?", help="default: all of its versions")
    for action, run in ((listing, _list), (load, _load), (traffic, _traffic), (unload, _unload)):
        action.add_argument("--url", default=_DEFAULT_URL, help="the server's address (default: %(default)s)")
        action.set_defaults(run=_guarded, action=run)


def _guarded(options: argparse.Namespace) -> int:
    """Run an action and return the exit status: 1 if the server did not do it."""
    try:
        options.action(options)
    except _Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return _FAILED
    return 0


def _share(text: str) -> tuple[str, float]:
    version, found, percent = text.rpartition("=")
    if not found or not version:
        raise argparse.ArgumentTypeError(f"{text!r} should be like 2=10")
    return version, float(percent)


def _list(options: argparse.Namespace) -> None:
    states = {(one["name"], one["version"]): one for one in _post(options, "/v2/repository/index")}
    health = {(one["model"], one["version"]): one for one in _get_models(options)}
    rows = []
    for key, state in states.items():
        known = health.get(key, {})
        mirror = known.get("mirror_traffic")
        traffic = (f"mirror {mirror:g}%" if mirror else f"{known['traffic']:g}%") if known else ""
        workers = f"{known['workers_ready']}/{known['workers']}" if known else ""
        rows.append((*key, state["state"] + (f" ({state['reason']})" if state["reason"] else ""), traffic, workers))
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    for row in (_COLUMNS, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _load(options: argparse.Namespace) -> None:
    names = (
        *("model", "version", "revision", "traffic", "mirror_traffic"),
        *("dtype", "max_batch_size", "workers_per_device", "thresholds"),
    )
    config = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    print(f"Loading {options.name} ...", file=sys.stderr)
    done = _post(options, _path(options, "load"), {"parameters": {"config": json.dumps(config)}})
    print(f"Loaded {options.name}, version {done['version']}.")


def _traffic(options: argparse.Namespace) -> None:
    if not options.shares and not options.mirror:
        raise _Refused("Nothing is changed: expected VERSION=PERCENT, or --mirror VERSION=PERCENT.")
    shares = {"traffic": dict(options.shares), "mirror_traffic": dict(options.mirror)}
    _post(options, _path(options, "traffic"), shares)
    print(f"Changed the traffic of {options.name}.")


def _unload(options: argparse.Namespace) -> None:
    parameters = {} if options.version is None else {"version": options.version}
    _post(options, _path(options, "unload"), {"parameters": parameters})
    print(f"Unloaded {options.name}" + (f", version {options.version}." if options.version else "."))


def _path(options: argparse.Namespace, action: str) -> str:
    return f"/v2/repository/models/{quote(options.name)}/{action}"


def _get_models(options: argparse.Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _request(options, "GET", "/health").get("models", [])
    return found


def _post(options: argparse.Namespace, path: str, body: Any = None) -> Any:
    return _request(options, "POST", path, body)


def _request(options: argparse.Namespace, method: str, path: str, body: Any = None) -> Any:
    """Return the JSON of a response; a load takes as long as it takes."""
    import httpx  # not at the top: `--help` needs no package

    key = os.environ.get(_KEY)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.request(
            method, options.url.rstrip("/") + path, json=body, headers=headers, timeout=httpx.Timeout(30, read=None)
        )
        content = response.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _Refused(f"{options.url} can't be reached: {error}.") from None
    except ValueError:
        raise _Refused(f"{options.url} answers {response.status_code}, and not as this server does.") from None
    if response.status_code in (200, 503) and method == "GET":
        return content  # health, while the server starts
    if response.status_code != 200:
        if response.status_code == 404 and content.get("error", "").startswith("There is no such path"):
            raise _Refused("The server does not load models: start it with VIT_API_MODELS and VIT_API_MAX_MODELS.")
        raise _Refused(content.get("error", f"The server answers {response.status_code}."))
    if isinstance(content, dict) and content.get("warning"):
        print(f"warning: {content['warning']}", file=sys.stderr)
    return content
