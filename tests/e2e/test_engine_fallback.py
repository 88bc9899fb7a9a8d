"""A server whose engine is not available on its device."""

from __future__ import annotations

from tests.support.server import serve


def test_an_unavailable_engine_falls_back_to_eager() -> None:
    """CUDA graphs on the CPU: one warning is logged, and the server becomes ready."""
    with serve(engine="cudagraph", device="cpu", api_servers=1) as server:
        (worker,) = server.get("/info").json()["workers"]
        assert worker["engine"] == "eager"
        assert server.log.read_text().count("The engine cudagraph is not available") == 1
