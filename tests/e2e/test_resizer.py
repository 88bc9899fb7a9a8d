"""A server on a platform for which the SIMD resizer has no wheel."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.server import ROOT, serve_by

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()


def test_pillow_resizes_where_the_fast_resizer_is_missing(tmp_path: Path) -> None:
    """One line of the log and `/info` say so."""
    (tmp_path / "cykooz_resizer.py").write_text("raise ImportError('planted')")
    command = [sys.executable, str(ROOT / "server.py")]
    variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    settings = {"model": "digits", "host": "127.0.0.1", "api_servers": 2}
    with serve_by(command, tmp_path, variables, is_fresh=True, **settings) as server:
        assert server.get("/info").json()["resizer"] == "pillow"
        assert server.top(_SEVEN, 1)[0][0] == "7"
        assert server.log.read_text().count("cykooz-resizer is not installed") == 1
