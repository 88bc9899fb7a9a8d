"""Start the server: `python server.py --help` lists its settings."""

import sys

if __name__ == "__main__":
    # Not at the top: spawned workers (with VIT_API_MAX_MODELS) import this file and need nothing of the HTTP side.
    from vit_api.__main__ import serve

    sys.exit(serve())
