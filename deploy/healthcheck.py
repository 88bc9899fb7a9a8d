"""Exit with 0 if the server in this container is ready. Knows nothing of the server but its port.

The standard library alone, and of it little: this runs every few seconds.
"""

from __future__ import annotations

import http.client
import os
import sys

_TIMEOUT_S = 4.0


def main() -> int:
    """Ask the server's health and return the exit status."""
    port = int(os.environ.get("VIT_API_PORT") or 7860)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health/ready")
        status = connection.getresponse().status
    except OSError as error:
        print(f"no answer on port {port}: {error}")
        return 1
    print(f"status {status}")
    return 0 if status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
