"""The server as an arbitrary user with group 0, on a file system that it can't write to, as OpenShift runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.server import ROOT, serve_by

USER = 12345
# It may read everything, so that the test does not depend on where Python is, and write what any user may.
READ_ALL = [f"--{kind}={change}" for kind in ("inh-caps", "ambient-caps") for change in ["-all,+dac_read_search"]]
AS_USER = ["setpriv", "--reuid", str(USER), "--regid", "0", "--clear-groups", "--no-new-privs", *READ_ALL]
READ_ONLY = ["unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro / && exec "$@"', "sh"]
DIGIT = (ROOT / "examples" / "digit-7.png").read_bytes()


def _can(command: list[str]) -> bool:
    try:
        return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("home", [["HOME=/"], ["--unset=HOME"]])
def test_the_server_runs_as_any_user(home: list[str]) -> None:
    """It serves, and one line in the log says where the caches are."""
    if not _can([*READ_ONLY, *AS_USER]) or not os.access(sys.executable, os.X_OK):
        pytest.skip("becoming another user takes setpriv and unshare, and the right to use them")
    # /tmp is often on the root file system, so it gets one of its own.
    temporary = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o mode=1777 tmp /var/tmp && exec "$@"', "sh"]
    as_user = ["env", *home, "TMPDIR=/var/tmp", *AS_USER, sys.executable, "-B", f"{ROOT}/server.py"]
    command = [*temporary, *READ_ONLY, *as_user]
    if not _can([*temporary, *READ_ONLY]):
        pytest.skip("mounting takes the right to do so")
    with serve_by(command, ROOT, {}, model="digits", host="127.0.0.1", engine="eager") as server:
        assert server.predict(DIGIT).json()["predictions"][0]["label"] == "7"
        log = server.log.read_text()
        assert log.count(f"/var/tmp/vit-api-{USER}") == 1
        assert "ERROR" not in log
