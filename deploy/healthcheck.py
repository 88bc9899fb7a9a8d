"""Exits with status 0 if the server in this container is ready. Must not import the server.

Imports little, and only from the standard library, since it runs every few seconds.
"""

from __future__ import annotations

import http.client
import os
import sys

_TIMEOUT_S = 4.0
_DEFAULT_PORT = 7860


def main() -> int:
    """Request /health/ready and return the exit status."""
    port = _port()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health/ready")
        status = connection.getresponse().status
    except OSError as error:
        print(f"No response on port {port}: {error}")
        return 1
    print(f"/health/ready responded with status {status}.")
    return 0 if status == http.client.OK else 1


def _port() -> int:
    """Return the port as the server determines it; Kubernetes may set VIT_API_PORT to a URL, which it ignores."""
    values = (os.environ.get(name, "").strip() for name in ("VIT_API_PORT", "PORT"))
    return int(next((value for value in values if value.isdecimal()), _DEFAULT_PORT))


if __name__ == "__main__":
    sys.exit(main())
