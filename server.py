"""Start the server: `python server.py --help` lists its settings."""

import sys

if __name__ == "__main__":
    # Not at the top: LitServe spawns its workers, which import this file and need nothing of the HTTP side.
    from vit_api.__main__ import serve

    sys.exit(serve())
