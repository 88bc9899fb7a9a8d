"""Reads variables that hosting platforms set for every container. Must not know what a setting is for.

- Kubernetes describes each Service of a namespace in variables, as Docker's links did. For a Service named `vit-api`
  these are `VIT_API_PORT=tcp://10.96.12.7:7860`, `VIT_API_SERVICE_HOST` and others: the prefix of our settings.
- Cloud Run, Heroku and Render set `PORT` to the port that they route to.
- Containers for Hugging Face's Inference Endpoints get the model as `HF_MODEL_ID` and `HF_MODEL_REVISION`, in the
  directory `HF_MODEL_DIR`, or mounted at `/repository`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MOUNTED = "/repository"
_LINK_NAME = re.compile(r"(_|^)(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
_LINK_URL = re.compile(r"(tcp|udp|sctp)://\S+$")


def drop_service_links(prefix: str) -> list[str]:
    """Remove variables that describe a Service from this process's environment; return their names.

    See "Discovering services" in the documentation of Kubernetes.

    Args:
        prefix: Only variables with this prefix are removed.
    """
    links = [n for n, value in os.environ.items() if n.startswith(prefix) and _is_link(n.removeprefix(prefix), value)]
    for name in links:
        del os.environ[name]
    return sorted(links)


def _is_link(name: str, value: str) -> bool:
    return bool(_LINK_NAME.search(name)) or (name.endswith("PORT") and bool(_LINK_URL.match(value)))


def defaults() -> dict[str, str]:
    """Return the values of settings that the platform provides, for settings that are not set otherwise."""
    port = os.environ.get("PORT", "").strip()
    return ({"port": port} if port.isdecimal() else {}) | _model()


def _model() -> dict[str, str]:
    """Return the model that the platform provides: a directory that has one, else a hub model, else the mounted one."""
    folder, name, revision = (os.environ.get(f"HF_MODEL_{part}", "").strip() for part in ("DIR", "ID", "REVISION"))
    if folder and _has_model(folder):
        return {"model": folder}
    if name:
        return {"model": name} | ({"revision": revision} if revision else {})
    return {"model": MOUNTED} if _has_model(MOUNTED) else {}


def _has_model(folder: str) -> bool:
    return (Path(folder) / "config.json").is_file()
