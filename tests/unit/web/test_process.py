"""The composition of an HTTP process: what its import costs."""

from __future__ import annotations

import subprocess
import sys

from tests.support.server import ROOT


def test_a_server_without_redis_imports_no_redis() -> None:
    """Few servers have one, and its import delays each start."""
    code = "import sys, vit_api.app, vit_api.web.process; print('redis' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
